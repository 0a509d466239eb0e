import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { arch, availableParallelism, cpus, platform, release, totalmem } from 'node:os'
import { join } from 'node:path'

/** Where something was measured. */
export interface Machine {
  readonly cpu: string
  /** Instruction sets that matter here, as the system names them; null where it does not tell. */
  readonly cpuFlags: readonly string[] | null
  /** Processors that this process may use. */
  readonly cores: number
  /** Bytes of the last-level cache; null where the system does not tell. */
  readonly lastLevelCacheBytes: number | null
  readonly memoryBytes: number
  readonly os: string
  readonly node: string
  /** Of this package. */
  readonly version: string
  /** Revision of the sources, with `-dirty` if they were changed; null outside of a clone. */
  readonly commit: string | null
}

const kFlags = /^(sse4_2|avx|avx2|fma|f16c|avx_vnni|avx512\w+|amx_\w+|asimd|bf16|i8mm|sve\w*)$/

/** The machine that this runs on; `root` is the folder of the package. */
export function machineOf(root: string): Machine {
  const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as {
    version: string
  }
  return {
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cpuFlags: cpuFlags(),
    cores: availableParallelism(),
    lastLevelCacheBytes: lastLevelCacheBytes(),
    memoryBytes: totalmem(),
    os: `${platform()} ${release()} ${arch()}`,
    node: process.version,
    version,
    commit: commitOf(root),
  }
}

function cpuFlags(): string[] | null {
  const text = readOptional('/proc/cpuinfo')
  const [, flags] = /^(?:flags|Features)\s*: (.*)$/m.exec(text ?? '') ?? []
  return flags?.split(' ').filter((flag) => kFlags.test(flag)) ?? null
}

function lastLevelCacheBytes(): number | null {
  const folder = '/sys/devices/system/cpu/cpu0/cache'
  if (!existsSync(folder)) return null
  const units = { K: 2 ** 10, M: 2 ** 20, G: 2 ** 30 }
  const sizes = readdirSync(folder)
    .map((index) => /^(\d+)([KMG])/.exec(readOptional(join(folder, index, 'size')) ?? ''))
    .map((match) => (match ? Number(match[1]) * units[match[2] as keyof typeof units] : 0))
  return Math.max(0, ...sizes) || null
}

function commitOf(root: string): string | null {
  if (!existsSync(join(root, '.git'))) return null
  const args = ['-C', root, 'describe', '--always', '--dirty', '--abbrev=12', '--exclude=*']
  try {
    return execFileSync('git', args, { stdio: ['ignore', 'pipe', 'ignore'] })
      .toString()
      .trim()
  } catch {
    return null // no git here, or not ours to ask
  }
}

function readOptional(file: string): string | null {
  try {
    return readFileSync(file, 'utf8')
  } catch {
    return null
  }
}
