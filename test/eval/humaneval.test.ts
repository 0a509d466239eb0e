import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { evaluate } from '../../lib/eval/evaluate'
import type { HumanEvalSpec } from '../../lib/eval/humaneval'
import { localAsker } from '../../lib/eval/local-asker'
import { runPython } from '../../lib/eval/run-python'
import { textModel } from './text-model'

const limits = { timeoutMs: 20_000, memoryBytes: 2 ** 29 }

/** Where nothing can be run there is one test: that it says so. */
async function whyNot(): Promise<string | null> {
  return runPython('', limits).then(
    (end) => (end === 'passed' ? null : end),
    (error: Error) => error.message,
  )
}

let dir: string
let reason: string | null
beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'zipcache-humaneval-'))
  reason = await whyNot()
  if (reason !== null) console.warn(`HumanEval is not tested: ${reason}`)
})
afterAll(() => rmSync(dir, { recursive: true }))

const onlyIfRun = (name: string, body: () => Promise<void>) =>
  test(name, async () => {
    if (reason === null) await body()
    else expect(reason).toMatch(/cannot be run/)
  })

function spec(more: object = {}, lines?: object[]): HumanEvalSpec {
  const data = join(dir, 'HumanEval.jsonl')
  const problem = {
    prompt: 'def twice(x):\n    """ 2 x """\n',
    test: 'def check(f):\n    assert f(3) == 6\n',
    entry_point: 'twice',
  }
  const content = lines ?? [problem]
  writeFileSync(data, content.map((line) => `${JSON.stringify(line)}\n`).join(''))
  return { task: 'humaneval', data, allowCodeExecution: true, ...more }
}

const ask = async (answer: string, more: object = {}) => {
  const model = textModel({ answer: () => answer })
  const asker = await localAsker({ model, tasks: [spec(more)], questions: 1, seed: 1 })
  const { rows } = await evaluate({ askers: [asker], policies: ['fp16'] })
  return rows[0]
}

describe('programs', () => {
  onlyIfRun('pass, fail, or leave early', async () => {
    expect(await runPython('assert 1 + 1 == 2', limits)).toBe('passed')
    expect(await runPython('assert 1 + 1 == 3', limits)).toBe('failed')
    expect(await runPython('import sys; sys.exit(0)', limits)).toBe('failed')
    expect(await runPython('this is no Python', limits)).toBe('failed')
  })

  onlyIfRun('that do not end are ended, with what they have started', async () => {
    const program = 'import subprocess\nsubprocess.Popen(["sleep", "987"])\nwhile True: pass'
    const start = performance.now()
    expect(await runPython(program, { ...limits, timeoutMs: 1000 })).toBe('timeout')
    expect(performance.now() - start).toBeLessThan(10_000)
    const running = readdirSync('/proc').filter((pid) => /^\d+$/.test(pid))
    const sleeps = running.filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'utf8') === `sleep\x00987\x00`
      } catch {
        return false
      }
    })
    expect(sleeps).toEqual([])
  })

  onlyIfRun('that want too much memory, or too long a file, fail', async () => {
    expect(await runPython('x = bytearray(2**30)', limits)).toBe('failed')
    expect(await runPython('open("x", "wb").write(bytes(2**22))', limits)).toBe('failed')
    expect(await runPython('open("x", "wb").write(bytes(2**10))', limits)).toBe('passed')
  })

  onlyIfRun('see no variables of ours and leave no folder', async () => {
    process.env.ZC_TEST_SECRET = 'x'
    const folders = () =>
      readdirSync(tmpdir()).filter((name) => name.startsWith('zipcache-python-'))
    const before = folders()
    expect(await runPython('import os; assert "ZC_TEST_SECRET" not in os.environ', limits)).toBe(
      'passed',
    )
    expect(await runPython('import os; assert os.listdir(".") == []', limits)).toBe('passed')
    expect(folders()).toEqual(before)
    delete process.env.ZC_TEST_SECRET
  })

  onlyIfRun('are ended by an abort', async () => {
    const controller = new AbortController()
    const running = runPython('while True: pass', limits, controller.signal)
    setTimeout(() => controller.abort(new Error('enough')), 200)
    await expect(running).rejects.toThrow('enough')
  })
})

describe('humaneval', () => {
  onlyIfRun('a function that passes its tests is a hit', async () => {
    expect(await ask('    return 2 * x\n\nprint("never")')).toMatchObject({
      value: 100,
      questions: 1,
    })
    expect(await ask('    return x\n')).toMatchObject({ value: 0 })
  })

  onlyIfRun('one that does not end is a miss', async () => {
    const row = await ask('    while True: pass\n', { timeoutMs: 1500 })
    expect(row).toMatchObject({ value: 0, values: { timeout: { value: 1 } } })
  })

  test.each([
    ['allowCodeExecution', { allowCodeExecution: false }],
    ['timeoutMs', { timeoutMs: 0 }],
    ['memoryBytes', { memoryBytes: 1 }],
    ['maxTokens', { maxTokens: 0 }],
  ])('refuses %s: %j', async (argument, more) => {
    const tasks = [spec(more)]
    await expect(
      localAsker({ model: textModel({}), tasks, questions: 1, seed: 1 }),
    ).rejects.toMatchObject({ code: 'ERR_ZC_ARGUMENT', argument })
  })

  test('a damaged file is refused by its line', async () => {
    const tasks = [spec({}, [{ prompt: 'a', test: 'b', entry_point: 'import os' }])]
    await expect(
      localAsker({ model: textModel({}), tasks, questions: 1, seed: 1 }),
    ).rejects.toThrow(/HumanEval\.jsonl:1: field 'entry_point' is no Python name/)
  })
})
