import { existsSync } from 'node:fs'
import path from 'node:path'
import { ZipCacheError } from '../errors.js'
import type { Addon } from './addon.js'

let addon: Addon | undefined
let addonFolder = ''

/** Where the addon may lie, in the order in which the places are tried. */
function candidates(): string[] {
  const override = process.env.ZIPCACHE_NATIVE_PATH
  if (override) return [override]
  // Both lib/native (tests) and dist/native (the package) are two folders below the root.
  const root = path.resolve(__dirname, '..', '..')
  return [path.join(root, 'build', 'Release', 'zipcache.node')]
}

/**
 * The native addon, loaded once an environment. `ZIPCACHE_NATIVE_PATH` names another file than the
 * one built in place.
 *
 * Throws `ERR_ZC_NATIVE` with every place that was tried, why it failed and what mends it.
 */
export function loadAddon(): Addon {
  if (addon) return addon
  const failures: string[] = []
  let cause: unknown
  for (const file of candidates()) {
    if (!existsSync(file)) {
      failures.push(`${file}: no such file`)
      continue
    }
    try {
      const loaded = require(file) as Addon
      loaded.setErrorClass(ZipCacheError)
      addon = loaded
      addonFolder = path.dirname(file)
      return loaded
    } catch (error) {
      cause = error
      failures.push(`${file}: ${error instanceof Error ? error.message : String(error)}`)
    }
  }
  throw new ZipCacheError(
    'ERR_ZC_NATIVE',
    `the native addon could not be loaded:\n  ${failures.join('\n  ')}\nBuild it with \`npm run build\`.`,
    { cause },
  )
}

/**
 * Where the libraries of the devices besides the CPU lie, `zipcache-cuda.so` for `cuda`: beside the
 * addon, or in the folder that `ZIPCACHE_PLUGIN_PATH` names.
 */
export function pluginFolder(): string {
  loadAddon()
  return process.env.ZIPCACHE_PLUGIN_PATH || addonFolder
}
