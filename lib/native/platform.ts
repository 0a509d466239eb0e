import { existsSync } from 'node:fs'
import path from 'node:path'

/** The folder of this package: lib/native (tests) and dist/native are two folders below it. */
export const kPackageRoot = path.resolve(__dirname, '..', '..')

/** The version of this package, which the addon must have too. */
export const kVersion: string = (require('../../package.json') as { version: string }).version

/** The platform that this process runs on, as `linux-x64`. */
export const kPlatform = `${process.platform}-${process.arch}`

/** glibc that prebuilt binaries need: what Node's own binaries do. scripts/prebuild checks it. */
export const kMinimumGlibc = '2.28'

/** The platforms that prebuilt binaries exist for, as `platform-arch`. */
export const kPrebuiltPlatforms: readonly string[] = ['linux-x64', 'linux-arm64']

/** Those with a prebuilt CUDA backend. */
export const kPrebuiltCudaPlatforms: readonly string[] = ['linux-x64']

/** What prebuilt binaries are chosen by. */
export interface Platform {
  /** `linux-x64` */
  readonly name: string
  /** `glibc 2.36`, `musl`, or null where that says nothing. */
  readonly libc: string | null
  readonly node: string
}

/** Where this process runs. Takes some milliseconds: it makes one of Node's reports. */
export function platformFacts(): Platform {
  return {
    name: kPlatform,
    libc: process.platform === 'linux' ? libcVersion() : null,
    node: process.versions.node,
  }
}

function libcVersion(): string {
  // @types/node of Node 20 does not know it: a report would ask the network for names of addresses.
  const settings = process.report as { excludeNetwork?: boolean }
  const before = settings.excludeNetwork
  settings.excludeNetwork = true
  try {
    const report = process.report.getReport() as { header?: { glibcVersionRuntime?: string } }
    const version = report.header?.glibcVersionRuntime
    return version ? `glibc ${version}` : 'musl'
  } finally {
    if (before !== undefined) settings.excludeNetwork = before
  }
}

/** Whether this is a clone of the repository, where `npm run build` builds, or what npm installed. */
export function isClone(): boolean {
  return existsSync(path.join(kPackageRoot, 'scripts', 'setup.mjs'))
}

/**
 * The addon in the package of binaries for this platform. The names stand in `require` as they are,
 * so that bundlers see them.
 */
export function requirePrebuiltAddon(): unknown {
  switch (kPlatform) {
    case 'linux-x64':
      return require('@zipcache/linux-x64')
    case 'linux-arm64':
      return require('@zipcache/linux-arm64')
    default:
      throw new Error(`there are no prebuilt binaries for ${kPlatform}`)
  }
}

/** The file of that addon. Throws as `requirePrebuiltAddon`. */
export function prebuiltAddonFile(): string {
  switch (kPlatform) {
    case 'linux-x64':
      return require.resolve('@zipcache/linux-x64')
    case 'linux-arm64':
      return require.resolve('@zipcache/linux-arm64')
    default:
      throw new Error(`there are no prebuilt binaries for ${kPlatform}`)
  }
}

/** The file of the CUDA backend in the package for this platform. Throws as `requirePrebuiltAddon`. */
export function prebuiltCudaFile(): string {
  switch (kPlatform) {
    case 'linux-x64':
      return require.resolve('@zipcache/linux-x64-cuda')
    default:
      throw new Error(`there is no prebuilt CUDA backend for ${kPlatform}`)
  }
}

/** Whether an error of `require` says that there is no such package, and no such file of it. */
export function isNotInstalled(error: unknown): boolean {
  const code = (error as { code?: unknown } | null)?.code
  return code === 'MODULE_NOT_FOUND' || code === 'ERR_MODULE_NOT_FOUND'
}
