import { existsSync } from 'node:fs'
import path from 'node:path'
import { reasonOf, ZipCacheError } from '../errors.js'
import type { Addon } from './addon.js'
import {
  isClone,
  isNotInstalled,
  kMinimumGlibc,
  kPackageRoot,
  kPlatform,
  kPrebuiltPlatforms,
  kVersion,
  platformFacts,
  prebuiltAddonFile,
  requirePrebuiltAddon,
} from './platform.js'

/** A place where the addon may be, and what came of trying it. */
export interface AddonAttempt {
  /** What chose the place. */
  readonly source: 'ZIPCACHE_NATIVE_PATH' | 'local build' | 'platform package'
  /** A file, or a package that is not installed. */
  readonly place: string
  /** Why it was not taken; null: it was. */
  readonly failure: string | null
}

interface Candidate {
  readonly source: AddonAttempt['source']
  place(): string
  load(): unknown
}

let loaded: { addon: Addon; file: string } | undefined
let attempts: AddonAttempt[] = []

/** Where the addon may lie, in the order in which the places are tried. */
function candidates(): Candidate[] {
  const override = process.env.ZIPCACHE_NATIVE_PATH
  // Whoever names a file does not want another one instead.
  if (override) return [fileCandidate('ZIPCACHE_NATIVE_PATH', path.resolve(override))]
  return [
    fileCandidate('local build', path.join(kPackageRoot, 'build', 'Release', 'zipcache.node')),
    {
      source: 'platform package',
      place: prebuiltAddonFile,
      load: requirePrebuiltAddon,
    },
  ]
}

class NoSuchFile extends Error {
  override readonly message = 'no such file'
}

function fileCandidate(source: AddonAttempt['source'], file: string): Candidate {
  const load = () => {
    if (!existsSync(file)) throw new NoSuchFile()
    return require(file) as unknown
  }
  return { source, place: () => file, load }
}

/**
 * The native addon, loaded once an environment: the file that `ZIPCACHE_NATIVE_PATH` names, or the
 * one built in place, or that of the platform's package, as `@zipcache/linux-x64`.
 *
 * Throws `ERR_ZC_NATIVE` with every place that was tried, why it failed, what was found and needed,
 * and the command that mends it.
 */
export function loadAddon(): Addon {
  if (loaded) return loaded.addon
  const failures: AddonAttempt[] = []
  let cause: unknown
  for (const { source, place, load } of candidates()) {
    let file = `@zipcache/${kPlatform}`
    try {
      file = place()
      const addon = load() as Addon
      checkVersion(addon)
      addon.setErrorClass(ZipCacheError)
      loaded = { addon, file }
      attempts = [...failures, { source, place: file, failure: null }]
      return addon
    } catch (error) {
      // The last one that was there says most.
      if (!(error instanceof NoSuchFile || isNotInstalled(error))) cause = error
      failures.push({ source, place: file, failure: failureOf(error) })
    }
  }
  attempts = failures
  throw new ZipCacheError('ERR_ZC_NATIVE', describeFailure(failures), { cause })
}

/** The file of the loaded addon. Throws as `loadAddon`. */
export function addonFile(): string {
  loadAddon()
  return (loaded as { file: string }).file
}

/** What `loadAddon` tried last. */
export function addonAttempts(): readonly AddonAttempt[] {
  return attempts
}

function checkVersion(addon: Addon): void {
  if (addon.version === kVersion) return
  throw new Error(`is of version ${addon.version ?? 'unknown'}, expected ${kVersion}`)
}

function failureOf(error: unknown): string {
  if (isNotInstalled(error)) return 'is not installed'
  return reasonOf(error)
}

function describeFailure(failures: readonly AddonAttempt[]): string {
  const { name, libc, node } = platformFacts()
  const tried = failures.map(({ source, place, failure }) => `  ${source}: ${place}: ${failure}`)
  const found = [name, libc, `Node ${node}`].filter((fact) => fact !== null).join(', ')
  const platforms = kPrebuiltPlatforms.join(', ')
  return [
    'the native addon could not be loaded:',
    ...tried,
    `Found: ${found}. Required: version ${kVersion} of the addon; prebuilt ones are for ` +
      `${platforms} with glibc ${kMinimumGlibc} or newer.`,
    mend(failures, name, libc),
  ].join('\n')
}

/** The command that helps. */
function mend(failures: readonly AddonAttempt[], name: string, libc: string | null): string {
  const text = failures.map(({ failure }) => failure).join('\n')
  if (/ERR_DLOPEN_DISABLED|addons? is disabled|--no-addons/.test(text)) {
    return 'Start Node without --no-addons.'
  }
  const build = isClone() ? '`npm run build`' : '`npx zipcache build`'
  if (failures[0]?.source === 'ZIPCACHE_NATIVE_PATH') {
    return `Correct or unset ZIPCACHE_NATIVE_PATH; ${build} builds the addon in place.`
  }
  if (isClone()) return `Build it with ${build}.`
  const compiler = '(needs CMake and a C++20 compiler)'
  const isOld = /version `?(GLIBC|GLIBCXX|CXXABI)_/.test(text)
  if (!kPrebuiltPlatforms.includes(name) || libc === 'musl' || isOld) {
    return `Build it for this system with ${build} ${compiler}.`
  }
  return (
    `Install it with \`npm install @zipcache/${name}@${kVersion}\`: npm leaves optional dependencies ` +
    `out with --omit=optional, or after a lock file of another platform. ${build} builds it ${compiler}.`
  )
}
