import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { BenchTensors } from '../../lib/bench/bench-tensors'
import { machineOf } from '../../lib/bench/machine'
import { nameOf, type OpCase } from '../../lib/bench/op-case'
import { kRandomModelConfig, withRandomModel } from '../../lib/bench/random-model'
import type { BenchReport } from '../../lib/bench/report'
import { type BenchOptions, OP_CASES, runBench } from '../../lib/bench/run-bench'
import { loadModel } from '../../lib/engine/load-model'
import { openCheckpoint } from '../../lib/model/checkpoint'
import { Device } from '../../lib/ops/index'

const root = join(__dirname, '..', '..')
const base: BenchOptions = {
  parts: ['ops'],
  threads: 2,
  models: [],
  contexts: [],
  policies: ['fp16', { name: 'zipcache', saliencyRatio: 0.6 }],
  root,
}
const fixture = {
  name: 'qwen2',
  dir: join(root, 'test', 'fixtures', 'hf', 'qwen2'),
  stretch: true,
}

/** The keys of everything in a document, one of the elements of each list. */
function schemaOf(value: unknown): unknown {
  if (Array.isArray(value)) return value.slice(0, 1).map(schemaOf)
  if (typeof value !== 'object' || value === null) return value === null ? 'null' : typeof value
  return Object.fromEntries(Object.entries(value).map(([key, own]) => [key, schemaOf(own)]))
}

const summary = Object.fromEntries(
  ['samples', 'min', 'p10', 'median', 'p90', 'p99', 'max'].map((name) => [name, 'number']),
)
const achieved = {
  gigabytesPerSecond: 'number',
  gigaflopsPerSecond: 'number',
  bound: 'string',
  share: 'number',
  bestShare: 'number',
}
const work = { bytes: 'number', flops: 'number', ms: summary, ...achieved }
const step = { model: 'string', context: 'number', policy: 'string', dtype: 'string', ...work }

describe('runBench', () => {
  let report: BenchReport
  beforeAll(async () => {
    report = await runBench({
      ...base,
      parts: ['ops', 'prefill', 'decode'],
      models: [fixture],
      contexts: [40, 150],
      tokens: 110,
      filter: /^rmsNorm 1x4096|^(prefill|decode) qwen2 (40 fp16|150)/,
    })
  })

  test('has the rows that were asked for', () => {
    expect(report.ops.map(nameOf)).toEqual(['rmsNorm 1x4096 f32'])
    const rows = (part: 'prefill' | 'decode') =>
      report[part].map(({ model, context, policy }) => `${model} ${context} ${policy}`)
    const expected = ['qwen2 40 fp16', 'qwen2 150 fp16', 'qwen2 150 zipcache saliencyRatio=0.6']
    expect([rows('prefill'), rows('decode')]).toEqual([expected, expected])
  })

  test('times that make sense', () => {
    for (const { ms, share } of [...report.ops, ...report.prefill, ...report.decode]) {
      expect(ms.min).toBeGreaterThan(0)
      const { min, p10, median, p90, p99, max } = ms
      expect([min, p10, median, p90, p99, max]).toEqual(
        [min, p10, median, p90, p99, max].toSorted((a, b) => a - b),
      )
      expect(share).toBeGreaterThan(0)
    }
    expect(report.ops[0]?.ms.samples).toBe(15)
  })

  test('tells the steps that close a window from the others', () => {
    const [, fp16, zipcache] = report.decode
    expect(fp16?.closing).toBeNull()
    // 4 tokens warm up; the one that closes is the 100th of 114.
    expect(zipcache?.closing).toMatchObject({ steps: 1 })
    expect(zipcache?.ms.samples).toBe(110)
    expect(zipcache?.histogram.counts.reduce((sum, n) => sum + n)).toBe(110)
    expect(zipcache?.cacheBytes).toBeLessThan(fp16?.cacheBytes as number)
  })

  test('a document of this schema', () => {
    expect(report.schema).toBe('zipcache-bench-1')
    const closing = { steps: 'number', medianMs: 'number', otherMs: 'number' }
    const { cpuFlags, lastLevelCacheBytes, commit, ...machine } = schemaOf(
      report.machine,
    ) as Record<string, unknown>
    expect([cpuFlags, lastLevelCacheBytes, commit]).toEqual([
      expect.anything(),
      expect.stringMatching(/^(number|null)$/),
      expect.stringMatching(/^(string|null)$/),
    ])
    expect(machine).toEqual({
      cpu: 'string',
      cores: 'number',
      memoryBytes: 'number',
      os: 'string',
      node: 'string',
      version: 'string',
    })
    expect(schemaOf({ ...report, machine: null, decode: report.decode.slice(-1) })).toEqual({
      schema: 'string',
      machine: 'null',
      settings: {
        device: 'string',
        generated: 'boolean',
        weights: 'string',
        isa: 'string',
        threads: 'number',
        dtype: 'string',
        full: 'boolean',
        filter: 'string',
        seed: 'number',
      },
      roofs: [{ name: 'string', threads: 'number', rate: 'number', ms: summary }],
      ops: [{ op: 'string', shape: 'string', dtype: 'string', ...work }],
      prefill: [step],
      decode: [
        {
          ...step,
          histogram: { edges: ['number'], counts: ['number'] },
          closing,
          cacheBytes: 'number',
          cacheRatio: 'number',
        },
      ],
      seconds: 'number',
    })
  })
})

test('progress goes from stroke to stroke to the end', async () => {
  const seen: number[] = []
  let total = 0
  const onProgress = (progress: { done: number; total: number }) => {
    seen.push(progress.done)
    total = progress.total
  }
  const steps = { models: [fixture], contexts: [20], tokens: 5, parts: ['decode'] as const }
  const { prefill, decode } = await runBench({ ...base, ...steps, onProgress })
  expect([prefill.length, decode.length]).toEqual([0, 2])
  expect(seen).toEqual([...seen].sort((a, b) => a - b))
  expect(seen.at(-1)).toBe(total)
  expect(total).toBe(4)
})

test('contexts that are decoded: windows with parameters of their own, of which more close', async () => {
  const steps = { models: [fixture], contexts: [350], tokens: 60, filter: /zipcache/ }
  const parts = ['prefill', 'decode'] as const
  const decoded = await runBench({ ...base, ...steps, parts, generated: true })
  const prompt = await runBench({ ...base, ...steps, parts: ['decode'] })
  expect(decoded.settings.generated).toBe(true)
  expect(decoded.prefill).toEqual([])
  expect(decoded.decode).toMatchObject([{ context: 350, policy: 'zipcache saliencyRatio=0.6' }])
  const [one, other] = [decoded, prompt].map(({ decode }) => decode[0]?.cacheBytes as number)
  expect(one).toBeGreaterThan(1.05 * (other as number))
  expect(one).toBeLessThan(2 * (other as number))
})

test('weights of 8 and of 4 bits: steps that read less', async () => {
  const steps = { models: [fixture], contexts: [20], tokens: 5, parts: ['decode'] as const }
  const formats = ['stored', 'int8', 'int4'] as const
  const reports = await Promise.all(
    formats.map((weights) => runBench({ ...base, ...steps, weights })),
  )
  expect(reports.map(({ settings }) => settings.weights)).toEqual(formats)
  const [a, b, c] = reports.map((report) => report.decode[0]?.bytes as number)
  // Biases, norms, scales and the cache stay.
  expect(b).toBeLessThan(0.6 * (a as number))
  expect(b).toBeGreaterThan(0.45 * (a as number))
  expect(c).toBeLessThan(0.4 * (a as number))
  expect(c).toBeGreaterThan(0.28 * (a as number))
})

test('a wrong result is an error and not a row', async () => {
  const wrong: OpCase = {
    ...{ op: 'rmsNorm', shape: '1', dtype: 'f32', group: 'wrong' },
    prepare: async (tensors) => {
      const real = OP_CASES.find(({ op }) => op === 'rmsNorm') as OpCase
      const prepared = await real.prepare(tensors)
      return { ...prepared, run: () => {} }
    },
  }
  await expect(runBench({ ...base, cases: [wrong] })).rejects.toMatchObject({
    code: 'ERR_ZC_INTERNAL',
    message: expect.stringMatching(/^rmsNorm .* is NaN, expected /),
  })
})

test.each([
  ['a filter that finds nothing', { filter: /linear m=3/ }, 'ERR_ZC_ARGUMENT', 'filter'],
  ['no part', { parts: [] }, 'ERR_ZC_ARGUMENT', 'filter'],
  [
    'prefill into contexts that are decoded',
    { parts: ['prefill'] as const, generated: true },
    'ERR_ZC_ARGUMENT',
    'generated',
  ],
  ['half a token of context', { contexts: [0.5] }, 'ERR_ZC_ARGUMENT', 'context'],
  ['no token to decode', { tokens: 0 }, 'ERR_ZC_ARGUMENT', 'tokens'],
  ['a device that is not there', { device: 'abacus' }, 'ERR_ZC_DEVICE', undefined],
])('refuses %s', async (_, options, code, argument) => {
  const expected = argument === undefined ? { code } : { code, argument }
  await expect(runBench({ ...base, ...options })).rejects.toMatchObject(expected)
})

test('refuses a context beyond the positions before anything is measured', async () => {
  const onProgress = jest.fn()
  const own = { models: [{ ...fixture, stretch: false }], contexts: [100_000], onProgress }
  const running = runBench({ ...base, ...own, parts: ['ops', 'decode'] })
  await expect(running).rejects.toMatchObject({
    code: 'ERR_ZC_CONTEXT_LENGTH',
    argument: 'context',
  })
  expect(onProgress).not.toHaveBeenCalled()
})

test('ends when aborted', async () => {
  const abort = new AbortController()
  const onProgress = () => abort.abort(new Error('enough'))
  const running = runBench({ ...base, filter: /rmsNorm 1x/, signal: abort.signal, onProgress })
  await expect(running).rejects.toThrow('enough')
})

describe('every op, at its smallest case', () => {
  // Of mixedAttention, one of each cache: they are laid out differently.
  const kindOf = ({ op, dtype }: OpCase) => (op === 'mixedAttention' ? `${op} ${dtype}` : op)
  const smallest = OP_CASES.filter(
    (one, i) => OP_CASES.findIndex((other) => kindOf(other) === kindOf(one)) === i,
  )
  let device: Device
  let tensors: BenchTensors
  beforeAll(async () => {
    device = await Device.open('cpu', { threads: 2 })
    tensors = new BenchTensors(device, 1)
  })
  afterAll(() => device.dispose())

  test.each(smallest.map((one) => [nameOf(one), one] as const))('%s', async (_, one) => {
    try {
      const { run, check, bytes, flops } = await one.prepare(tensors)
      await expect(check()).rejects.toMatchObject({ code: 'ERR_ZC_INTERNAL' }) // before it ran
      run()
      await check()
      expect(bytes).toBeGreaterThan(0)
      expect(flops).toBeGreaterThanOrEqual(0)
    } finally {
      tensors.dispose()
      await device.sync()
    }
    expect(device.memory.current).toBe(0)
  })

  test('names are unique: a filter can find each', () => {
    const names = OP_CASES.map(nameOf)
    expect(new Set(names).size).toBe(names.length)
  })
})

describe('a random model', () => {
  const config = { ...kRandomModelConfig, num_hidden_layers: 1, vocab_size: 64 }

  test('loads and generates; its folder goes afterwards', async () => {
    const dir = await withRandomModel(config, async (dir) => {
      const model = await loadModel(dir)
      const ids: number[] = []
      for await (const { id } of model.generate([1, 2, 3], { maxTokens: 3, ignoreEos: true })) {
        ids.push(id)
      }
      expect(ids).toHaveLength(3)
      await model.dispose()
      return dir
    })
    expect(existsSync(dir)).toBe(false)
  })

  test('stores bfloat16 where it is asked to, in the folder it is given', async () => {
    const parent = mkdtempSync(join(tmpdir(), 'zipcache-test-'))
    try {
      const options = { dtype: 'bf16', parent } as const
      const { tensors } = await withRandomModel(
        config,
        (dir) => {
          expect(dirname(dir)).toBe(parent)
          return openCheckpoint(dir)
        },
        options,
      )
      expect(new Set([...tensors.values()].map(({ dtype }) => dtype))).toEqual(new Set(['BF16']))
    } finally {
      rmSync(parent, { recursive: true })
    }
  })

  test('says where there is no room for it', async () => {
    const failing = withRandomModel(config, () => Promise.resolve(), { parent: '/proc' })
    await expect(failing).rejects.toMatchObject({ code: 'ERR_ZC_IO', argument: 'parent' })
  })

  test('its folder goes after a failure, too', async () => {
    const folders = () => readdirSync(tmpdir()).filter((name) => name.startsWith('zipcache-model-'))
    const before = folders()
    const failing = withRandomModel(config, () => Promise.reject(new Error('no')))
    await expect(failing).rejects.toThrow('no')
    expect(folders()).toEqual(before)
  })
})

test('a machine outside of a clone has no commit', () => {
  const { commit, version } = machineOf(root)
  expect(version).toMatch(/^\d+\.\d+\.\d+/)
  expect(commit === null || /^[0-9a-f]{12}(-dirty)?$/.test(commit)).toBe(true)
  expect(() => machineOf(tmpdir())).toThrow(/package.json/)
})
