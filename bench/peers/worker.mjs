// The side of a cell's process that answers the benchmark: one request at a time over Node's IPC.
import { readFileSync } from 'node:fs'

/**
 * Serves requests `{ method, args }` with `handlers[method](args)`, and ends with its parent.
 * @param {Record<string, (args: any) => Promise<unknown>>} handlers
 */
export function serve(handlers) {
  process.on('message', async ({ method, args }) => {
    try {
      process.send({ result: await handlers[method](args) })
    } catch (error) {
      process.send({ error: error.message })
    }
  })
  process.on('disconnect', () => process.exit())
}

/**
 * Runs `body` and says how long it took and how much of the processor it did not get meanwhile.
 * @param {number} cpu the processor that this process is pinned to
 * @returns {Promise<{ result: any, ms: number, ownMs: number, stealMs: number, othersMs: number }>}
 *   of `ms`, this process computed `ownMs`; the hypervisor took `stealMs` and other processes
 *   `othersMs`, in steps of 10 ms
 */
export async function measured(cpu, body) {
  const before = processorTicks(cpu)
  const ownBefore = process.cpuUsage()
  const start = performance.now()
  const result = await body()
  const ms = performance.now() - start
  const own = process.cpuUsage(ownBefore)
  const after = processorTicks(cpu)
  const stealMs = kTickMs * (after.steal - before.steal)
  const busyMs = kTickMs * (after.busy - before.busy)
  const ownMs = (own.user + own.system) / 1000
  return { result, ms, ownMs, stealMs, othersMs: Math.max(0, busyMs - ownMs) }
}

/** USER_HZ is 100 on every Linux that Node runs on. */
const kTickMs = 10

/** Source: proc(5), /proc/stat. */
function processorTicks(cpu) {
  const line = readFileSync('/proc/stat', 'utf8')
    .split('\n')
    .find((text) => text.startsWith(`cpu${cpu} `))
  const [user, nice, system, , , irq, softirq, steal] = line.split(' ').slice(1).map(Number)
  return { busy: user + nice + system + irq + softirq, steal }
}
