/**
 * What a device of the CPU takes in a control group that is granted less than the machine has. The
 * groups are files made up in a mount namespace of a child's own.
 */
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import path from 'node:path'

const PROGRAM = path.join(__dirname, 'programs', 'limits.cjs')
const UNSHARE = ['--map-root-user', '--mount']
const GiB = 2 ** 30

let folder: string
beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'zipcache-limits-'))
})
afterEach(() => rmSync(folder, { recursive: true }))

/** Where the process's own group lies in the hierarchy of a controller, as far as it has one. */
function ownGroup(controller: string): string {
  const lines = readFileSync('/proc/self/cgroup', 'utf8').split('\n')
  const own = lines.map((line) => line.split(':')).find(([, names]) => names === controller)
  return own?.[2] ?? '/'
}

/** Opens a device where /sys/fs/cgroup holds these files alone. */
function openWith(files: Record<string, string>): { threads: number; memory: number } {
  for (const [name, text] of Object.entries(files)) {
    const file = path.join(folder, name)
    mkdirSync(path.dirname(file), { recursive: true })
    writeFileSync(file, `${text}\n`)
  }
  const command = 'mount --bind "$0" /sys/fs/cgroup && exec "$@"'
  const args = [...UNSHARE, 'sh', '-c', command, folder, process.execPath, PROGRAM]
  const { ZIPCACHE_THREADS: _, ...env } = process.env
  const { status, stdout, stderr } = spawnSync('unshare', args, { encoding: 'utf8', env })
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
  return JSON.parse(stdout)
}

const canUnshare = spawnSync('unshare', [...UNSHARE, 'true']).status === 0
const groups = canUnshare ? describe : describe.skip
groups(`control groups${canUnshare ? '' : ' (skipped: no mount namespace to be had)'}`, () => {
  const all = availableParallelism()

  test('of none, the machine is what there is', () => {
    const { threads, memory } = openWith({})
    expect(threads).toBe(all)
    expect(memory).toBeGreaterThan(GiB)
  })

  test('of version 2', () => {
    const granted = openWith({ 'cpu.max': '100000 100000', 'memory.max': String(GiB) })
    expect(granted).toEqual({ threads: 1, memory: GiB })
  })

  test('of version 2, without limits', () => {
    const { memory } = openWith({})
    const granted = openWith({ 'cpu.max': 'max 100000', 'memory.max': 'max' })
    expect(granted).toEqual({ threads: all, memory })
  })

  test('time is rounded up', () => {
    expect(openWith({ 'cpu.max': '100001 100000' }).threads).toBe(Math.min(2, all))
    expect(openWith({ 'cpu.max': '5000 100000' }).threads).toBe(1)
  })

  test('of version 1', () => {
    const granted = openWith({
      'cpu/cpu.cfs_quota_us': '50000',
      'cpu/cpu.cfs_period_us': '100000',
      'memory/memory.limit_in_bytes': String(GiB),
    })
    expect(granted).toEqual({ threads: 1, memory: GiB })
  })

  test('of version 1, without limits', () => {
    const { memory } = openWith({})
    const granted = openWith({
      'cpu/cpu.cfs_quota_us': '-1',
      'cpu/cpu.cfs_period_us': '100000',
      'memory/memory.limit_in_bytes': '9223372036854771712',
    })
    expect(granted).toEqual({ threads: all, memory })
  })

  test('the least of the own group and those around it', () => {
    const own = path.join('memory', ownGroup('memory'))
    const file = 'memory.limit_in_bytes'
    const around = { [path.join('memory', file)]: String(2 * GiB) }
    expect(openWith({ ...around, [path.join(own, file)]: String(GiB) }).memory).toBe(GiB)
    const wider = ownGroup('memory') === '/' ? 2 : 3
    expect(openWith({ ...around, [path.join(own, file)]: String(wider * GiB) }).memory).toBe(
      2 * GiB,
    )
  })
})
