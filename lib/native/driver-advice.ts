import { existsSync } from 'node:fs'
import { type Driver, findDriver, kMinimumDriver } from './driver.js'

/** What the advice looks at beside the reason. */
export interface DriverFacts {
  /** `CUDA_VISIBLE_DEVICES`; undefined: not set. */
  readonly visibleDevices: string | undefined
  /** Whether the file by which programs reach GPU memory is there: a module of the kernel makes it. */
  readonly hasUvm: boolean
}

const kContainer = 'in a container, start it with the GPUs of its host (`docker run --gpus all`)'

/** A pattern in the reason, and what to do about it. */
const kAdvice: readonly (readonly [RegExp, string | ((facts: DriverFacts) => string)])[] = [
  [
    /there is no NVIDIA driver/,
    `install NVIDIA's driver ${kMinimumDriver.driver} or newer; ${kContainer}`,
  ],
  [/driver is for CUDA/, `update NVIDIA's driver to ${kMinimumDriver.driver} or newer`],
  [
    /cudaErrorNoDevice|there is no NVIDIA GPU/,
    ({ visibleDevices }) =>
      visibleDevices === undefined
        ? `\`nvidia-smi -L\` lists the GPUs that the driver has; ${kContainer}`
        : `CUDA_VISIBLE_DEVICES is '${visibleDevices}', which may hide all GPUs: unset it`,
  ],
  [
    /cudaErrorStubLibrary/,
    "this libcuda.so.1 is the CUDA toolkit's, for linking alone: take its folder `stubs` out of " +
      'LD_LIBRARY_PATH',
  ],
  [
    /cudaErrorSystemDriverMismatch/,
    "libcuda.so.1 and the kernel's module are of different versions, as after an update: restart " +
      'the machine',
  ],
  [
    /cudaErrorCompatNotSupportedOnDevice/,
    'this libcuda.so.1 is of the package cuda-compat, which this GPU does not take: take its ' +
      'folder out of LD_LIBRARY_PATH',
  ],
  [
    /cudaErrorSystemNotReady/,
    'GPUs that are joined by NVSwitch need the service nvidia-fabricmanager: start it',
  ],
  [
    /cudaErrorDevicesUnavailable/,
    'another process holds the GPU for itself: `nvidia-smi` shows which',
  ],
  [
    /cudaErrorUnknown|cudaErrorInitializationError|cudaErrorOperatingSystem/,
    ({ hasUvm }) =>
      hasUvm
        ? 'the driver does not start: `nvidia-smi` may say why; restart the machine after an ' +
          'update of the driver or a suspend'
        : 'the driver does not start, /dev/nvidia-uvm is missing: `sudo nvidia-modprobe -u -c=0` ' +
          `makes it; ${kContainer}`,
  ],
  [
    /ended by SIG|did not answer within/,
    'the driver is broken or does not fit its kernel module: see what `nvidia-smi` says; ' +
      'ZIPCACHE_CUDA_TRIAL gives the trial more seconds',
  ],
]

/** A reason why a GPU cannot be used, with what to do about it where that is known. */
export function withAdvice(reason: string, facts: DriverFacts = factsHere()): string {
  const [, architecture] = /is an sm_(\d+), and this build has code for/.exec(reason) ?? []
  if (architecture) {
    return Number(architecture) < 80
      ? `${reason}; the kernels need compute capability 8.0 or newer`
      : `${reason}; build it with ZC_CUDA_ARCHITECTURES=${architecture}-real`
  }
  const advice = kAdvice.find(([pattern]) => pattern.test(reason))?.[1]
  if (advice === undefined) return reason
  return `${reason}; ${typeof advice === 'string' ? advice : advice(facts)}`
}

let hasWarned = false

/**
 * Warns once that the CPU computes although there is an NVIDIA GPU, as its driver's module in the kernel
 * shows, and why: nobody would find out before it is slow.
 */
export function warnOfUnusedGpu(
  reason: string,
  driver: Pick<Driver, 'kernel'> = findDriver(),
): void {
  if (hasWarned || driver.kernel === null) return
  hasWarned = true
  const message = `the CPU computes, since no GPU can be used: ${reason}`
  process.emitWarning(message, { type: 'ZipCacheWarning', code: 'ZC_GPU_UNUSED' })
}

function factsHere(): DriverFacts {
  return {
    visibleDevices: process.env.CUDA_VISIBLE_DEVICES,
    hasUvm: existsSync('/dev/nvidia-uvm'),
  }
}
