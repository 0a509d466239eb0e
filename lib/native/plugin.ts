import { existsSync } from 'node:fs'
import path from 'node:path'
import { ZipCacheError } from '../errors.js'
import type { ListedDevice } from './addon.js'
import { withAdvice } from './driver-advice.js'
import { addonFile, loadAddon } from './load.js'
import {
  isClone,
  isNotInstalled,
  kPackageRoot,
  kPlatform,
  kPrebuiltCudaPlatforms,
  kVersion,
  prebuiltCudaFile,
} from './platform.js'
import { tryPlugin } from './trial.js'

/** Devices besides the CPU, each kind in a library of its own, `zipcache-cuda.so`. */
export type PluginKind = 'cuda' | 'cuda-emu'

/** The kind that a device's name begins with: `cuda` of `cuda:1`; null for one of the addon itself. */
export function pluginKind(device: string): PluginKind | null {
  const [kind] = device.split(':')
  return kind === 'cuda' || kind === 'cuda-emu' ? kind : null
}

/**
 * The folder of a kind's library: the one that `ZIPCACHE_PLUGIN_PATH` names, or where the addon lies
 * or was built in place, or the platform's package; null where there is none.
 */
export function pluginFolder(kind: PluginKind): string | null {
  const override = process.env.ZIPCACHE_PLUGIN_PATH
  const built = path.join(kPackageRoot, 'build', 'Release')
  for (const folder of override ? [path.resolve(override)] : [path.dirname(addonFile()), built]) {
    if (existsSync(path.join(folder, `zipcache-${kind}.so`))) return folder
  }
  if (kind !== 'cuda') return null
  if (override) return path.resolve(override) // for the loader to say that there is nothing
  if (!kPrebuiltCudaPlatforms.includes(kPlatform)) return null
  try {
    return path.dirname(prebuiltCudaFile())
  } catch (error) {
    if (isNotInstalled(error)) return null
    throw error
  }
}

/**
 * The devices of a kind, each with the reason when it cannot be used; one without a number when
 * there is none. `cuda` is tried in a process of its own before; `fresh`: whatever is remembered.
 */
export async function listPlugin(kind: PluginKind, fresh = false): Promise<ListedDevice[]> {
  const folder = pluginFolder(kind)
  if (folder === null) return [missing(kind, notInstalled(kind))]
  if (kind === 'cuda') {
    const { devices, failure } = await tryPlugin({ addon: addonFile(), folder, kind, fresh })
    if (failure !== null) return [missing(kind, withAdvice(failure))]
    if (devices !== null) {
      return devices.map((one) => (one.reason ? { ...one, reason: withAdvice(one.reason) } : one))
    }
  }
  return loadAddon().listDevices(kind, folder)
}

/**
 * Where the library lies of a device that may be opened; '' for the CPU. Rejects with
 * `ERR_ZC_DEVICE` when its kind is not installed, or did not pass its trial.
 */
export async function requirePlugin(device: string): Promise<string> {
  // What is no name is refused by the addon.
  const kind = /^[a-z-]+(:\d{1,9})?$/.test(device) ? pluginKind(device) : null
  if (kind === null) return ''
  const folder = pluginFolder(kind)
  if (folder === null) throw unusable(notInstalled(kind))
  if (kind === 'cuda') {
    const { devices, failure } = await tryPlugin({ addon: addonFile(), folder, kind })
    if (failure !== null) throw unusable(withAdvice(failure))
    const name = device.includes(':') ? device : `${device}:0`
    const own = devices?.find((one) => one.name === name || one.name === kind)
    if (own?.reason) throw unusable(withAdvice(own.reason))
  }
  return folder
}

function missing(name: string, reason: string): ListedDevice {
  const none = { memoryBytes: 0, nMultiprocessors: 0, driverVersion: 0, runtimeVersion: 0 }
  return { name, reason, isa: '', model: '', ...none }
}

function unusable(reason: string): ZipCacheError {
  return new ZipCacheError('ERR_ZC_DEVICE', reason, { argument: 'device' })
}

function notInstalled(kind: PluginKind): string {
  const command = isClone()
    ? `build it with \`npm run build:${kind === 'cuda' ? 'cuda' : 'native'}\``
    : kPrebuiltCudaPlatforms.includes(kPlatform)
      ? `install it with \`npm install @zipcache/${kPlatform}-cuda@${kVersion}\``
      : `there is none for ${kPlatform}`
  return `device: the library of '${kind}' is not installed: ${command}`
}
