import { spawn } from 'node:child_process'
import { argumentError, reasonOf } from '../errors.js'
import type { ListedDevice } from './addon.js'
import { recall, remember, type TrialSubject, trialKey, type Verdict } from './trial-memory.js'

/** Loading the driver, and a kernel that the driver compiles, may take many seconds. */
const kTrialSeconds = 60
/** Of what a process wrote before it died. */
const kMaxNoise = 2000

/** Lists the devices and has each compute something. Text, so that it needs no file in a bundle. */
const kProgram = `
const [file, folder, kind] = process.argv.slice(-3)
const addon = require(file)
addon.setErrorClass(class extends Error {
  constructor(code, message) { super(message) }
})
async function compute(name) {
  await addon.prepareDevice(name, folder)
  const device = addon.openDevice(name, 1, folder)
  const [gate, up, out] = [0, 1, 2].map(() => addon.createTensor(device, 0, [1, 4]))
  const values = Float32Array.of(-1, 0, 1, 2)
  addon.writeTensor(gate, values, 0)
  addon.writeTensor(up, values, 0)
  addon.siluGate(gate, up, out)
  const computed = new Float32Array(await addon.readTensor(out))
  addon.disposeDevice(device)
  for (const [i, x] of values.entries()) {
    const expected = (x * x) / (1 + Math.exp(-x))
    if (!(Math.abs(computed[i] - expected) < 1e-5))
      throw new Error('device: computes ' + computed[i] + ', expected ' + expected)
  }
}
async function main() {
  const devices = await addon.listDevices(kind, folder)
  for (const device of devices) {
    if (device.reason) continue
    await compute(device.name).catch((error) => { device.reason = error.message })
  }
  process.stdout.write('\\n' + JSON.stringify(devices), () => process.exit())
}
main()
`

const running = new Map<string, Promise<Verdict>>()
const passed = new Map<string, Verdict>()

/**
 * Tries a plugin in a process of its own: a driver that crashes or hangs takes that one down. What
 * passed is remembered, in this process and in a file, until driver, library or environment change;
 * a failure is tried again each time, since its cause may be gone. `ZIPCACHE_CUDA_TRIAL` is the
 * seconds that it may take, 60 by default; 0 goes without.
 */
export async function tryPlugin(subject: TrialSubject): Promise<Verdict> {
  const seconds = trialSeconds()
  if (seconds === 0 || isSingleExecutable()) return { devices: null, failure: null }
  const key = trialKey(subject)
  if (!subject.fresh) {
    const known = passed.get(key) ?? recall(key)
    if (known) return known
  }
  const already = running.get(key)
  if (already) return already
  const trial = runTrial(subject, seconds)
  running.set(key, trial)
  try {
    const verdict = await trial
    if (verdict.devices?.some(({ reason }) => reason === '')) {
      passed.set(key, verdict)
      remember(key, verdict)
    }
    return verdict
  } finally {
    running.delete(key)
  }
}

async function runTrial({ addon, folder, kind }: TrialSubject, seconds: number): Promise<Verdict> {
  return new Promise((resolve) => {
    const fail = (what: string) => {
      const failure = `device: '${kind}' was tried in a process of its own, which ${what}`
      resolve({ devices: null, failure })
    }
    // Not this process's options: a debugger's port, a module to load first.
    const env = { ...process.env, NODE_OPTIONS: '', ELECTRON_RUN_AS_NODE: '1' }
    const options = { env, timeout: seconds * 1000, killSignal: 'SIGKILL' as const }
    let child: ReturnType<typeof spawn>
    try {
      child = spawn(process.execPath, ['-e', kProgram, '--', addon, folder, kind], {
        ...options,
        stdio: ['ignore', 'pipe', 'pipe'],
      })
    } catch (error) {
      // Node's permission model forbids processes, for one.
      fail(`could not be started (${reasonOf(error)}); ZIPCACHE_CUDA_TRIAL=0 goes without`)
      return
    }
    const text = { out: '', err: '' }
    child.stdout?.setEncoding('utf8').on('data', (chunk: string) => {
      text.out += chunk
    })
    child.stderr?.setEncoding('utf8').on('data', (chunk: string) => {
      text.err = (text.err + chunk).slice(-kMaxNoise)
    })
    child.on('error', (error) => fail(`could not be started: ${error.message}`))
    child.on('close', (code, signal) => {
      if (code === 0) {
        const devices = parseDevices(text.out)
        if (devices) resolve({ devices, failure: null })
        else fail(`ended without an answer${lastWords(text.err)}`)
      } else if (child.killed) {
        fail(`did not answer within ${seconds} s${lastWords(text.err)}`)
      } else {
        fail(`ended by ${signal ?? `exit code ${code}`}${lastWords(text.err)}`)
      }
    })
  })
}

/** The last line of the child's output; libraries may have written others. */
function parseDevices(text: string): ListedDevice[] | null {
  try {
    const devices: unknown = JSON.parse(text.slice(text.lastIndexOf('\n') + 1))
    return Array.isArray(devices) ? (devices as ListedDevice[]) : null
  } catch {
    return null
  }
}

function trialSeconds(): number {
  const text = process.env.ZIPCACHE_CUDA_TRIAL
  const seconds = text ? Number(text) : kTrialSeconds
  if (Number.isFinite(seconds) && seconds >= 0 && seconds <= 3600) return seconds
  throw argumentError('ZIPCACHE_CUDA_TRIAL', `is '${text}', expected seconds from 0 to 3600`)
}

function lastWords(text: string): string {
  const lines = text.split('\n').map((line) => line.trim())
  const said = lines.filter((line) => line !== '' && !/^(at |Node\.js v)/.test(line))
  const last = said.findLast((line) => /error/i.test(line)) ?? said.at(-1)
  return last === undefined ? '' : `: ${last}`
}

/** Where the program that runs is no Node, which could run another script. */
function isSingleExecutable(): boolean {
  try {
    return (require('node:sea') as { isSea(): boolean }).isSea()
  } catch {
    return false // before Node 20.12 there is none
  }
}
