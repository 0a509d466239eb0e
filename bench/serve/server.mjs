// `zipcache serve` as a process of its own, and what its /metrics say while it is measured.
import { spawn } from 'node:child_process'
import { cpus } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { ScriptError } from '../../scripts/progress.mjs'
import { root } from '../../scripts/setup.mjs'

const kSampleMs = 250

/**
 * Starts a server and waits until it is ready.
 * @param {string[]} args of `zipcache serve`
 */
export async function startServer(args) {
  const main = path.join(root, 'dist', 'cli', 'main.js')
  const own = ['--port', '0', '--log-level', 'silent', '--no-page']
  const child = spawn(process.execPath, [main, 'serve', ...own, ...args], {
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  const kill = () => child.kill('SIGKILL')
  process.once('exit', kill)
  let stderr = ''
  child.stderr.setEncoding('utf8').on('data', (text) => {
    stderr += text
  })
  const ended = new Promise((resolve) => child.on('close', resolve))
  const stop = async () => {
    child.kill('SIGTERM')
    await ended
    process.off('exit', kill)
  }
  for (;;) {
    const url = /listening on (\S+)/.exec(stderr)?.[1]
    if (child.exitCode !== null) throw new ScriptError(`zipcache serve ended:\n${stderr}`)
    if (url && (await fetch(`${url}/health/ready`)).status === 200) return { url, stop }
    await sleep(50)
  }
}

/** Values of /metrics by their names; those with labels are left out. */
export async function readMetrics(url) {
  const page = await (await fetch(`${url}/metrics`)).text()
  const lines = page.matchAll(/^(\w+) ([\d.e+-]+)$/gm)
  return Object.fromEntries([...lines].map(([, name, value]) => [name, Number(value)]))
}

/** Processor time of the whole machine so far. */
function machineSeconds() {
  return (
    cpus().reduce((sum, { times }) => sum + times.user + times.nice + times.sys + times.irq, 0) /
    1000
  )
}

/** Processor time of this process, which makes the load. */
function ownSeconds() {
  const { user, system } = process.cpuUsage()
  return (user + system) / 1e6
}

/**
 * Runs `work`, and tells what the server took meanwhile: memory at its peak, processor time; and how
 * much of the machine was taken by processes that are not ours.
 */
export async function watchServer(url, work) {
  const peak = { residentBytes: 0, kvBytes: 0, running: 0 }
  const sample = async () => {
    const metrics = await readMetrics(url)
    peak.residentBytes = Math.max(peak.residentBytes, metrics.process_resident_memory_bytes)
    peak.kvBytes = Math.max(peak.kvBytes, metrics.zipcache_kv_memory_used_bytes)
    peak.running = Math.max(peak.running, metrics.zipcache_requests_running)
    return metrics
  }
  const before = await sample()
  const startedAt = performance.now()
  const all = { machine: machineSeconds(), own: ownSeconds() }
  let isDone = false
  const sampling = (async () => {
    while (!isDone) {
      await sleep(kSampleMs)
      await sample()
    }
  })()
  try {
    const result = await work()
    const seconds = (performance.now() - startedAt) / 1000
    const machine = machineSeconds() - all.machine
    const own = ownSeconds() - all.own
    const after = await sample()
    const cpuSeconds = after.process_cpu_seconds_total - before.process_cpu_seconds_total
    const othersCores = Math.max(0, machine - own - cpuSeconds) / seconds
    return { ...result, ...peak, busyCores: cpuSeconds / seconds, othersCores }
  } finally {
    isDone = true
    await sampling
  }
}
