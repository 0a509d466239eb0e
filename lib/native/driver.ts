/** NVIDIA's driver as files tell of it: nothing of it is loaded here. */
import { existsSync, readFileSync, realpathSync, statSync } from 'node:fs'
import path from 'node:path'

/** The oldest driver, and the CUDA that it is the first for. */
export const kMinimumDriver = { driver: '580', cuda: '13.0' }

/** Where libcuda.so.1 lies: Debian's, Red Hat's, WSL's, containers', NixOS's. */
const kDriverFolders = [
  '/usr/lib/x86_64-linux-gnu',
  '/lib/x86_64-linux-gnu',
  '/usr/lib/aarch64-linux-gnu',
  '/usr/lib64',
  '/usr/lib',
  '/usr/lib/wsl/lib',
  '/usr/local/cuda/compat',
  '/usr/local/nvidia/lib64',
  '/run/opengl-driver/lib',
]

/** A driver that is installed, or parts of one. */
export interface Driver {
  /** Version of the kernel's module, `580.65.06`; null: it is not loaded. */
  readonly kernel: string | null
  /** Files that `libcuda.so.1` may be, in the order in which they are looked for. */
  readonly libraries: readonly string[]
}

/** The driver of this machine. */
export function findDriver(): Driver {
  const folders = (process.env.LD_LIBRARY_PATH ?? '').split(':').filter((name) => name !== '')
  const files = [...folders, ...kDriverFolders].map((folder) => path.join(folder, 'libcuda.so.1'))
  // The real name ends in the version: libcuda.so.580.65.06.
  const libraries = files.filter((file) => existsSync(file)).map((file) => realpathSync(file))
  return {
    kernel: readOptional('/sys/module/nvidia/version')?.trim() ?? null,
    libraries: [...new Set(libraries)],
  }
}

/** NVIDIA's own device, and the one by which WSL has Windows' GPUs. */
const kDeviceFiles = ['/dev/nvidiactl', '/dev/dxg']

/** Whether anything tells of a driver: without, no GPU can be used, and to try takes a process. */
export function mayHaveGpu(driver = findDriver(), exists = existsSync): boolean {
  return driver.kernel !== null || driver.libraries.length > 0 || kDeviceFiles.some(exists)
}

/** A file as it is now: its real path, size and date; null where there is none. */
export function identityOf(file: string): string | null {
  try {
    const { size, mtimeMs } = statSync(file)
    return `${realpathSync(file)} ${size} ${mtimeMs}`
  } catch {
    return null
  }
}

/** A file's text, null where it cannot be read. */
export function readOptional(file: string): string | null {
  try {
    return readFileSync(file, 'utf8')
  } catch {
    return null
  }
}
