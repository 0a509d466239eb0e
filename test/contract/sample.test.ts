import fc from 'fast-check'
import type { ErrorCode } from '../../lib/errors.js'
import { packSampleParams, SAMPLE_PARAMS, type SampleParams, sample } from '../../lib/ops/index.js'
import { toSeed, uniform } from '../../lib/random.js'
import { sample as reference } from '../../lib/reference/index.js'
import { type Backend, describeBackends } from '../support/backends.js'
import { expectClose, expectIdentical } from '../support/compare.js'
import type { DeviceTensors } from '../support/device-tensors.js'
import { expectRefused, expectRejected } from '../support/errors.js'
import { propertyRuns } from '../support/properties.js'
import { normals, randomNumbers } from '../support/random-data.js'
import { tolerance } from '../support/tolerance.js'

const plain: SampleParams = {
  temperature: 1,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  seed: toSeed(7),
  step: 0,
}

/** One row of a call. */
interface Row {
  logits: ArrayLike<number>
  params: SampleParams
  /** ids of the context */
  seen?: readonly number[]
}

async function run(tensors: DeviceTensors, rows: readonly Row[], vocabSize: number) {
  const shape = [rows.length, vocabSize]
  const marks = new Uint8Array(rows.length * vocabSize)
  for (const [r, { seen = [] }] of rows.entries()) {
    for (const id of seen) marks[r * vocabSize + id] = 1 + (id % 255)
  }
  const args = {
    logits: tensors.f32(
      rows.flatMap(({ logits }) => Array.from(logits)),
      shape,
    ),
    params: tensors.f32(new Float32Array(rows.length * SAMPLE_PARAMS), [
      rows.length,
      SAMPLE_PARAMS,
    ]),
    seen: tensors.input('u8', marks, shape),
    contexts: tensors.i32(rows.map((_, r) => r)),
    ids: tensors.output('i32', [rows.length]),
    logprobs: tensors.output('f32', [rows.length]),
  }
  // Integers travel as the bits of floats: no copy by value may touch them.
  for (const [r, { params }] of rows.entries()) {
    args.params.write(packSampleParams(params), r * SAMPLE_PARAMS)
  }
  sample(args)
  return {
    marks,
    ids: await tensors.read(args.ids),
    logprobs: await tensors.read(args.logprobs),
    seen: await tensors.read(args.seen),
  }
}

/** The reference, for parameters as float32 holds them. */
function expectedOf({ logits, params, seen = [] }: Row) {
  const marks = new Uint8Array(logits.length)
  for (const id of seen) marks[id] = 1
  const rounded = {
    temperature: Math.fround(params.temperature),
    topK: params.topK,
    topP: Math.fround(params.topP),
    minP: Math.fround(params.minP),
    repetitionPenalty: Math.fround(params.repetitionPenalty),
  }
  const u = uniform(params.seed, params.step)
  return reference({ logits: Float32Array.from(logits), params: rounded, seen: marks, u })
}

async function expectSampled(backend: Backend, rows: readonly Row[], seed?: number) {
  const vocabSize = rows[0].logits.length
  const { ids, logprobs, seen, marks } = await run(backend.tensors, rows, vocabSize)
  const expected = rows.map(expectedOf)
  const shape = [rows.length]
  const own = { shape, seed }
  const expectedIds = expected.map(({ id }) => id)
  expectIdentical(ids, expectedIds, { ...own, name: 'ids' })
  const allowed = { tolerance: tolerance.logprob, rowLength: 1, floor: 1 }
  const expectedLogprobs = expected.map(({ logprob }) => logprob)
  expectClose(logprobs, expectedLogprobs, { ...own, name: 'logprobs', ...allowed })
  for (const [r, id] of expectedIds.entries()) if (id >= 0) marks[r * vocabSize + id] = 1
  expectIdentical(seen, marks, { name: 'seen', shape: [rows.length, vocabSize], seed })
  backend.tensors.dispose()
  return ids
}

/** Rows that differ in their logits, their seed and their step, and have tokens in the context. */
function randomRows(count: number, vocabSize: number, seed: number, params: Partial<SampleParams>) {
  const next = randomNumbers(seed)
  return Array.from({ length: count }, (_, r): Row => {
    const spread = [0.5, 2, 6][r % 3]
    const logits = normals(seed * 1000 + r, vocabSize).map((x) => x * spread)
    const seen = [...logits.keys()].filter(() => next() < 0.2)
    return { logits, seen, params: { ...plain, seed: toSeed(seed + r), step: r * 17, ...params } }
  })
}

describeBackends('sample', (backend) => {
  const settings: [string, Partial<SampleParams>][] = [
    ['greedily', { temperature: 0 }],
    ['greedily, with a penalty', { temperature: 0, repetitionPenalty: 1.3 }],
    ['at temperature 1', {}],
    ['at temperature 0.3', { temperature: 0.3 }],
    ['at temperature 5', { temperature: 5 }],
    ['at a temperature next to 0', { temperature: 1e-30 }],
    ['at a temperature without end', { temperature: 1e30 }],
    ['the most likely alone', { topK: 1 }],
    ['of the top 2', { topK: 2 }],
    ['of the top 40', { topK: 40 }],
    ['of more than there are', { topK: 2 ** 31 - 1 }],
    ['of half the probability', { topP: 0.5 }],
    ['of nine tenths', { topP: 0.9 }],
    ['of next to no probability', { topP: 1e-6 }],
    ['of no probability', { topP: 0 }],
    ['of a tenth of the likeliest', { minP: 0.1 }],
    ['as likely as the likeliest', { minP: 1 }],
    ['with a penalty', { repetitionPenalty: 1.25 }],
    ['with a bonus', { repetitionPenalty: 0.8 }],
    [
      'with everything',
      { temperature: 0.8, topK: 50, topP: 0.9, minP: 0.02, repetitionPenalty: 1.1 },
    ],
  ]

  test.each(settings)('chooses %s as the reference does', async (_, params) => {
    await expectSampled(backend, randomRows(60, 151, 1, params), 1)
    await expectSampled(backend, randomRows(3, 5003, 2, params), 2)
  })

  test.each([1, 2, 3, 16, 17])('a vocabulary of %i', async (vocabSize) => {
    for (const [, params] of settings) {
      await expectSampled(backend, randomRows(5, vocabSize, vocabSize, params), vocabSize)
    }
  })

  test.each([
    { temperature: 0 },
    {},
    { topK: 9_000 },
    { topP: 0.9 },
    { temperature: 4, topK: 12_000, topP: 0.7, repetitionPenalty: 1.1 },
  ])('a large vocabulary, %j', async (params) => {
    await expectSampled(backend, randomRows(2, 20_020, 3, params), 3)
    const equal = new Float32Array(20_020).fill(1)
    const rows = [5, 6].map((step) => ({ logits: equal, params: { ...plain, step, ...params } }))
    await expectSampled(backend, rows)
  })

  test('a large vocabulary with nothing finite in some parts, in all, and a broken part', async () => {
    const { NaN: nan, NEGATIVE_INFINITY: out, POSITIVE_INFINITY: top } = Number
    const none = new Float32Array(20_020).fill(out)
    const rows = [
      none,
      none.with(9_000, -3),
      none.with(19_999, 2).with(3, 2).with(8_192, 1),
      none.with(5, 1).with(20_019, nan),
      none.with(5, 1).with(8_191, top),
    ].map((logits): Row => ({ logits, params: { ...plain, temperature: 0 } }))
    const ids = await expectSampled(backend, rows)
    expect([...ids]).toEqual([-1, 9_000, 3, -1, -1])
  })

  test('ties: the lowest id when greedy, the lower ids when cut by rank', async () => {
    const logits = [1, 3, 0, 3, 3, -1, 3]
    const rows: Row[] = [{ logits, params: { ...plain, temperature: 0 } }]
    for (const cut of [{ topK: 2 }, { topK: 3 }, { topP: 0.3 }, { topP: 0.6 }, { minP: 1 }]) {
      for (let step = 0; step < 12; step++)
        rows.push({ logits, params: { ...plain, ...cut, step } })
    }
    const ids = await expectSampled(backend, rows)
    expect(ids[0]).toBe(1)
    expect(new Set(ids.subarray(1, 13))).toEqual(new Set([1, 3]))
  })

  test('equal logits throughout', async () => {
    const rows = Array.from({ length: 30 }, (_, step): Row => {
      const params = { ...plain, step, topK: step % 5, topP: [1, 0.5][step % 2] }
      return { logits: new Float32Array(33).fill(-2), params }
    })
    await expectSampled(backend, rows)
  })

  test('-infinity is never chosen; +infinity, NaN and nothing finite give -1', async () => {
    const { NaN: nan, NEGATIVE_INFINITY: out, POSITIVE_INFINITY: top } = Number
    const logits = [
      [out, out, 1, out],
      [out, 2, out, 2],
      [1, nan, 3, 4],
      [nan, 1, 3, 4],
      [1, 2, 3, nan],
      [1, top, 3, 4],
      [top, nan, out, 0],
      [out, out, out, out],
      [nan, nan, nan, nan],
      [3.4e38, -3.4e38, 3.4e38, 0],
      [0, -0, -0, 0],
    ]
    for (const change of [{ temperature: 0 }, {}, { topK: 2 }, { topP: 0.5 }, { minP: 0.5 }]) {
      const rows = logits.map((own, step) => ({
        logits: own,
        params: { ...plain, ...change, step },
      }))
      const ids = await expectSampled(backend, rows)
      expect([...ids.subarray(2, 9)]).toEqual(new Array(7).fill(-1))
      expect(ids[0]).toBe(2)
    }
  })

  test('the penalty of a seen NaN or infinity does not hide it', async () => {
    const params = { ...plain, temperature: 0, repetitionPenalty: 2 }
    const rows = [Number.NaN, Number.POSITIVE_INFINITY].map((x) => ({
      logits: [1, x, 3],
      seen: [1, 2],
      params,
    }))
    expect([...(await expectSampled(backend, rows))]).toEqual([-1, -1])
  })

  const { NaN: nan, POSITIVE_INFINITY: infinity } = Number
  test.each([
    ['penalty NaN', { repetitionPenalty: nan }],
    ['penalty 0', { repetitionPenalty: 0 }],
    ['penalty infinity', { repetitionPenalty: infinity }],
    ['penalty -infinity', { repetitionPenalty: -infinity }],
    ['temperature NaN', { temperature: nan }],
    ['temperature infinity', { temperature: infinity }],
    ['temperature -1', { temperature: -1 }],
    ['top-p NaN', { topP: nan }],
    ['top-p -1', { topP: -1 }],
    ['min-p NaN', { minP: nan }],
    ['min-p 2', { minP: 2 }],
    ['top-k -1', { topK: -1 }],
  ])('%s, which nobody should ask for, gives -1 or a token', async (_, params) => {
    const asked = { temperature: 1, topP: 0.5, repetitionPenalty: 1.5, ...params }
    // 0 among the seen: 0 * infinity is NaN, which no sort may meet
    const rows = randomRows(4, 3000, 5, asked).map((row) => ({
      ...row,
      logits: Array.from(row.logits, (x, token) => (token % 7 === 0 ? 0 : x)),
    }))
    const { ids } = await run(backend.tensors, rows, 3000)
    for (const id of ids) expect(id).toBeGreaterThanOrEqual(-1)
    for (const id of ids) expect(id).toBeLessThan(3000)
  })

  test('a penalty that makes NaN or infinity gives -1', async () => {
    const logits = [1, 0, -1, 3]
    const rows = [0, Number.NaN, Number.POSITIVE_INFINITY].map((repetitionPenalty) => ({
      logits,
      seen: [0, 1],
      params: { ...plain, repetitionPenalty },
    }))
    expect([...(await expectSampled(backend, rows))]).toEqual([-1, -1, -1])
  })

  test('the chosen token is in the context of the next step', async () => {
    const { tensors } = backend
    const logits = tensors.f32([4, 3.9, 0], [1, 3])
    const params = tensors.input(
      'f32',
      packSampleParams({ ...plain, temperature: 0, repetitionPenalty: 1.5 }),
      [1, SAMPLE_PARAMS],
    )
    const seen = tensors.input('u8', new Uint8Array(3), [1, 3])
    const contexts = tensors.i32([0])
    const ids = [0, 1, 2].map(() => {
      const own = tensors.output('i32', [1])
      sample({ logits, params, seen, contexts, ids: own, logprobs: tensors.output('f32', [1]) })
      return own
    })
    const chosen = await Promise.all(ids.map(async (own) => (await tensors.read(own))[0]))
    expect(chosen).toEqual([0, 1, 0])
    expect([...(await tensors.read(seen))]).toEqual([1, 1, 0])
  })

  describe('contexts', () => {
    /** Greedy rows whose choice the penalty of a seen token 0 changes, over contexts of 3 tokens. */
    function call(contexts: readonly number[], nContexts: number, repetitionPenalty = 1.5) {
      const { tensors } = backend
      const n = contexts.length
      const rows = contexts.flatMap(() => [
        ...packSampleParams({ ...plain, temperature: 0, repetitionPenalty }),
      ])
      return {
        logits: tensors.f32(
          contexts.flatMap(() => [4, 3.9, 0]),
          [n, 3],
        ),
        params: tensors.f32(rows, [n, SAMPLE_PARAMS]),
        seen: tensors.input('u8', new Uint8Array(nContexts * 3), [nContexts, 3]),
        contexts: tensors.i32(contexts),
        ids: tensors.output('i32', [n]),
        logprobs: tensors.output('f32', [n]),
      }
    }

    test('in any order, more of them than rows: each row reads and marks its own', async () => {
      const { tensors } = backend
      const args = call([3, 0, 2], 5)
      const marks = Uint8Array.of(1, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1)
      args.seen.write(marks)
      sample(args)
      expect([...(await tensors.read(args.ids))]).toEqual([0, 1, 0])
      const expected = [1, 1, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1]
      expect([...(await tensors.read(args.seen))]).toEqual(expected)
    })

    test('-1: no penalty and no mark, beside rows that have theirs', async () => {
      const { tensors } = backend
      const args = call([-1, 0, -1], 1)
      args.seen.write(Uint8Array.of(1, 0, 0))
      sample(args)
      expect([...(await tensors.read(args.ids))]).toEqual([0, 1, 0])
      expect([...(await tensors.read(args.seen))]).toEqual([1, 1, 0])
    })

    test('-1 for all: as without a penalty, and there need not be any', async () => {
      const { tensors } = backend
      for (const nContexts of [0, 2]) {
        const masked = call([-1, -1], nContexts)
        const plainly = call([0, 1], 2, 1)
        for (const args of [masked, plainly]) sample(args)
        expectIdentical(await tensors.read(masked.ids), await tensors.read(plainly.ids), {
          name: 'ids',
          shape: [2],
        })
        const logprobs = await tensors.read(masked.logprobs)
        const expected = await tensors.read(plainly.logprobs)
        expectIdentical(logprobs, expected, { name: 'logprobs', shape: [2] })
        expect((await tensors.read(masked.seen)).every((mark) => mark === 0)).toBe(true)
      }
    })

    test('shared by rows without a penalty: all of their tokens are marked', async () => {
      const { tensors } = backend
      const args = call([1, 1, 1], 2, 1)
      args.logits.write(Float32Array.of(4, 3, 0, 0, 1, 9, 5, 1, 0))
      sample(args)
      expect([...(await tensors.read(args.ids))]).toEqual([0, 2, 0])
      expect([...(await tensors.read(args.seen))]).toEqual([0, 0, 0, 1, 0, 1])
    })

    test.each([-2, 2, 2 ** 31 - 1, -(2 ** 31)])(
      '%i of 2 is rejected at the next sync',
      async (context) => {
        sample(call([0, context], 2))
        const fault = { code: 'ERR_ZC_ARGUMENT', op: 'sample', message: /^contexts: / } as const
        await expectRejected(backend.device.sync(), fault)
      },
    )
  })

  test('seeds and steps of every size', async () => {
    const logits = normals(4, 97)
    const rows: Row[] = []
    for (const seed of [0, 1, -1, 2 ** 31, 2 ** 32, 2 ** 53 - 1, 0x7fa0_0001n, 1n << 63n]) {
      for (const step of [0, 1, 2 ** 31, 2 ** 32 - 1, 0x7fa00001]) {
        rows.push({ logits, params: { ...plain, seed: toSeed(seed), step } })
      }
    }
    await expectSampled(backend, rows)
  })

  test.each([1, 2, 3])('does the same bit for bit with %i threads', async (threads) => {
    const rows = randomRows(20, 300, 5, { topP: 0.9, topK: 40 })
    const here = await run(backend.tensors, rows, 300)
    const there = await backend.withDevice({ threads }, (_, tensors) => run(tensors, rows, 300))
    expectIdentical(there.ids, here.ids, { name: 'ids', shape: [20] })
    expectIdentical(there.logprobs, here.logprobs, { name: 'logprobs', shape: [20] })
  })

  test('draws tokens as often as they are likely', async () => {
    const logits = [Math.log(0.5), Math.log(0.3), Math.log(0.2)]
    const count = 4000
    const rows = Array.from({ length: count }, (_, step) => ({
      logits,
      params: { ...plain, step },
    }))
    const { ids } = await run(backend.tensors, rows, 3)
    for (const [id, probability] of [0.5, 0.3, 0.2].entries()) {
      const share = ids.filter((chosen) => chosen === id).length / count
      // four standard deviations
      const spread = 4 * Math.sqrt((probability * (1 - probability)) / count)
      expect(Math.abs(share - probability)).toBeLessThan(spread)
    }
  })

  test('property: as the reference, for any row', async () => {
    const inputs = fc.record({
      // eighths: many ties, and no rounding for which kernel and reference could differ
      logits: fc.array(
        fc.integer({ min: -99, max: 99 }).map((x) => x / 8),
        { minLength: 1, maxLength: 40 },
      ),
      temperature: fc.constantFrom(0, 0.25, 0.5, 1, 2),
      topK: fc.nat({ max: 12 }),
      topP: fc.constantFrom(0.125, 0.5, 0.75, 1),
      minP: fc.constantFrom(0, 0.0625, 0.25),
      repetitionPenalty: fc.constantFrom(1, 2, 0.5),
      seed: fc.nat(),
      step: fc.nat(),
      seen: fc.array(fc.nat({ max: 39 })),
    })
    const property = fc.asyncProperty(inputs, async ({ logits, seen, seed, ...rest }) => {
      const own = seen.filter((id) => id < logits.length)
      await expectSampled(backend, [{ logits, seen: own, params: { ...rest, seed: toSeed(seed) } }])
    })
    await fc.assert(property, propertyRuns(100))
  })

  test('no rows', async () => {
    const { ids } = await run(backend.tensors, [], 5)
    expect(ids).toHaveLength(0)
  })

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['f16 logits', (t) => ({ logits: t.output('f16', [2, 5]) }), 'ERR_ZC_DTYPE', 'logits'],
    ['logits of one axis', (t) => ({ logits: t.output('f32', [10]) }), 'ERR_ZC_SHAPE', 'logits'],
    ['an empty vocabulary', (t) => ({ logits: t.output('f32', [2, 0]) }), 'ERR_ZC_SHAPE', 'logits'],
    ['params of 7', (t) => ({ params: t.output('f32', [2, 7]) }), 'ERR_ZC_SHAPE', 'params'],
    ['params of one row', (t) => ({ params: t.output('f32', [1, 8]) }), 'ERR_ZC_SHAPE', 'params'],
    ['i32 seen', (t) => ({ seen: t.output('i32', [2, 5]) }), 'ERR_ZC_DTYPE', 'seen'],
    ['seen of others', (t) => ({ seen: t.output('u8', [2, 4]) }), 'ERR_ZC_SHAPE', 'seen'],
    ['one context', (t) => ({ contexts: t.i32([0]) }), 'ERR_ZC_SHAPE', 'contexts'],
    ['float contexts', (t) => ({ contexts: t.f32([0, 1]) }), 'ERR_ZC_DTYPE', 'contexts'],
    ['float ids', (t) => ({ ids: t.output('f32', [2]) }), 'ERR_ZC_DTYPE', 'ids'],
    ['fewer ids', (t) => ({ ids: t.output('i32', [1]) }), 'ERR_ZC_SHAPE', 'ids'],
    ['f16 logprobs', (t) => ({ logprobs: t.output('f16', [2]) }), 'ERR_ZC_DTYPE', 'logprobs'],
    ['more logprobs', (t) => ({ logprobs: t.output('f32', [3]) }), 'ERR_ZC_SHAPE', 'logprobs'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const args = {
      logits: tensors.output('f32', [2, 5]),
      params: tensors.output('f32', [2, SAMPLE_PARAMS]),
      seen: tensors.output('u8', [2, 5]),
      contexts: tensors.i32([0, 1]),
      ids: tensors.output('i32', [2]),
      logprobs: tensors.output('f32', [2]),
    }
    expectRefused(() => sample({ ...args, ...fault(tensors) }), { code, op: 'sample', argument })
  })
})
