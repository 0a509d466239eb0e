import fc from 'fast-check'
import type { ErrorCode } from '../../lib/errors.js'
import { appendKv, mixedAttention } from '../../lib/ops/index.js'
import {
  type FloatDtype,
  mixedAttention as reference,
  type SegmentFormat,
} from '../../lib/reference/index.js'
import { describeBackends } from '../support/backends.js'
import { expectClose, expectIdentical } from '../support/compare.js'
import { type DeviceTensors, floatDtypes } from '../support/device-tensors.js'
import { expectRefused, expectRejected } from '../support/errors.js'
import { kvTable, PackedCache, stackTables } from '../support/packed-cache.js'
import { type BlockPlan, packSequence, type SequencePlan } from '../support/packed-sequence.js'
import { propertyRuns } from '../support/properties.js'
import { cumulative, type KvShape, normals, randomKeys, storeAs } from '../support/random-data.js'
import { attentionTolerance, tolerance } from '../support/tolerance.js'

const codeFormats = ['u2', 'u3', 'u4', 'u8'] as const

/** What varies between the calls of these tests. */
interface Call {
  /** rows of each sequence: the newest `qLen` tokens, or rows after them all when not `causal` */
  sequences: readonly { plan: SequencePlan; qLen: number }[]
  nHeads: number
  nKvHeads: number
  headDim: number
  dtype: FloatDtype
  seed: number
  tail: boolean
  causal: boolean
  slidingWindow: number
  /** q and K above 0, most of K near the largest of its channel */
  large?: boolean
}

/** Keys whose codes are nearly all near the last one. Returns (n_tokens, n_kv_heads, head_dim). */
function largeKeys(seed: number, shape: KvShape): Float32Array {
  const length = shape.nTokens * shape.nKvHeads * shape.headDim
  return normals(seed, length).map((x) => 1 - Math.min(1, x ** 2 / 10) ** 2)
}

const block = (
  nTokens: number,
  nSalient: number,
  high: SegmentFormat = 'u4',
  low: SegmentFormat = 'u2',
): BlockPlan => ({
  nTokens,
  nSalient,
  salient: { keyFormat: high, valueFormat: high },
  regular: { keyFormat: low, valueFormat: low },
})

/** A prompt of 83, one window, and a tail: pages that end inside and at a page's end. */
const usualPlan: SequencePlan = {
  blocks: [block(83, 50), block(48, 32)],
  tail: { format: 'f16', nTokens: 21 },
}

/** Long enough to be cut into pieces, in the tail and in a segment, and one of many segments. */
const longPlan: SequencePlan = {
  blocks: [block(6000, 4600), block(900, 450), block(40, 24)],
  tail: { format: 'f16', nTokens: 4500 },
}

const usual: Call = {
  sequences: [{ plan: usualPlan, qLen: 1 }],
  nHeads: 4,
  nKvHeads: 2,
  headDim: 32,
  dtype: 'f32',
  seed: 1,
  tail: true,
  causal: true,
  slidingWindow: 0,
}

/** Packs the sequences of a call; gives the arguments of mixedAttention and the reference's result. */
function prepare(tensors: DeviceTensors, call: Call) {
  const { nHeads, nKvHeads, headDim, dtype, seed, large = false } = call
  const keys = large ? largeKeys : randomKeys
  const cache = new PackedCache(tensors, { nKvHeads, headDim, maxSegments: 8, poolBytes: 1 << 22 })
  const packed = call.sequences.map(({ plan }, index) =>
    packSequence(tensors, { cache, plan, nKvHeads, headDim, dtype, keys, seed: seed * 7 + index }),
  )
  const cuSeqlens = cumulative(call.sequences.map(({ qLen }) => qLen))
  const totalQ = cuSeqlens.at(-1)!
  const random = normals(seed + 99, totalQ * nHeads * headDim)
  const q = storeAs(dtype, large ? random.map((x) => 1 + Math.abs(x) / 100) : random)
  const positions = call.sequences.flatMap(({ qLen }, index) => {
    const first = packed[index].length - (call.causal && call.tail ? qLen : 0)
    return Array.from({ length: qLen }, (_, i) => first + i)
  })
  const { words, starts } = stackTables(packed.map(({ table }) => table))
  const scale = Math.fround(1 / Math.sqrt(headDim))
  const args = {
    q: tensors.input(dtype, q.stored as Uint16Array, [totalQ, nHeads, headDim]),
    out: tensors.output(dtype, [totalQ, nHeads, headDim]),
    lse: tensors.output('f32', [totalQ, nHeads]),
    pool: cache.pool,
    tables: tensors.i32(words),
    starts: tensors.i32(starts),
    cuSeqlens: tensors.i32(cuSeqlens),
    positions: tensors.i32(positions),
    layer: 0,
    scale,
    slidingWindow: call.slidingWindow,
    tail: call.tail,
    causal: call.causal,
  }
  const width = nHeads * headDim
  const expected = () => {
    const parts = packed.map(({ segments }, index) => {
      const [first, last] = [cuSeqlens[index], cuSeqlens[index + 1]]
      return reference({
        q: q.values.subarray(first * width, last * width),
        segments: call.tail ? segments : segments.slice(1),
        nHeads,
        nKvHeads,
        headDim,
        scale,
        queryPositions: positions.slice(first, last),
        slidingWindow: call.slidingWindow,
      })
    })
    return {
      out: parts.flatMap((part) => [...part.out]),
      lse: parts.flatMap((part) => [...part.lse]),
    }
  }
  return { args, expected, cuSeqlens, totalQ, cache, words, starts }
}

async function run(tensors: DeviceTensors, call: Call) {
  const { args } = prepare(tensors, call)
  mixedAttention(args)
  const result = { out: await tensors.values(args.out), lse: await tensors.values(args.lse) }
  return result
}

/** What each dtype of q may differ by where tokens are packed. */
const allowedPacked = {
  f32: tolerance.mixedAttention,
  f16: tolerance.mixedAttention,
  bf16: attentionTolerance.bf16,
}

describeBackends('mixedAttention', (backend) => {
  async function expectReference(changes: Partial<Call>) {
    const { tensors } = backend
    const call = { ...usual, ...changes }
    const { args, expected, totalQ } = prepare(tensors, call)
    mixedAttention(args)
    const { out, lse } = expected()
    const { nHeads, headDim, dtype, seed, sequences } = call
    const isPacked = sequences.some(({ plan }) => plan.blocks.length > 0)
    expectClose(await tensors.values(args.out), out, {
      name: 'out',
      shape: [totalQ, nHeads, headDim],
      tolerance: isPacked ? allowedPacked[dtype] : attentionTolerance[dtype],
      seed,
    })
    expectClose(await tensors.values(args.lse), lse, {
      name: 'lse',
      shape: [totalQ, nHeads],
      tolerance: isPacked ? tolerance.packedLse : tolerance.lse,
      rowLength: 1,
      floor: 1,
      seed,
    })
    tensors.dispose()
  }

  describe('equals attention over the dequantized values in double precision', () => {
    const pairs = codeFormats.flatMap((keyFormat) =>
      codeFormats.map((valueFormat) => ({ keyFormat, valueFormat })),
    )
    test.each(pairs)('K $keyFormat, V $valueFormat beside V and K of the same', async (formats) => {
      const { keyFormat, valueFormat } = formats
      const crossed = { keyFormat: valueFormat, valueFormat: keyFormat }
      const plan = {
        blocks: [{ nTokens: 70, nSalient: 33, salient: formats, regular: crossed }],
        tail: { format: 'f16', nTokens: 5 },
      } as const
      await expectReference({ sequences: [{ plan, qLen: 2 }], seed: 3 })
    })

    test.each(floatDtypes)('q of %s, tails of every format', async (dtype) => {
      for (const format of floatDtypes) {
        const plan = { ...usualPlan, tail: { format, nTokens: 19 } }
        await expectReference({ dtype, sequences: [{ plan, qLen: 3 }], seed: 5 })
      }
    })

    test.each([1, 2, 5, 70])('%i rows', async (qLen) => {
      const plan = { ...usualPlan, tail: { format: 'f16', nTokens: Math.max(qLen, 21) } } as const
      await expectReference({ sequences: [{ plan, qLen }], nHeads: 8, seed: qLen })
      await expectReference({ sequences: [{ plan, qLen }], nHeads: 8, seed: qLen, causal: false })
      await expectReference({ sequences: [{ plan, qLen }], nHeads: 8, seed: qLen, tail: false })
    })

    test.each([
      [3, 3],
      [4, 1],
      [14, 2],
      [8, 1],
      [64, 1],
    ])('%i heads over %i', async (nHeads, nKvHeads) => {
      await expectReference({ nHeads, nKvHeads, seed: nHeads })
      await expectReference({
        nHeads,
        nKvHeads,
        seed: nHeads,
        sequences: [{ plan: usualPlan, qLen: 5 }],
      })
    })

    test.each([0, 5000])('a long cache, sliding window %i', async (slidingWindow) => {
      const call = { nHeads: 2, nKvHeads: 1, headDim: 16, slidingWindow, seed: 17 }
      await expectReference({ ...call, sequences: [{ plan: longPlan, qLen: 3 }] })
      await expectReference({ ...call, sequences: [{ plan: longPlan, qLen: 1 }], tail: false })
    })

    test.each([16, 32, 48, 64, 96, 128, 256, 320, 512])('head_dim %i', async (headDim) => {
      await expectReference({ headDim, seed: headDim })
    })

    test.each([320, 512])('head_dim %i, q and tails of every format', async (headDim) => {
      for (const dtype of floatDtypes) {
        for (const format of floatDtypes) {
          const plan = { blocks: [block(41, 20)], tail: { format, nTokens: 19 } }
          await expectReference({ headDim, dtype, sequences: [{ plan, qLen: 3 }], seed: 5 })
        }
      }
    })

    test.each(codeFormats)('head_dim 512, K and V of %s, a sliding window', async (format) => {
      const plan = {
        blocks: [block(70, 33, format, format)],
        tail: { format: 'f16', nTokens: 5 },
      } as const
      const call = { headDim: 512, dtype: 'bf16', sequences: [{ plan, qLen: 2 }], seed: 3 } as const
      await expectReference(call)
      await expectReference({ ...call, slidingWindow: 40 })
    })

    // Of 8 bits and more than 256 channels they do not fit 32 bits.
    test.each([256, 272, 512])('sums of %i large codes', async (headDim) => {
      for (const format of ['u4', 'u8'] as const) {
        const plan = {
          blocks: [block(70, 70, format, format)],
          tail: { format: 'f32', nTokens: 3 },
        } as const
        await expectReference({ headDim, large: true, sequences: [{ plan, qLen: 1 }], seed: 2 })
      }
    })

    test.each([0, 1, 15, 16, 17, 63, 64, 65, 127, 128, 129])(
      '%i tokens in a segment',
      async (n) => {
        const plan = { blocks: [block(n, n, 'u3')], tail: { format: 'f16', nTokens: 1 } } as const
        await expectReference({ sequences: [{ plan, qLen: 1 }], seed: n })
      },
    )

    test.each([1, 15, 16, 17, 31, 63, 64, 65, 100])(
      '%i tokens in the tail, nothing packed',
      async (n) => {
        const plan = { blocks: [], tail: { format: 'bf16', nTokens: n } } as const
        await expectReference({ sequences: [{ plan, qLen: 1 }], seed: n })
        await expectReference({ sequences: [{ plan, qLen: Math.min(n, 5) }], seed: n })
      },
    )

    test('an empty tail', async () => {
      const plan = { ...usualPlan, tail: { format: 'f16', nTokens: 0 } } as const
      await expectReference({ sequences: [{ plan, qLen: 3 }], causal: false })
      await expectReference({ sequences: [{ plan, qLen: 3 }], tail: false })
    })

    test('an empty class beside a full one', async () => {
      const plan = { blocks: [block(40, 0)], tail: { format: 'f16', nTokens: 3 } } as const
      await expectReference({ sequences: [{ plan, qLen: 2 }] })
    })

    test.each([1, 2, 16, 21, 22, 40, 69, 70, 100, 151, 152, 4000])(
      'a sliding window of %i',
      async (slidingWindow) => {
        for (const qLen of [1, 7]) {
          await expectReference({
            sequences: [{ plan: usualPlan, qLen }],
            slidingWindow,
            seed: slidingWindow,
          })
        }
      },
    )

    test('a sliding window that has left whole segments behind, without the tail', async () => {
      await expectReference({
        sequences: [{ plan: usualPlan, qLen: 2 }],
        slidingWindow: 40,
        tail: false,
      })
    })

    test('searched ranges', async () => {
      const searched = { ...block(83, 50), keyRange: { norm: 4 }, valueRange: { norm: 2 } } as const
      const plan = { ...usualPlan, blocks: [searched] }
      await expectReference({ sequences: [{ plan, qLen: 2 }] })
    })

    test('a few thousand tokens', async () => {
      const plan = {
        blocks: [block(3001, 1800), block(100, 60), block(100, 100)],
        tail: { format: 'f16', nTokens: 99 },
      } as const
      await expectReference({ sequences: [{ plan, qLen: 1 }], nHeads: 2, nKvHeads: 1, seed: 8 })
    })

    test('several sequences of one call', async () => {
      const plans: SequencePlan[] = [
        usualPlan,
        { blocks: [], tail: { format: 'f16', nTokens: 9 } },
        { blocks: [block(17, 17, 'u8')], tail: { format: 'f16', nTokens: 0 } },
        { blocks: [block(65, 40, 'u4', 'u3')], tail: { format: 'f32', nTokens: 33 } },
      ]
      const qLens = [3, 9, 0, 1]
      const sequences = plans.map((plan, index) => ({ plan, qLen: qLens[index] }))
      await expectReference({ sequences, nHeads: 14, seed: 21 })
      await expectReference({ sequences, nHeads: 14, seed: 22, slidingWindow: 30 })
    })

    // A GPU has a kernel of its own for 16-bit queries and these.
    describe.each([64, 96, 128, 256])('16-bit queries, head_dim %i', (headDim) => {
      const half = { headDim, dtype: 'f16', nHeads: 6 } as const
      // What does not ask which head_dim it is runs in full for two of them.
      const fully = headDim === 64 || headDim === 128
      const some = <T>(cases: readonly T[]) => (fully ? cases : cases.slice(-2))

      test.each(pairs)('K $keyFormat, V $valueFormat', async (formats) => {
        const { keyFormat, valueFormat } = formats
        const crossed = { keyFormat: valueFormat, valueFormat: keyFormat }
        const plan = {
          blocks: [{ nTokens: 170, nSalient: 97, salient: formats, regular: crossed }],
          tail: { format: 'f16', nTokens: 5 },
        } as const
        await expectReference({ ...half, sequences: [{ plan, qLen: 1 }], seed: 3 })
      })

      test.each(floatDtypes)('a %s tail', async (format) => {
        for (const dtype of ['f16', 'bf16'] as const) {
          const plan = { ...usualPlan, tail: { format, nTokens: 37 } }
          await expectReference({ ...half, dtype, sequences: [{ plan, qLen: 3 }], seed: 5 })
        }
      })

      test.each([0, 1, 15, 16, 17, 63, 64, 65, 129])('%i tokens in a segment', async (n) => {
        const plan = { blocks: [block(n, n, 'u2')], tail: { format: 'f16', nTokens: 1 } } as const
        await expectReference({ ...half, sequences: [{ plan, qLen: 1 }], seed: n })
      })

      test.each(
        some([
          [3, 3, 2],
          [14, 2, 1],
          [16, 1, 1],
          [64, 1, 1],
          [4, 2, 41],
          [8, 2, 5],
        ]),
      )('%i heads over %i, %i rows', async (nHeads, nKvHeads, qLen) => {
        const plan = { ...usualPlan, tail: { format: 'f16', nTokens: 45 } } as const
        const call = { ...half, nHeads, nKvHeads, sequences: [{ plan, qLen }], seed: nHeads }
        await expectReference(call)
        await expectReference({ ...call, causal: false })
        await expectReference({ ...call, tail: false })
      })

      // A group of four is one query's a block, one of three is several queries'.
      test.each(some([1, 2, 21, 22, 40, 69, 70, 151, 152, 4000, 100]))(
        'a sliding window of %i',
        async (slidingWindow) => {
          for (const [nHeads, qLen] of [
            [8, 1],
            [8, 7],
            [6, 1],
            [6, 7],
          ]) {
            const sequences = [{ plan: usualPlan, qLen }]
            const call = { ...half, nHeads, sequences, slidingWindow, seed: slidingWindow }
            await expectReference(call)
            if (qLen === 7) await expectReference({ ...call, tail: false })
          }
        },
      )

      if (!fully) return

      test('a sliding window over much less than there is', async () => {
        const plan = { ...usualPlan, blocks: [block(2301, 1400), block(100, 60)] }
        const sequences = [plan, usualPlan].map((own) => ({ plan: own, qLen: 2 }))
        await expectReference({ ...half, nHeads: 8, sequences, slidingWindow: 500, seed: 10 })
      })

      test('more sequences than a block keeps in mind', async () => {
        const sequences = Array.from({ length: 37 }, (_, i) => ({
          plan: {
            blocks: i % 3 === 0 ? [] : [block(20 * i, 12 * i)],
            tail: { format: 'f16', nTokens: 1 + ((7 * i) % 50) },
          } as const,
          qLen: i % 5 === 4 ? 0 : 1,
        }))
        await expectReference({ ...half, nHeads: 2, nKvHeads: 1, sequences, seed: 12 })
      })

      test('thousands of tokens and two windows', async () => {
        const plan = {
          blocks: [block(2301, 1400), block(100, 60), block(100, 0)],
          tail: { format: 'f16', nTokens: 99 },
        } as const
        await expectReference({ ...half, nHeads: 2, sequences: [{ plan, qLen: 1 }], seed: 8 })
        const shorter = { ...plan, blocks: [block(1050, 630)] }
        const sequences = [plan, shorter, usualPlan].map((own) => ({ plan: own, qLen: 2 }))
        await expectReference({ ...half, nHeads: 8, sequences, seed: 9 })
      })
    })

    test('property: any cache', async () => {
      const format = fc.constantFrom(...codeFormats)
      const formats = fc.record({ keyFormat: format, valueFormat: format })
      const blockPlan = fc
        .record({ nTokens: fc.integer({ min: 1, max: 60 }), salient: formats, regular: formats })
        .chain((plan) =>
          fc.record({ ...mapConstants(plan), nSalient: fc.integer({ min: 0, max: plan.nTokens }) }),
        )
      const inputs = fc.record({
        plan: fc.record({
          blocks: fc.array(blockPlan, { maxLength: 2 }),
          tail: fc.record({
            format: fc.constantFrom(...floatDtypes),
            nTokens: fc.integer({ min: 1, max: 40 }),
          }),
        }),
        qShare: fc.double({ min: 0, max: 1, noNaN: true }),
        slidingWindow: fc.constantFrom(0, 0, 5, 33),
        seed: fc.nat({ max: 1e6 }),
      })
      const property = fc.asyncProperty(inputs, async ({ plan, qShare, slidingWindow, seed }) => {
        const qLen = Math.max(1, Math.round(qShare * plan.tail.nTokens))
        await expectReference({ sequences: [{ plan, qLen }], slidingWindow, seed })
      })
      await fc.assert(property, propertyRuns(25))
    })
  })

  test('a row that sees nothing gets exactly 0 and -infinity', async () => {
    const plan = { blocks: [], tail: { format: 'f16', nTokens: 0 } } as const
    const sequences = [{ plan, qLen: 2 }]
    const { out, lse } = await run(backend.tensors, { ...usual, sequences, causal: false })
    expect(out.every((x) => x === 0)).toBe(true)
    expect([...lse]).toEqual(new Array(8).fill(-Infinity))
  })

  describe('does the same bit for bit', () => {
    const plans: SequencePlan[] = [
      usualPlan,
      { blocks: [block(17, 17, 'u8')], tail: { format: 'f16', nTokens: 12 } },
      { blocks: [block(65, 40, 'u4', 'u3')], tail: { format: 'f16', nTokens: 33 } },
    ]
    const sequences = [plans[0], plans[1], plans[2]].map((plan, i) => ({
      plan,
      qLen: [1, 12, 5][i],
    }))
    const batch = { ...usual, nHeads: 14, dtype: 'f16', sequences, seed: 31 } as const

    test.each([1, 2, 3])('with %i threads', async (threads) => {
      const here = await run(backend.tensors, batch)
      const there = await backend.withDevice({ threads }, (_, tensors) => run(tensors, batch))
      expectIdentical(there.out, here.out, { name: 'out', shape: [18, 14, 32] })
      expectIdentical(there.lse, here.lse, { name: 'lse', shape: [18, 14] })
    })

    test.each([1, 3])('a long cache with %i threads', async (threads) => {
      const sequences = [longPlan, usualPlan].map((plan) => ({ plan, qLen: 2 }))
      const call = { ...usual, nHeads: 2, nKvHeads: 1, headDim: 16, sequences, seed: 19 }
      const here = await run(backend.tensors, call)
      const there = await backend.withDevice({ threads }, (_, tensors) => run(tensors, call))
      expectIdentical(there.out, here.out, { name: 'out', shape: [4, 2, 16] })
      expectIdentical(there.lse, here.lse, { name: 'lse', shape: [4, 2] })
    })

    async function expectSameAlone(call: Call) {
      const { tensors } = backend
      const { nHeads, headDim, dtype } = call
      const width = nHeads * headDim
      const { args, cuSeqlens } = prepare(tensors, call)
      mixedAttention(args)
      const together = { out: await tensors.values(args.out), lse: await tensors.values(args.lse) }
      const starts = await tensors.read(args.starts)
      const q = (await tensors.read(args.q)) as Uint16Array
      const positions = await tensors.read(args.positions)
      for (const [index, { qLen }] of call.sequences.entries()) {
        const [first, last] = [cuSeqlens[index], cuSeqlens[index + 1]]
        const out = tensors.output(dtype, [qLen, nHeads, headDim])
        const lse = tensors.output('f32', [qLen, nHeads])
        mixedAttention({
          ...args,
          q: tensors.input(dtype, q.slice(first * width, last * width), [qLen, nHeads, headDim]),
          starts: tensors.i32(starts.slice(index, index + 1)),
          positions: tensors.i32(positions.slice(first, last)),
          cuSeqlens: tensors.i32([0, qLen]),
          out,
          lse,
        })
        expectIdentical(
          await tensors.values(out),
          together.out.slice(first * width, last * width),
          { name: `out of sequence ${index}`, shape: [qLen, nHeads, headDim] },
        )
        expectIdentical(
          await tensors.values(lse),
          together.lse.slice(first * nHeads, last * nHeads),
          { name: `lse of sequence ${index}`, shape: [qLen, nHeads] },
        )
      }
    }

    test('for a sequence alone and in a batch', () => expectSameAlone(batch))

    // A GPU's blocks share the long one's splits, and which share which depends on the batch. Groups
    // of more than four heads are for teams of blocks.
    test.each([
      [14, 2, 64],
      [4, 1, 64],
      [4, 2, 96],
      [8, 1, 128],
      [4, 1, 256],
      [2, 1, 512],
    ])(
      'for a long sequence alone and in a batch, %i heads over %i',
      async (nHeads, nKvHeads, headDim) => {
        const long: SequencePlan = { ...usualPlan, blocks: [block(1600, 900), block(48, 32)] }
        const longer: SequencePlan = { ...usualPlan, blocks: [block(2600, 300)] }
        const others = nHeads === 14 ? sequences : sequences.slice(0, 1)
        const together = [{ plan: longer, qLen: 1 }, ...others, { plan: long, qLen: 3 }]
        const call = { ...batch, nHeads, nKvHeads, headDim, sequences: together }
        await expectSameAlone(call)
        if (headDim === 128) await expectReference(call)
      },
    )

    // A GPU's warp attends to four heads of a group together; others' maxima are not a head's own.
    test.each([64, 96, 128, 256])('for a head beside others, head_dim %i', async (headDim) => {
      const { tensors } = backend
      const plan: SequencePlan = { ...usualPlan, blocks: [block(1600, 900), block(48, 32)] }
      const shape = { nHeads: 4, nKvHeads: 1, headDim }
      const { args } = prepare(tensors, { ...batch, ...shape, sequences: [{ plan, qLen: 1 }] })
      const q = normals(71, 4 * headDim)
      const beside = async (factor: number) => {
        const values = q.map((x, i) => (i < headDim ? x : factor * x))
        const stored = storeAs('f16', values).stored as Uint16Array
        mixedAttention({ ...args, q: tensors.input('f16', stored, [1, 4, headDim]) })
        const out = await tensors.values(args.out)
        return [...out.slice(0, headDim), (await tensors.values(args.lse))[0]]
      }
      const quiet = await beside(0.01)
      expect(await beside(30)).toEqual(quiet)
    })

    test('for one row alone and among others, packed tokens being all it sees', async () => {
      const plan = { ...usualPlan, tail: { format: 'f16', nTokens: 0 } } as const
      const { tensors } = backend
      const call = { ...usual, sequences: [{ plan, qLen: 6 }], causal: false }
      const { args } = prepare(tensors, call)
      mixedAttention(args)
      const together = await tensors.values(args.out)
      const q = (await tensors.read(args.q)) as Float32Array
      const out = tensors.output('f32', [1, 4, 32])
      mixedAttention({
        ...args,
        q: tensors.f32(q.slice(3 * 128, 4 * 128), [1, 4, 32]),
        out,
        lse: tensors.output('f32', [1, 4]),
        cuSeqlens: tensors.i32([0, 1]),
        positions: tensors.i32([0]),
      })
      expectIdentical(await tensors.values(out), together.slice(3 * 128, 4 * 128), {
        name: 'out',
        shape: [1, 4, 32],
      })
    })
  })

  describe('masked sequences', () => {
    const plan = (nTokens: number, tail: number): SequencePlan => ({
      blocks: [block(nTokens, nTokens >> 1)],
      tail: { format: 'f16', nTokens: tail },
    })
    const call: Call = {
      ...usual,
      sequences: [
        { plan: plan(40, 9), qLen: 2 },
        { plan: plan(17, 5), qLen: 1 },
        { plan: plan(65, 30), qLen: 7 },
        { plan: plan(33, 1), qLen: 1 },
      ],
      seed: 41,
    }

    test.each([[[0]], [[3]], [[1, 2]], [[0, 1, 2, 3]]])(
      '%j get 0 and -infinity, the others the bits they get beside them',
      async (masked) => {
        const { tensors } = backend
        const { args, cuSeqlens, totalQ } = prepare(tensors, call)
        mixedAttention(args)
        const out = await tensors.values(args.out)
        const lse = await tensors.values(args.lse)
        const starts = await tensors.read(args.starts)
        for (const index of masked) {
          starts[index] = -1
          const [first, last] = [cuSeqlens[index], cuSeqlens[index + 1]]
          out.fill(0, first * 128, last * 128)
          lse.fill(Number.NEGATIVE_INFINITY, first * 4, last * 4)
        }
        const own = {
          out: tensors.output('f32', [totalQ, 4, 32]),
          lse: tensors.output('f32', [totalQ, 4]),
        }
        mixedAttention({ ...args, ...own, starts: tensors.i32(starts) })
        const seed = call.seed
        const shape = [totalQ, 4, 32]
        expectIdentical(await tensors.values(own.out), out, { name: 'out', shape, seed })
        expectIdentical(await tensors.values(own.lse), lse, {
          name: 'lse',
          shape: [totalQ, 4],
          seed,
        })
      },
    )

    test('alone, with no table at all and whatever q holds', async () => {
      const { tensors } = backend
      const { args } = prepare(tensors, usual)
      args.q.write(new Float32Array(128).fill(Number.NaN))
      mixedAttention({ ...args, tables: tensors.i32([]), starts: tensors.i32([-1]) })
      expect((await tensors.values(args.out)).every((x) => x === 0)).toBe(true)
      expect([...(await tensors.values(args.lse))]).toEqual(new Array(4).fill(-Infinity))
    })

    test.each([-2, 2 ** 31 - 1, -(2 ** 31)])('a start of %i is no mask', async (start) => {
      const { tensors, device } = backend
      const { args } = prepare(tensors, usual)
      mixedAttention({ ...args, starts: tensors.i32([start]) })
      const fault = {
        code: 'ERR_ZC_ARGUMENT',
        op: 'mixedAttention',
        message: /^starts: /,
      } as const
      await expectRejected(device.sync(), fault)
    })

    test('a start whose header does not fit', async () => {
      const { tensors, device } = backend
      const { args } = prepare(tensors, usual)
      mixedAttention({ ...args, starts: tensors.i32([args.tables.length - 7]) })
      const fault = { code: 'ERR_ZC_ARGUMENT', op: 'mixedAttention' } as const
      await expectRejected(device.sync(), { ...fault, message: /^starts: / })
    })
  })

  // Tables are damaged for every op in segment.test.ts; these reach a GPU's kernels for such heads.
  describe.each([64, 128, 256])('a damaged page table, heads of %i', (headDim) => {
    const call = { ...usual, headDim, dtype: 'f16' } as const
    const outside = [-1, (1 << 22) / kvTable.unitBytes, 2 ** 31 - 1, -(2 ** 31)]
    type Damage = [segment: number, word: Parameters<PackedCache['wordAt']>[2], value: number]
    const damages = [0, 1, 4].flatMap((segment): Damage[] => [
      ...outside.map((unit): Damage => [segment, 'pagesBegin', unit]),
      ...[1, 5, -1].map((format): Damage => [segment, 'keyFormat', format]),
    ])
    for (const segment of [1, 4]) {
      for (const unit of outside) damages.push([segment, 'paramsUnit', unit])
      for (const n of [-1, 10_000, 2 ** 31 - 1]) damages.push([segment, 'nTokens', n])
    }
    const fault = { code: 'ERR_ZC_ARGUMENT', op: 'mixedAttention' } as const

    async function expectFault([segment, word, value]: Damage, slidingWindow = 0) {
      const { tensors, device } = backend
      const { args, cache, words, starts } = prepare(tensors, { ...call, slidingWindow })
      const start = starts[0] as number
      const table = words.subarray(start)
      const damaged = words.slice()
      for (const kvHead of [0, 1])
        damaged[start + cache.wordAt(table, segment, word, kvHead)] = value
      mixedAttention({ ...args, tables: tensors.i32(damaged) })
      await expectRejected(device.sync(), fault)
      mixedAttention(args) // the device goes on
      await device.sync()
    }

    test.each(damages)('segment %i: %s of %i', (...damage) => expectFault(damage))

    // The window begins within the second block, whose bitmaps tell what it hides.
    const spans = [2 ** 31 - 1, -(2 ** 31)].map((value): Damage => [3, 'span', value])
    test.each([...outside.map((unit): Damage => [3, 'bitmapUnit', unit]), ...spans])(
      'under a sliding window, segment %i: %s of %i',
      (...damage) => expectFault(damage, 40),
    )

    test.each(outside)('any page at unit %i', async (unit) => {
      const { tensors, device } = backend
      const { args, cache, words, starts } = prepare(tensors, call)
      const start = starts[0] as number
      const table = words.subarray(start)
      for (const [segment, nPages] of [2, 4, 3, 2, 1].entries()) {
        for (let page = 0; page < nPages; page++) {
          const damaged = words.slice()
          const list = table[cache.wordAt(table, segment, 'pagesBegin', 1)] as number
          damaged[start + list + page] = unit
          mixedAttention({ ...args, tables: tensors.i32(damaged) })
          await expectRejected(device.sync(), fault)
        }
      }
    })
  })

  test.each(
    floatDtypes.flatMap((format) => [
      { format, headDim: 32, nHeads: 6, dtype: 'f32' as const },
      // A GPU's kernel for these lets a group of four be one query's.
      { format, headDim: 64, nHeads: 8, dtype: 'f16' as const },
      { format, headDim: 128, nHeads: 8, dtype: 'f16' as const },
      { format, headDim: 256, nHeads: 8, dtype: 'f16' as const },
      { format, headDim: 512, nHeads: 2, dtype: 'f16' as const },
    ]),
  )(
    'NaN in a $format tail stays with the rows that see it, $nHeads heads of $headDim',
    async ({ format, ...heads }) => {
      const { tensors } = backend
      const { headDim, nHeads } = heads
      const plan = { ...usualPlan, tail: { format, nTokens: 21 } }
      const { args } = prepare(tensors, { ...usual, ...heads, sequences: [{ plan, qLen: 5 }] })
      mixedAttention(args)
      const before = await tensors.values(args.out)
      const nan = new Float32Array(2 * headDim).fill(Number.NaN)
      const rows = tensors.f32(nan, [1, 2, headDim])
      const { pool, tables, starts } = args
      const cuSeqlens = tensors.i32([0, 1])
      appendKv({ k: rows, v: rows, pool, tables, starts, cuSeqlens, layer: 0 })
      mixedAttention(args)
      const after = await tensors.values(args.out)
      const width = nHeads * headDim
      expectIdentical(after.slice(0, 4 * width), before.slice(0, 4 * width), {
        name: 'rows before the newest',
        shape: [4, nHeads, headDim],
      })
      expect(after.slice(4 * width).every((x) => Number.isNaN(x))).toBe(true)
    },
  )

  test('no sequences at all', async () => {
    const { tensors } = backend
    const { args } = prepare(tensors, { ...usual, sequences: [] })
    mixedAttention(args)
    expect(await tensors.read(args.out)).toHaveLength(0)
  })

  describe('refuses', () => {
    const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
      ['integers for q', (t) => ({ q: t.output('i32', [1, 4, 32]) }), 'ERR_ZC_DTYPE', 'q'],
      ['no heads', (t) => ({ q: t.output('f32', [1, 0, 32]) }), 'ERR_ZC_SHAPE', 'q'],
      ['another out', (t) => ({ out: t.output('f16', [1, 4, 32]) }), 'ERR_ZC_DTYPE', 'out'],
      ['another lse', (t) => ({ lse: t.output('f32', [4]) }), 'ERR_ZC_SHAPE', 'lse'],
      ['a pool of floats', (t) => ({ pool: t.output('f32', [64]) }), 'ERR_ZC_DTYPE', 'pool'],
      [
        'tables of two axes',
        (t) => ({ tables: t.output('i32', [1, 99]) }),
        'ERR_ZC_SHAPE',
        'tables',
      ],
      ['float starts', (t) => ({ starts: t.output('f32', [1]) }), 'ERR_ZC_DTYPE', 'starts'],
      [
        'starts of two axes',
        (t) => ({ starts: t.output('i32', [1, 1]) }),
        'ERR_ZC_SHAPE',
        'starts',
      ],
      [
        'cuSeqlens of more sequences',
        (t) => ({ cuSeqlens: t.i32([0, 1, 1]) }),
        'ERR_ZC_SHAPE',
        'cuSeqlens',
      ],
      ['other positions', (t) => ({ positions: t.i32([1, 2]) }), 'ERR_ZC_SHAPE', 'positions'],
      ['a scale of 0', () => ({ scale: 0 }), 'ERR_ZC_ARGUMENT', 'scale'],
      ['a window of -1', () => ({ slidingWindow: -1 }), 'ERR_ZC_ARGUMENT', 'slidingWindow'],
    ]
    test.each(refused)('%s', (_, fault, code, argument) => {
      const { args } = prepare(backend.tensors, usual)
      const refuse = () => mixedAttention({ ...args, ...fault(backend.tensors) })
      expectRefused(refuse, { code, op: 'mixedAttention', argument })
    })

    test('more than 64 query heads a KV head', async () => {
      const call = { ...usual, nHeads: 65, nKvHeads: 1 }
      const { args } = prepare(backend.tensors, call)
      mixedAttention(args)
      const fault = { code: 'ERR_ZC_UNSUPPORTED', op: 'mixedAttention' } as const
      await expectRejected(backend.device.sync(), fault)
    })

    test.each([[[1, 1]], [[0, 2]], [[0, 0]], [[0, -1]]])(
      'cuSeqlens %j of one row',
      async (cuSeqlens) => {
        const { args } = prepare(backend.tensors, usual)
        mixedAttention({ ...args, cuSeqlens: backend.tensors.i32(cuSeqlens) })
        const fault = {
          code: 'ERR_ZC_ARGUMENT',
          op: 'mixedAttention',
          message: /^cuSeqlens: /,
        } as const
        await expectRejected(backend.device.sync(), fault)
      },
    )
  })
})

/** A record of constants, to extend it by what depends on them. */
function mapConstants<T extends object>(record: T): { [K in keyof T]: fc.Arbitrary<T[K]> } {
  const entries = Object.entries(record).map(([key, value]) => [key, fc.constant(value)])
  return Object.fromEntries(entries) as { [K in keyof T]: fc.Arbitrary<T[K]> }
}
