/** What trials of a plugin found, in files: one for each machine, driver, library and environment. */
import { createHash } from 'node:crypto'
import { mkdirSync, readdirSync, renameSync, writeFileSync } from 'node:fs'
import { homedir, hostname } from 'node:os'
import path from 'node:path'
import type { ListedDevice } from './addon.js'
import { findDriver, identityOf, readOptional } from './driver.js'
import { kVersion } from './platform.js'

/** What a trial found. */
export interface Verdict {
  /** Devices of the kind, those that failed with the reason; null: there was no trial. */
  readonly devices: ListedDevice[] | null
  /** Why the whole kind cannot be used; null: it can. */
  readonly failure: string | null
}

/** What is tried. */
export interface TrialSubject {
  /** File of the addon. */
  readonly addon: string
  /** Folder of the plugin's library. */
  readonly folder: string
  readonly kind: string
  /** Whether to try again what was remembered. */
  readonly fresh?: boolean
}

/** What decides which driver is loaded, and which GPUs it shows. */
const kVariables = [
  'LD_LIBRARY_PATH',
  'LD_PRELOAD',
  'CUDA_VISIBLE_DEVICES',
  'NVIDIA_VISIBLE_DEVICES',
]

/** Everything that a verdict depends on, as one hash. */
export function trialKey({ addon, folder, kind }: TrialSubject): string {
  const library = path.join(folder, `zipcache-${kind}.so`)
  const { kernel, libraries } = findDriver()
  const facts = {
    version: kVersion,
    files: [addon, library, ...libraries].map(identityOf),
    driver: kernel,
    devices: listed('/dev').filter((name) => /^(nvidia\d|dxg$)/.test(name)),
    environment: kVariables.map((name) => process.env[name] ?? null),
    host: hostname(),
  }
  return createHash('sha256').update(JSON.stringify(facts)).digest('hex').slice(0, 32)
}

/** A verdict of before, if there is one. */
export function recall(key: string): Verdict | null {
  const text = readOptional(fileOf(key))
  if (text === null) return null
  try {
    const { devices } = JSON.parse(text) as Verdict
    return isListOfDevices(devices) ? { devices, failure: null } : null
  } catch {
    return null // another program's, or half of one
  }
}

/** Keeps a verdict, where a folder can be written; else the next process tries again. */
export function remember(key: string, verdict: Verdict): void {
  const file = fileOf(key)
  const own = `${file}.${process.pid}`
  try {
    mkdirSync(path.dirname(file), { recursive: true })
    writeFileSync(own, JSON.stringify(verdict))
    renameSync(own, file) // whole, or not at all
  } catch {
    // Nothing depends on it.
  }
}

function fileOf(key: string): string {
  const { ZIPCACHE_CACHE_DIR, XDG_CACHE_HOME } = process.env
  const folder = ZIPCACHE_CACHE_DIR || path.join(XDG_CACHE_HOME || homeCache(), 'zipcache')
  return path.join(folder, `cuda-trial-${key}.json`)
}

function homeCache(): string {
  return path.join(homedir(), '.cache')
}

function isListOfDevices(value: unknown): boolean {
  if (!Array.isArray(value) || value.length === 0) return false
  return value.every((one: unknown) => {
    const { name, reason } = (one ?? {}) as { name?: unknown; reason?: unknown }
    return typeof name === 'string' && typeof reason === 'string'
  })
}

function listed(folder: string): string[] {
  try {
    return readdirSync(folder).sort()
  } catch {
    return []
  }
}
