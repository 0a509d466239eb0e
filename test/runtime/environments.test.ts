/**
 * The compiled package in processes and threads of its own: how they end, and what they share. A
 * crash here is the end of a child, not of the tests.
 */
import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'

const PROGRAMS = path.join(__dirname, 'programs')
/** Far more than any of these programs takes, far less than the work that they leave behind. */
const PROMPT_MS = 20_000

interface Ending {
  code: number | null
  /** What killed it: a crash, or the time limit. */
  signal: NodeJS.Signals | null
  stdout: string
  stderr: string
}

function run(program: string, args: string[] = [], env: NodeJS.ProcessEnv = {}): Promise<Ending> {
  return new Promise((resolve, reject) => {
    const file = path.join(PROGRAMS, program)
    const child = spawn(process.execPath, ['--expose-gc', file, ...args], {
      env: { ...process.env, ...env },
      timeout: PROMPT_MS,
      killSignal: 'SIGKILL',
    })
    const output = { stdout: '', stderr: '' }
    child.stdout.on('data', (data) => {
      output.stdout += data
    })
    child.stderr.on('data', (data) => {
      output.stderr += data
    })
    child.once('error', reject)
    child.once('close', (code, signal) => resolve({ code, signal, ...output }))
  })
}

/** Runs a program that must end well and returns the JSON that it prints. */
async function resultOf(program: string, args: string[] = []): Promise<unknown> {
  const ending = await run(program, args)
  expect(ending).toMatchObject({ code: 0, signal: null, stderr: '' })
  return JSON.parse(ending.stdout)
}

beforeAll(() => {
  const dist = path.join(__dirname, '..', '..', 'dist', 'index.js')
  if (!existsSync(dist)) throw new Error('dist/ is missing: run `npm run build`')
})

describe('a process', () => {
  test.each([
    ['idle', 'idle\n'],
    ['disposed', 'disposed\n'],
    ['sync pending', 'synced\n'],
    ['read pending', 'read 7\n'],
    ['nothing awaited', ''],
    ['exit', ''],
    ['exit while awaited', ''],
    ['collected device', 'synced\n'],
    ['collected device, read pending', 'read 7\n'],
    ['many devices', 'opened\n'],
  ])('ends by itself with code 0: %s', async (ending, stdout) => {
    expect(await run('ending.cjs', [ending])).toEqual({ code: 0, signal: null, stdout, stderr: '' })
  })

  test('keeps its exit code', async () => {
    const ending = await run('ending.cjs', ['exit code'])
    expect(ending).toEqual({ code: 7, signal: null, stdout: '', stderr: '' })
  })

  test('keeps the message of an uncaught exception', async () => {
    const ending = await run('ending.cjs', ['throw'])
    expect(ending).toMatchObject({ code: 1, signal: null, stdout: '' })
    expect(ending.stderr).toContain('Error: thrown by the program')
  })

  test('hears of a rejection that nobody handles', async () => {
    const ending = await run('ending.cjs', ['unhandled fault'])
    expect(ending).toMatchObject({ code: 1, signal: null })
    expect(ending.stderr).toContain('ERR_ZC_HANDLE')
  })
})

describe('worker threads', () => {
  const computed = [2600, 0]

  test('two at once, beside the main thread', async () => {
    expect(await resultOf('workers.cjs', ['together'])).toEqual([computed, computed, 26])
  })

  test('two, one after another', async () => {
    expect(await resultOf('workers.cjs', ['successive'])).toEqual([computed, computed])
  })

  test('one, the main thread having none of it', async () => {
    expect(await resultOf('workers.cjs', ['alone'])).toEqual(computed)
  })

  test('one that ends with work in flight', async () => {
    expect(await resultOf('workers.cjs', ['leave'])).toEqual([['left', 0], 26])
  })

  test('one that is terminated with work in flight', async () => {
    expect(await resultOf('workers.cjs', ['terminate'])).toEqual([1, 26])
  })

  test('five that are terminated', async () => {
    const outcomes = await resultOf('workers.cjs', ['terminate often'])
    expect(outcomes).toEqual(Array(5).fill([1, 26]))
  })

  test('twenty that are terminated in a call', async () => {
    const outcomes = await resultOf('workers.cjs', ['terminate in calls'])
    expect(outcomes).toEqual(Array(20).fill([1, 26]))
  })

  test('one that ends itself while promises are being settled', async () => {
    expect(await resultOf('workers.cjs', ['leave between answers'])).toEqual([3, 26])
  })

  test('the process ends under one that works', async () => {
    expect(await resultOf('workers.cjs', ['exit'])).toBe('leaving')
  })

  test('one generates the tokens that the main thread does', async () => {
    const [[ids, code], onMain] = (await resultOf('workers.cjs', ['generate'])) as [
      [number[], number],
      number[],
    ]
    expect(code).toBe(0)
    expect(ids).toHaveLength(8)
    expect(ids).toEqual(onMain)
  })
})

describe('loading', () => {
  test('import and require, of either entry point, share everything', async () => {
    expect(await resultOf('entries.mjs')).toEqual({
      sameErrorClass: true,
      sameDevice: true,
      sameEvaluate: true,
      sameLoadModel: true,
      sameCodes: true,
      thrownIsInstance: true,
      nNativeModules: 1,
      value: 9,
    })
  })

  describe('an addon that cannot be loaded', () => {
    let folder: string
    beforeAll(() => {
      folder = mkdtempSync(path.join(tmpdir(), 'zipcache-native-'))
      writeFileSync(path.join(folder, 'garbage.node'), 'no shared object')
    })
    afterAll(() => rmSync(folder, { recursive: true }))

    test.each([
      ['missing.node', /missing\.node: no such file/, false],
      ['garbage.node', /garbage\.node: .*(invalid ELF|file too short|not a mach-o)/i, true],
    ])('%s: says what was tried and what mends it', async (name, message, hasCause) => {
      const env = { ZIPCACHE_NATIVE_PATH: path.join(folder, name) }
      const { stdout, ...ending } = await run('failure.cjs', [], env)
      expect(ending).toEqual({ code: 0, signal: null, stderr: '' })
      const failure = JSON.parse(stdout)
      expect(failure).toMatchObject({ name: 'ZipCacheError', code: 'ERR_ZC_NATIVE', hasCause })
      expect(failure.message).toMatch(message)
      expect(failure.message).toContain(folder)
      expect(failure.message).toContain('npm run build')
    })
  })
})
