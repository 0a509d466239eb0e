/**
 * No memory, wherever the addon asks for some: each allocation fails in turn, alone or with all after it. Whoever called is
 * told `ERR_ZC_OUT_OF_MEMORY`, nothing is lost, and the next call finds everything as it was.
 */
import { execFile, execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'

const PROGRAMS = path.join(__dirname, 'programs')
const folder = mkdtempSync(path.join(tmpdir(), 'zipcache-allocations-'))
/** Its name is what it knows itself by. */
const library = path.join(folder, 'fail-allocation.so')

beforeAll(() => {
  const source = path.join(PROGRAMS, 'fail_allocation.cc')
  const flags = ['-std=c++20', '-O1', '-shared', '-fPIC', source, '-o', library, '-ldl']
  execFileSync(process.env.CXX ?? 'c++', flags)
})
afterAll(() => rmSync(folder, { recursive: true }))

async function outcomes(task: string, mode: string) {
  const program = path.join(PROGRAMS, 'allocations.cjs')
  const env = { ...process.env, LD_PRELOAD: library }
  const { stdout } = await promisify(execFile)(process.execPath, [program, task, mode], { env })
  return JSON.parse(stdout) as { count: number; told: number; wrong: unknown[] }
}

// A preloaded library takes the place of a sanitizer's allocator, and macOS preloads otherwise.
const describeOnLinux = process.platform === 'linux' ? describe : describe.skip

describeOnLinux.each(['one', 'all after'])('%s', (mode) => {
  test.each([
    ['a device is opened', 'open', 10],
    ['one op', 'op', 20],
    ['a decode step whose attention is divided among threads', 'step', 50],
    ['a step that closes a window', 'window', 100],
    ['a step over rows', 'rows', 100],
    ['a prompt', 'prompt', 100],
    ['a model is loaded', 'load', 100],
  ])('%s', async (_, task, least) => {
    const { count, told, wrong } = await outcomes(task, mode)
    expect(wrong).toEqual([])
    expect(count).toBeGreaterThan(least)
    expect(told).toBeGreaterThan(0)
  })
})
