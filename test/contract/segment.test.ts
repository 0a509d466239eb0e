import type { ErrorCode } from '../../lib/errors.js'
import {
  appendKv,
  exportSegment,
  importSegment,
  mixedAttention,
  packSegment,
  packSegments,
  type QuantRange,
  unpackSegment,
} from '../../lib/ops/index.js'
import {
  type FloatDtype,
  fromBf16,
  fromF16,
  keyRows,
  MAX_F16,
  type Segment,
  valueRows,
} from '../../lib/reference/index.js'
import { type Backend, describeBackends } from '../support/backends.js'
import { expectClose, expectIdentical } from '../support/compare.js'
import { type DeviceTensors, floatDtypes } from '../support/device-tensors.js'
import { expectRefused, expectRejected } from '../support/errors.js'
import { kvTable, PackedCache, stackTables } from '../support/packed-cache.js'
import { type BlockPlan, packSequence, type SequencePlan } from '../support/packed-sequence.js'
import { cumulative, randomKeys, randomValues, storeAs } from '../support/random-data.js'
import { tolerance } from '../support/tolerance.js'

const codeFormats = ['u2', 'u3', 'u4', 'u8'] as const
const int32Max = 2 ** 31 - 1
const int32Min = -(2 ** 31)

/** What varies between the caches of these tests. */
interface Subject {
  plan: SequencePlan
  nKvHeads: number
  headDim: number
  /** of K and V as they come from the model */
  dtype: FloatDtype
  seed: number
}

const high = { keyFormat: 'u4', valueFormat: 'u4' } as const
const low = { keyFormat: 'u2', valueFormat: 'u2' } as const

const block = (nTokens: number, nSalient: number): BlockPlan => ({
  nTokens,
  nSalient,
  salient: high,
  regular: low,
})

const usual: Subject = {
  plan: { blocks: [block(53, 30)], tail: { format: 'f16', nTokens: 5 } },
  nKvHeads: 2,
  headDim: 32,
  dtype: 'f32',
  seed: 1,
}

const usualPoolBytes = 1 << 16

/** The subject packed, with what all ops on its segments need. */
function pack(tensors: DeviceTensors, subject: Subject, poolBytes = usualPoolBytes) {
  const { nKvHeads, headDim } = subject
  const cache = new PackedCache(tensors, { nKvHeads, headDim, poolBytes })
  const sequence = packSequence(tensors, { cache, ...subject })
  return { cache, sequence, pool: cache.pool, table: tensors.i32(sequence.table) }
}

interface Shape {
  nKvHeads: number
  headDim: number
}

/** Empty tensors for the content of a segment. */
function contentOf(tensors: DeviceTensors, nTokens: number, { nKvHeads, headDim }: Shape) {
  return {
    kCodes: tensors.output('u8', [nKvHeads, nTokens, headDim]),
    vCodes: tensors.output('u8', [nKvHeads, nTokens, headDim]),
    kParams: tensors.output('f32', [nKvHeads, 2, headDim]),
    vParams: tensors.output('f32', [nKvHeads, 2, nTokens]),
    vChannel: tensors.output('f32', [nKvHeads, headDim]),
    positions: tensors.output('i32', [nKvHeads, nTokens]),
  }
}

/** The content that the reference gives a segment, in the shapes of `exportSegment`. */
function expectedContent(segment: Segment, { nKvHeads, headDim }: Shape) {
  if (!('kCodes' in segment && 'vCodes' in segment)) throw new Error('the segment holds no codes')
  const { nTokens } = segment
  const interleave = (scale: ArrayLike<number>, zero: ArrayLike<number>, length: number) =>
    Array.from({ length: nKvHeads }, (_, head) =>
      [scale, zero].map((x) => Array.from(x).slice(head * length, (head + 1) * length)),
    ).flat(2)
  return {
    kCodes: segment.kCodes,
    vCodes: segment.vCodes,
    kParams: interleave(segment.kScale, segment.kZero, headDim),
    vParams: interleave(segment.vScale, segment.vZero, nTokens),
    vChannel: segment.vChannel,
    positions: segment.positions!,
  }
}

async function expectExported(backend: Backend, subject: Subject) {
  const { tensors } = backend
  const { pool, table, sequence } = pack(tensors, subject, 1 << 20)
  for (const [index, segment] of sequence.segments.entries()) {
    if (index === 0) continue // the tail
    const content = contentOf(tensors, segment.nTokens, subject)
    exportSegment({ pool, table, ...content, layer: 0, segment: index })
    const expected = expectedContent(segment, subject)
    for (const name of Object.keys(content) as (keyof typeof content)[]) {
      const actual = await tensors.values(content[name])
      expectIdentical(actual, expected[name], {
        name: `${name} of segment ${index}`,
        shape: content[name].shape,
        seed: subject.seed,
      })
    }
  }
  tensors.dispose()
}

describeBackends('packSegment', (backend) => {
  const pairs = codeFormats.flatMap((keyFormat) =>
    codeFormats.map((valueFormat) => ({ keyFormat, valueFormat })),
  )
  const ranges: QuantRange[] = ['minmax', { norm: 2 }, { norm: 3 }, { norm: 6 }]

  describe('stores what the reference does, bit for bit', () => {
    test.each(pairs)('K $keyFormat, V $valueFormat, in every range', async (formats) => {
      const crossed = { keyFormat: formats.valueFormat, valueFormat: formats.keyFormat }
      for (const [index, keyRange] of ranges.entries()) {
        const valueRange = ranges[(index * 3 + 1) % ranges.length]
        const own = { nTokens: 45, nSalient: 28, salient: formats, regular: crossed }
        const plan = { ...usual.plan, blocks: [{ ...own, keyRange, valueRange }] }
        await expectExported(backend, { ...usual, plan, seed: index })
      }
    })

    test.each(floatDtypes)('rows of %s', async (dtype) => {
      await expectExported(backend, { ...usual, dtype, seed: 3 })
    })

    test.each([0, 1, 2, 15, 16, 17, 31, 63, 64, 65, 127, 600])('%i tokens', async (n) => {
      const blocks = [block(n, n), block(n, Math.floor(n / 2)), block(n, 0)]
      await expectExported(backend, { ...usual, plan: { ...usual.plan, blocks }, seed: n })
    })

    test.each([16, 32, 48, 64, 80, 96, 128, 256, 272, 320, 512])('head_dim %i', async (headDim) => {
      await expectExported(backend, { ...usual, headDim, seed: headDim })
      const ranges = { keyRange: { norm: 3 }, valueRange: { norm: 2 } } as const
      const blocks = [{ ...block(83, 50), ...ranges }]
      await expectExported(backend, { ...usual, plan: { ...usual.plan, blocks }, headDim, seed: 1 })
    })

    test.each([1, 3, 7])('%i KV heads', async (nKvHeads) => {
      await expectExported(backend, { ...usual, nKvHeads, seed: nKvHeads })
    })

    test('several hundred tokens, searched ranges', async () => {
      const blocks = [
        { ...block(600, 370), keyRange: { norm: 3 }, valueRange: { norm: 2 } },
      ] as const
      await expectExported(backend, { ...usual, plan: { ...usual.plan, blocks }, seed: 4 })
    })

    test('several blocks', async () => {
      const blocks = [block(83, 50), block(33, 20), block(17, 17)]
      await expectExported(backend, { ...usual, plan: { ...usual.plan, blocks }, seed: 9 })
    })
  })

  test.each([1, 3])('does the same bit for bit with %i threads', async (threads) => {
    await backend.withDevice({ threads }, (device, tensors) =>
      expectExported({ ...backend, device, tensors }, usual),
    )
  })
})

describeBackends('packSegments', (backend) => {
  interface Classes extends Shape {
    nTokens: number
    nSalient: number
    ranges: readonly [k: QuantRange, v: QuantRange][]
    dtype: FloatDtype
  }
  const plain: Classes = {
    ...{ nTokens: 53, nSalient: 30, nKvHeads: 2, headDim: 32, dtype: 'f32' },
    ranges: [
      ['minmax', 'minmax'],
      ['minmax', 'minmax'],
    ],
  }

  /** Rows, the ids of both classes, and a table with a segment for each. */
  function classesOf(tensors: DeviceTensors, of: Classes) {
    const { nTokens, nSalient, nKvHeads, headDim, ranges, dtype } = of
    const cache = new PackedCache(tensors, { nKvHeads, headDim, poolBytes: 1 << 20 })
    const shared = { start: 0, span: nTokens }
    const words = cache.table({ format: 'f16', nTokens: 0, start: nTokens }, [
      { ...high, ...shared, nTokens: nSalient, bitmap: 'set' },
      { ...low, ...shared, nTokens: nTokens - nSalient, bitmap: 'clear' },
    ])
    const rows = (random: typeof randomKeys, seed: number) => {
      const { stored } = storeAs(dtype, random(seed, { nTokens, nKvHeads, headDim }))
      return tensors.input(dtype, stored as Uint16Array, [nTokens, nKvHeads, headDim])
    }
    const ids = [nSalient, nTokens - nSalient].map(() => [] as number[])
    for (let head = 0; head < nKvHeads; head++) {
      // Every other row of a head's own beginning is salient, until there are enough.
      const isSalient = new Uint8Array(nTokens)
      for (let i = 0, row = head; i < nSalient; i++, row += 2) {
        while (isSalient[row % nTokens]) row++
        isSalient[row % nTokens] = 1
      }
      for (const [row, salient] of isSalient.entries()) ids[salient ? 0 : 1].push(row)
    }
    const classes = ids.map((own, index) => ({
      ids: tensors.i32(own, [nKvHeads, own.length / nKvHeads]),
      segment: index + 1,
      keyRange: ranges[index][0],
      valueRange: ranges[index][1],
    }))
    const source = { k: rows(randomKeys, 1), v: rows(randomValues, 2) }
    return { pool: cache.pool, ...source, table: tensors.i32(words), layer: 0, classes }
  }

  /** The very bytes that `packSegment` writes, class by class. */
  async function expectAlone(changes: Partial<Classes>) {
    const { tensors, device } = backend
    const { pool, classes, ...rest } = classesOf(tensors, { ...plain, ...changes })
    const alone = tensors.own(device.tensor('u8', pool.shape))
    alone.write(new Uint8Array(pool.length).fill(0xff))
    for (const own of classes) packSegment({ ...rest, pool: alone, ...own })
    for (const chosen of [classes, classes.slice(0, 1), classes.slice(1)]) {
      pool.write(new Uint8Array(pool.length).fill(0xff))
      packSegments({ ...rest, pool, classes: chosen })
      if (chosen.length < classes.length) {
        packSegments({ ...rest, pool, classes: classes.filter((own) => !chosen.includes(own)) })
      }
      expectIdentical(await pool.read(), await alone.read(), { name: 'pool', shape: pool.shape })
    }
    tensors.dispose()
  }

  test.each([
    [0, 0],
    [1, 0],
    [1, 1],
    [17, 16],
    [64, 63],
    [600, 370],
  ])('%i tokens, %i salient', async (nTokens, nSalient) => {
    await expectAlone({ nTokens, nSalient })
  })
  test.each([16, 80, 128, 256, 320, 512])('head_dim %i', async (headDim) => {
    await expectAlone({ headDim, nKvHeads: 3 })
  })
  test.each(floatDtypes)('rows of %s', async (dtype) => {
    await expectAlone({ dtype })
  })
  const norm = (p: 2 | 3) => ({ norm: p }) as QuantRange
  test.each<[string, Classes['ranges']]>([
    [
      'both',
      [
        [norm(3), norm(2)],
        [norm(2), norm(3)],
      ],
    ],
    [
      'K of one, V of the other',
      [
        [norm(3), 'minmax'],
        ['minmax', norm(2)],
      ],
    ],
    [
      'V of one',
      [
        ['minmax', norm(2)],
        ['minmax', 'minmax'],
      ],
    ],
  ])('ranges are searched of %s', async (_, ranges) => {
    await expectAlone({ nTokens: 150, nSalient: 15, ranges })
  })

  type Call = ReturnType<typeof classesOf>
  const wrong: [string, (call: Call, t: DeviceTensors) => object, ErrorCode, string][] = [
    ['no classes', () => ({ classes: [] }), 'ERR_ZC_ARGUMENT', 'classes'],
    [
      'three of them',
      ({ classes }) => ({ classes: [...classes, classes[0]] }),
      'ERR_ZC_ARGUMENT',
      'classes',
    ],
    [
      'a segment twice',
      ({ classes: [own] }) => ({ classes: [own, own] }),
      'ERR_ZC_ARGUMENT',
      'classes',
    ],
    [
      'the tail, as the second',
      ({ classes: [own] }) => ({ classes: [own, { ...own, segment: 0 }] }),
      'ERR_ZC_ARGUMENT',
      'classes[1].segment',
    ],
    [
      'ids of other heads, as the first',
      ({ classes: [own] }, t) => ({ classes: [{ ...own, ids: t.output('i32', [3, 30]) }] }),
      'ERR_ZC_SHAPE',
      'classes[0].ids',
    ],
    ['v of other rows', (_, t) => ({ v: t.output('f32', [52, 2, 32]) }), 'ERR_ZC_SHAPE', 'v'],
  ]
  test.each(wrong)('refuses %s', (_, fault, code, argument) => {
    const call = classesOf(backend.tensors, plain)
    const args = { ...call, ...fault(call, backend.tensors) }
    expectRefused(() => packSegments(args), { code, op: 'packSegments', argument })
  })
  test('rejects ids of one class that do not rise, and packs what comes next', async () => {
    const { tensors, device } = backend
    const { classes, ...rest } = classesOf(tensors, plain)
    const ids = tensors.i32(await classes[1].ids.read(), classes[1].ids.shape)
    ids.write(Int32Array.of(52), 3)
    packSegments({ ...rest, classes: [classes[0], { ...classes[1], ids }] })
    const fault = { code: 'ERR_ZC_ARGUMENT', op: 'packSegments', message: /^ids: / } as const
    await expectRejected(device.sync(), fault)
    packSegments({ ...rest, classes })
    await device.sync()
  })
})

describeBackends('importSegment', (backend) => {
  /** Segments imported into a pool that nothing was written to give the very bytes of the packed ones. */
  async function expectImported(changes: Partial<Subject>) {
    const { tensors, device } = backend
    const subject = { ...usual, ...changes }
    subject.plan = { ...subject.plan, tail: { format: 'f16', nTokens: 0 } }
    const poolBytes = 1 << 18
    const { pool, table, sequence } = pack(tensors, subject, poolBytes)
    const fresh = tensors.own(device.tensor('u8', [poolBytes]))
    fresh.write(new Uint8Array(poolBytes).fill(0xff))
    for (const [index, { nTokens }] of sequence.segments.entries()) {
      if (index === 0) continue // the tail
      const target = { table, ...contentOf(tensors, nTokens, subject), layer: 0, segment: index }
      exportSegment({ pool, ...target })
      importSegment({ pool: fresh, ...target })
    }
    expectIdentical(await fresh.read(), await pool.read(), { name: 'pool', shape: [poolBytes] })
    tensors.dispose()
  }

  test.each(codeFormats)('restores the pages of K %s beside each V', async (keyFormat) => {
    const blocks = codeFormats.map((valueFormat) => {
      const formats = { keyFormat, valueFormat }
      return { nTokens: 37, nSalient: 21, salient: formats, regular: formats }
    })
    await expectImported({ plan: { ...usual.plan, blocks } })
  })

  test.each([0, 1, 15, 16, 17])('%i tokens', async (n) => {
    const blocks = [block(n, n), block(n, 0), block(33, n)]
    await expectImported({ plan: { ...usual.plan, blocks } })
  })

  test.each([16, 48, 256, 320, 512])('head_dim %i', async (headDim) => {
    await expectImported({ headDim })
  })

  test.each([1, 3])('with %i threads', async (threads) => {
    await backend.withDevice({ threads }, async (device, tensors) => {
      const { pool, table } = pack(tensors, usual)
      const content = contentOf(tensors, 30, usual)
      const before = await pool.read()
      exportSegment({ pool, table, ...content, layer: 0, segment: 1 })
      importSegment({ pool, table, ...content, layer: 0, segment: 1 })
      await device.sync()
      expectIdentical(await pool.read(), before, { name: 'pool', shape: [usualPoolBytes] })
    })
  })

  type Content = Record<keyof ReturnType<typeof expectedContent>, number[]>
  const bad: [string, keyof Content, (values: number[]) => void][] = [
    ['a code of 5 bits for K', 'kCodes', (x) => x.fill(16, 70, 71)],
    ['a code of 5 bits for V, in the last slot', 'vCodes', (x) => x.fill(255, -1)],
    ['a K scale between two halves', 'kParams', (x) => x.fill(1.0001, 3, 4)],
    ['a K zero that is NaN', 'kParams', (x) => x.fill(Number.NaN, -1)],
    ['a V scale beyond float16', 'vParams', (x) => x.fill(1e6, 0, 1)],
    ['an infinite V zero', 'vParams', (x) => x.fill(-Infinity, -1)],
    ['a channel too small for float16', 'vChannel', (x) => x.fill(1e-9, 5, 6)],
    ['a position before the segment', 'positions', (x) => x.fill(-1, 0, 1)],
    ['a position behind it', 'positions', (x) => x.fill(53, 29, 30)],
    ['a position of 2^31 - 1', 'positions', (x) => x.fill(int32Max, -1)],
    ['a position of -2^31', 'positions', (x) => x.fill(int32Min, 30, 31)],
    ['the same position twice', 'positions', (x) => x.copyWithin(7, 6, 7)],
    ['positions out of order', 'positions', (x) => x.splice(3, 2, x[4], x[3])],
  ]
  test.each(bad)('rejects %s', async (_, name, damage) => {
    const { tensors, device } = backend
    const packed = pack(tensors, usual)
    const call = importCall(tensors, packed)
    const values = Array.from(expectedContent(packed.sequence.segments[1], usual)[name])
    damage(values)
    const { dtype, shape } = call[name]
    const typed = { u8: Uint8Array, f32: Float32Array, i32: Int32Array }[dtype as 'u8']
    importSegment({ ...call, [name]: tensors.input(dtype as 'u8', typed.from(values), shape) })
    const message = new RegExp(`^${name}: `)
    const fault = { code: 'ERR_ZC_ARGUMENT', op: 'importSegment', message } as const
    await expectRejected(device.sync(), fault)
  })

  test.each([
    ['another start than the positions', 'start', 1],
    ['a span that ends before them', 'span', 40],
  ] as const)('rejects a table of %s', async (_, name, value) => {
    const { tensors, device } = backend
    const packed = pack(tensors, usual)
    const table = packed.sequence.table.slice()
    for (const head of [0, 1]) table[packed.cache.wordAt(table, 1, name, head)] = value
    importSegment(importCall(tensors, packed, table))
    const message = /^positions: /
    const fault = { code: 'ERR_ZC_ARGUMENT', op: 'importSegment', message } as const
    await expectRejected(device.sync(), fault)
  })

  test('rejects regular positions that are not the clear bits', async () => {
    const { tensors, device } = backend
    const { pool, table, sequence } = pack(tensors, usual)
    const content = contentOf(tensors, 23, usual)
    const target = { pool, table, layer: 0, segment: 2 }
    exportSegment({ ...target, ...content })
    const positions = Array.from(sequence.segments[2].positions!)
    positions[4] = sequence.segments[1].positions![0]
    importSegment({ ...target, ...content, positions: tensors.i32(positions, [2, 23]) })
    const message = /^positions: /
    const fault = { code: 'ERR_ZC_ARGUMENT', op: 'importSegment', message } as const
    await expectRejected(device.sync(), fault)
  })
})

/** The value of elements that no op has written, by dtype. */
const canary = {
  f32: new Float32Array(Uint32Array.of(0x5a5a5a5a).buffer)[0],
  f16: fromF16([0x5a5a])[0],
  bf16: fromBf16([0x5a5a])[0],
} as const

describeBackends('unpackSegment', (backend) => {
  const allowed = {
    f32: tolerance.dequantize,
    f16: tolerance.f16Output,
    bf16: tolerance.bf16Output,
  }

  async function expectRestored(subject: Subject, dtype: FloatDtype, base: number) {
    const { tensors } = backend
    const { pool, table, sequence } = pack(tensors, subject, 1 << 20)
    const { nKvHeads, headDim, seed } = subject
    const shape = [sequence.length - base, nKvHeads, headDim]
    for (const [index, segment] of sequence.segments.entries()) {
      if (Array.from(segment.positions!).some((position) => position < base)) continue
      const k = tensors.output(dtype, shape)
      const v = tensors.output(dtype, shape)
      unpackSegment({ pool, table, k, v, layer: 0, segment: index, base })
      const pairs = [
        { name: 'k', tensor: k, rowsOf: keyRows },
        { name: 'v', tensor: v, rowsOf: valueRows },
      ]
      for (const { name, tensor, rowsOf } of pairs) {
        const actual = await tensors.values(tensor)
        const expected = new Float64Array(actual.length).fill(canary[dtype])
        const written = new Set<number>()
        for (let head = 0; head < nKvHeads; head++) {
          const rows = rowsOf(segment, head, headDim)
          for (let slot = 0; slot < segment.nTokens; slot++) {
            const row = segment.positions![head * segment.nTokens + slot] - base
            const at = row * nKvHeads + head
            written.add(at)
            expected.set(rows.subarray(slot * headDim, (slot + 1) * headDim), at * headDim)
          }
        }
        const untouched = actual.filter((_, i) => !written.has(Math.floor(i / headDim)))
        expect(untouched.every((x) => x === canary[dtype])).toBe(true)
        expectClose(actual, expected, {
          name: `${dtype} ${name} of segment ${index}`,
          shape,
          tolerance: allowed[dtype],
          seed,
        })
      }
    }
    tensors.dispose()
  }

  test.each(floatDtypes)('restores rows in %s and leaves the others alone', async (dtype) => {
    const blocks = [block(83, 50), block(33, 20), block(17, 17)]
    await expectRestored({ ...usual, plan: { ...usual.plan, blocks } }, dtype, 0)
  })

  test.each(codeFormats)('%s, beside each other width', async (keyFormat) => {
    const plan = {
      blocks: codeFormats.map((valueFormat) => {
        const formats = { keyFormat, valueFormat }
        return { nTokens: 19, nSalient: 19, salient: formats, regular: formats }
      }),
      tail: { format: 'f32', nTokens: 3 },
    } as const
    await expectRestored({ ...usual, plan }, 'f32', 0)
  })

  test.each([16, 96, 256, 320, 512])('head_dim %i', async (headDim) => {
    await expectRestored({ ...usual, headDim }, 'f32', 0)
  })

  test('counts rows from the base', async () => {
    const blocks = [block(33, 20), block(17, 9)]
    await expectRestored({ ...usual, plan: { ...usual.plan, blocks } }, 'f32', 33)
  })

  test('a segment without tokens', async () => {
    const plan = { blocks: [block(9, 0)], tail: { format: 'f16', nTokens: 0 } } as const
    await expectRestored({ ...usual, plan }, 'f32', 0)
  })

  test.each([
    ['before the first row', 1, 60],
    ['after the last row', 0, 52],
    ['anywhere, there being no rows', 0, 0],
    ['before a base of 2^31 - 1', int32Max, 60],
    ['after a base of -2^31', int32Min, 60],
  ])('rejects positions %s', async (_, base, rows) => {
    const { tensors, device } = backend
    const { pool, table } = pack(tensors, usual)
    const k = tensors.output('f32', [rows, 2, 32])
    const v = tensors.output('f32', [rows, 2, 32])
    for (const segment of [1, 2]) unpackSegment({ pool, table, k, v, layer: 0, segment, base })
    const fault = { code: 'ERR_ZC_ARGUMENT', op: 'unpackSegment', message: /^k: / } as const
    await expectRejected(device.sync(), fault)
  })
})

describeBackends('KV heads of several layers', (backend) => {
  const [nLayers, nKvHeads, headDim, nTokens, nSalient] = [4, 3, 32, 53, 30]
  const width = nKvHeads * headDim

  /** A cache of several layers, its tail full, with a segment of each class to pack it into. */
  function cacheOf(tensors: DeviceTensors) {
    const cache = new PackedCache(tensors, { nKvHeads, headDim, nLayers })
    const span = { start: 9, span: nTokens }
    const words = cache.table({ format: 'f16', nTokens, start: 9 }, [
      { ...high, ...span, nTokens: nSalient, bitmap: 'set' },
      { ...low, ...span, nTokens: nTokens - nSalient, bitmap: 'clear' },
    ])
    const rows = { starts: tensors.i32([0]), cuSeqlens: tensors.i32([0, nTokens]) }
    for (let layer = 0; layer < nLayers; layer++) {
      const of = (make: typeof randomKeys, seed: number) =>
        tensors.f32(make(seed, { nTokens, nKvHeads, headDim }), [nTokens, nKvHeads, headDim])
      const k = of(randomKeys, layer + 1)
      const v = of(randomValues, layer + 50)
      appendKv({ k, v, ...rows, pool: cache.pool, tables: tensors.i32(words), layer })
    }
    return { cache, words, table: tensors.i32(words) }
  }

  /** Every other row of a head's own beginning is salient, then the first of the others. */
  function idsOf(entry: number, isSalient: boolean): number[] {
    const chosen = new Set<number>()
    for (let i = 0; i < nSalient; i++) {
      let row = (entry + 2 * i) % nTokens
      while (chosen.has(row)) row = (row + 1) % nTokens
      chosen.add(row)
    }
    return [...new Array(nTokens).keys()].filter((row) => chosen.has(row) === isSalient)
  }

  /** Of layers [first, first + count): the tail's rows, packed. The bytes of the pool, and the rows. */
  async function packedBy(slices: readonly (readonly [first: number, count: number])[]) {
    const { tensors } = backend
    const { cache, table } = cacheOf(tensors)
    const { pool } = cache
    const unpacked: { first: number; count: number; k: Float64Array; v: Float64Array }[] = []
    for (const [layer, count] of slices) {
      const k = tensors.output('f16', [nTokens, count * nKvHeads, headDim])
      const v = tensors.output('f16', [nTokens, count * nKvHeads, headDim])
      unpackSegment({ pool, table, k, v, layer, segment: 0, base: 9 })
      const entries = Array.from({ length: count * nKvHeads }, (_, i) => layer * nKvHeads + i)
      const classes = [true, false].map((isSalient, index) => {
        const ids = entries.flatMap((entry) => idsOf(entry, isSalient))
        return { ids: tensors.i32(ids, [entries.length, ids.length / entries.length]), index }
      })
      packSegments({
        ...{ k, v, pool, table, layer },
        classes: classes.map(({ ids, index }) => ({ ids, segment: index + 1 })),
      })
      const read = async (x: typeof k) => new Float64Array(await tensors.values(x))
      unpacked.push({ first: layer, count, k: await read(k), v: await read(v) })
      for (const segment of [1, 2]) {
        unpackSegment({ pool, table, k, v, layer, segment, base: 9 })
      }
      unpacked.push({ first: layer, count, k: await read(k), v: await read(v) })
      for (const { ids, index } of classes) {
        const content = contentOf(tensors, ids.shape[1], { nKvHeads: entries.length, headDim })
        exportSegment({ pool, table, ...content, layer, segment: index + 1 })
        const positions = await content.positions.read()
        expect([...positions]).toEqual(Array.from(await ids.read(), (row) => row + 9))
        importSegment({ pool, table, ...content, layer, segment: index + 1 })
      }
    }
    return { pool: await pool.read(), unpacked }
  }

  test('are unpacked and packed as layer by layer, to the bit', async () => {
    const alone = await packedBy([
      [0, 1],
      [1, 1],
      [2, 1],
      [3, 1],
    ])
    for (const slices of [
      [[0, 4]],
      [
        [0, 1],
        [1, 3],
      ],
      [
        [2, 2],
        [0, 2],
      ],
    ] as const) {
      const { pool, unpacked } = await packedBy(slices)
      expectIdentical(pool, alone.pool, { name: 'pool', shape: [pool.length] })
      for (const [index, { first, count, k, v }] of unpacked.entries()) {
        for (let layer = first; layer < first + count; layer++) {
          const own = alone.unpacked[2 * layer + (index % 2)]
          const rowsOf = (x: Float64Array) =>
            x.filter((_, i) => Math.floor(i / width) % count === layer - first)
          expectIdentical(rowsOf(k), own.k, { name: 'k', shape: [nTokens, nKvHeads, headDim] })
          expectIdentical(rowsOf(v), own.v, { name: 'v', shape: [nTokens, nKvHeads, headDim] })
        }
      }
    }
  })

  test.each([
    ['4 KV heads of layers of 3', 0, 4],
    ['more layers than there are', 3, 6],
    ['all layers from another one on', 1, 12],
    ['less than a layer', 0, 2],
    ['layers from -1 on', -1, 6],
    ['layers from 2^31 - 1 on', int32Max, 6],
    ['layers from -2^31 on', int32Min, 6],
  ])('%s, at the next sync', async (_, layer, n) => {
    const { tensors, device } = backend
    const { cache, table } = cacheOf(tensors)
    await device.sync()
    const { pool } = cache
    const rows = () => tensors.output('f32', [nTokens, n, headDim])
    const ids = tensors.i32(new Int32Array(n), [n, 1])
    const code = 'ERR_ZC_ARGUMENT'
    const message = /^table: has 4 layers and 3 kv heads, expected /
    unpackSegment({ pool, table, k: rows(), v: rows(), layer, segment: 0, base: 9 })
    await expectRejected(device.sync(), { code, op: 'unpackSegment', message })
    packSegment({ k: rows(), v: rows(), ids, pool, table, layer, segment: 1 })
    await expectRejected(device.sync(), { code, op: 'packSegment', message })
    const content = contentOf(tensors, nSalient, { nKvHeads: n, headDim })
    exportSegment({ pool, table, ...content, layer, segment: 1 })
    await expectRejected(device.sync(), { code, op: 'exportSegment', message })
    importSegment({ pool, table, ...content, layer, segment: 1 })
    await expectRejected(device.sync(), { code, op: 'importSegment', message })
  })

  test('a fault tells the KV head as counted from the first layer', async () => {
    const { tensors, device } = backend
    const { cache, words } = cacheOf(tensors)
    await device.sync()
    words[cache.wordAt(words, 0, 'keyFormat', 1, 2)] = 5
    const k = tensors.output('f32', [nTokens, 4 * nKvHeads, headDim])
    const place = { pool: cache.pool, table: tensors.i32(words), layer: 0, segment: 0, base: 9 }
    unpackSegment({ ...place, k, v: tensors.output('f32', k.shape) })
    await expectRejected(device.sync(), {
      ...{ code: 'ERR_ZC_ARGUMENT', op: 'unpackSegment' },
      message: /^table: layer 0, kv head 7, segment 0 is damaged/,
    })
  })
})

describeBackends('appendKv', (backend) => {
  const shape = { nKvHeads: 3, headDim: 32 }
  const width = shape.nKvHeads * shape.headDim

  /** What a tail of this format holds of f32 or 16-bit values. */
  function stored(format: FloatDtype, values: ArrayLike<number>): Float64Array {
    const finite = Float64Array.from(values, (x) =>
      format === 'f16' && !Number.isNaN(x) ? Math.min(Math.max(x, -MAX_F16), MAX_F16) : x,
    )
    return storeAs(format, finite).values
  }

  interface Rows {
    k: ArrayLike<number>
    v: ArrayLike<number>
  }

  /** Appends the rows of several sequences in steps, then reads each tail back. */
  async function expectTails(
    format: FloatDtype,
    dtype: FloatDtype,
    steps: readonly (readonly number[])[],
    make = (seed: number, nTokens: number): Rows => ({
      k: randomKeys(seed, { ...shape, nTokens }),
      v: randomValues(seed + 1, { ...shape, nTokens }),
    }),
  ) {
    const { tensors } = backend
    const nSequences = steps[0].length
    const totals = steps[0].map((_, s) => steps.reduce((sum, lengths) => sum + lengths[s], 0))
    const cache = new PackedCache(tensors, shape)
    const tables = totals.map((capacity, s) =>
      cache.table({ format, nTokens: 0, start: 10 * s, capacity }, []),
    )
    const held = Array.from({ length: nSequences }, () => ({
      k: [] as number[],
      v: [] as number[],
    }))
    for (const [step, lengths] of steps.entries()) {
      const cuSeqlens = cumulative(lengths)
      const total = cuSeqlens.at(-1)!
      const rows = make(step * 10 + 1, total)
      const k = storeAs(dtype, rows.k)
      const v = storeAs(dtype, rows.v)
      for (const [s, own] of held.entries()) {
        const [first, last] = [cuSeqlens[s] * width, cuSeqlens[s + 1] * width]
        own.k.push(...stored(format, k.values.subarray(first, last)))
        own.v.push(...stored(format, v.values.subarray(first, last)))
        tables[s][kvTable.tailLength] += lengths[s]
      }
      const { words, starts } = stackTables(tables)
      appendKv({
        k: tensors.input(dtype, k.stored as Uint16Array, [total, shape.nKvHeads, shape.headDim]),
        v: tensors.input(dtype, v.stored as Uint16Array, [total, shape.nKvHeads, shape.headDim]),
        pool: cache.pool,
        tables: tensors.i32(words),
        starts: tensors.i32(starts),
        cuSeqlens: tensors.i32(cuSeqlens),
        layer: 0,
      })
    }
    for (const [s, own] of held.entries()) {
      const table = tensors.i32(tables[s])
      const out = [totals[s], shape.nKvHeads, shape.headDim]
      const k = tensors.output('f32', out)
      const v = tensors.output('f32', out)
      unpackSegment({ pool: cache.pool, table, k, v, layer: 0, segment: 0, base: 10 * s })
      expectIdentical(await tensors.values(k), own.k, { name: `k of sequence ${s}`, shape: out })
      expectIdentical(await tensors.values(v), own.v, { name: `v of sequence ${s}`, shape: out })
    }
    tensors.dispose()
  }

  describe.each(floatDtypes)('a tail of %s', (format) => {
    test.each(floatDtypes)('holds rows of %s exactly as it can', async (dtype) => {
      await expectTails(format, dtype, [[21], [1], [1], [10], [31], [0], [7]])
    })

    test('several sequences', async () => {
      const steps = [
        [5, 0, 17, 16],
        [1, 1, 1, 1],
        [0, 3, 40, 15],
      ]
      await expectTails(format, 'f32', steps)
    })
  })

  test('an f16 tail saturates', async () => {
    const special = [1e6, -1e6, 65504, 65519.9, 65520, -65520, Infinity, -Infinity, 1e-9, -0, 3e-8]
    const make = (_: number, nTokens: number) => ({
      k: Array.from({ length: nTokens * width }, (_, i) => special[i % special.length]),
      v: Array.from({ length: nTokens * width }, (_, i) => special[(i + 5) % special.length]),
    })
    await expectTails('f16', 'f32', [[4], [1]], make)
  })

  describe('masked sequences', () => {
    const lengths = [3, 1, 17, 2]
    const poolBytes = 1 << 17

    /** A pool after the rows of four sequences were appended, those masked left out. */
    async function appended(masked: readonly number[], leftOut: readonly number[]) {
      const { tensors } = backend
      const cache = new PackedCache(tensors, { ...shape, poolBytes })
      const tables = lengths.map((nTokens) => cache.table({ format: 'f16', nTokens, start: 0 }, []))
      const { words, starts } = stackTables(tables)
      for (const index of masked) starts[index] = -1
      const kept = lengths.map((_, i) => i).filter((i) => !leftOut.includes(i))
      const cuSeqlens = cumulative(lengths)
      const rowsOf = (seed: number, make: typeof randomKeys) => {
        const all = make(seed, { ...shape, nTokens: cuSeqlens.at(-1)! })
        return kept.flatMap((i) => [
          ...all.subarray(cuSeqlens[i] * width, cuSeqlens[i + 1] * width),
        ])
      }
      const own = cumulative(kept.map((i) => lengths[i]))
      const extents = [own.at(-1)!, shape.nKvHeads, shape.headDim]
      appendKv({
        k: tensors.f32(rowsOf(1, randomKeys), extents),
        v: tensors.f32(rowsOf(2, randomValues), extents),
        pool: cache.pool,
        tables: tensors.i32(words),
        starts: tensors.i32(kept.map((i) => starts[i])),
        cuSeqlens: tensors.i32(own),
        layer: 0,
      })
      return cache.pool.read()
    }

    test.each([[[0]], [[3]], [[1, 2]], [[0, 1, 2, 3]]])(
      '%j leave the pool as if they were not there',
      async (masked) => {
        const pool = await appended(masked, [])
        const expected = await appended([], masked)
        expectIdentical(pool, expected, { name: 'pool', shape: [poolBytes], seed: 1 })
        const untouched = expected.every((byte) => byte === 0xff)
        expect(untouched).toBe(masked.length === lengths.length)
      },
    )

    test.each([-2, int32Max, int32Min])('a start of %i is no mask', async (start) => {
      const { tensors, device } = backend
      const call = appendCall(tensors, pack(tensors, usual))
      appendKv({ ...call, starts: tensors.i32([start]) })
      const fault = { code: 'ERR_ZC_ARGUMENT', op: 'appendKv', message: /^starts: / } as const
      await expectRejected(device.sync(), fault)
    })

    test('a start whose header does not fit', async () => {
      const { tensors, device } = backend
      const call = appendCall(tensors, pack(tensors, usual))
      appendKv({ ...call, starts: tensors.i32([call.tables.length - 7]) })
      const fault = { code: 'ERR_ZC_ARGUMENT', op: 'appendKv', message: /^starts: / } as const
      await expectRejected(device.sync(), fault)
    })
  })

  test('no sequences, and no rows', async () => {
    await expectTails('f16', 'f32', [[0, 0]])
    const { tensors, device } = backend
    const rows = tensors.output('f32', [0, 3, 32])
    const tables = tensors.i32([])
    const starts = tensors.i32([])
    const pool = tensors.output('u8', [64])
    appendKv({ k: rows, v: rows, pool, tables, starts, cuSeqlens: tensors.i32([0]), layer: 0 })
    await device.sync()
  })

  test.each([[[1, 1]], [[0, 2]], [[0, 0]], [[0, -1]], [[int32Min, 1]]])(
    'rejects cuSeqlens %j of one row',
    async (cuSeqlens) => {
      const { tensors, device } = backend
      const call = appendCall(tensors, pack(tensors, usual))
      appendKv({ ...call, cuSeqlens: tensors.i32(cuSeqlens) })
      const fault = { code: 'ERR_ZC_ARGUMENT', op: 'appendKv', message: /^cuSeqlens: / } as const
      await expectRejected(device.sync(), fault)
    },
  )

  test('rejects more rows than the tail has', async () => {
    const { tensors, device } = backend
    const packed = pack(tensors, usual)
    const rows = tensors.output('f32', [6, 2, 32]).write(new Float32Array(6 * 64))
    const cuSeqlens = tensors.i32([0, 6])
    appendKv({ ...appendCall(tensors, packed), k: rows, v: rows, cuSeqlens })
    await expectRejected(device.sync(), {
      code: 'ERR_ZC_ARGUMENT',
      op: 'appendKv',
      message: /tail/,
    })
  })
})

type Packed = ReturnType<typeof pack>

/** One more call of each op on the usual subject, right but for its table. */
function appendCall(tensors: DeviceTensors, { pool, sequence }: Packed, table = sequence.table) {
  const rows = tensors.f32(new Float32Array(64), [1, 2, 32])
  const tables = tensors.i32(table)
  const starts = tensors.i32([0])
  return { k: rows, v: rows, pool, tables, starts, cuSeqlens: tensors.i32([0, 1]), layer: 0 }
}

function packCall(tensors: DeviceTensors, { pool, sequence }: Packed, table = sequence.table) {
  const rows = tensors.f32(new Float32Array(53 * 64), [53, 2, 32])
  const ids = tensors.i32(sequence.packed[0].rows, [2, 30])
  return { k: rows, v: rows, ids, pool, table: tensors.i32(table), layer: 0, segment: 1 }
}

function unpackCall(tensors: DeviceTensors, { pool, sequence }: Packed, table = sequence.table) {
  const k = tensors.output('f32', [sequence.length, 2, 32])
  const v = tensors.output('f32', [sequence.length, 2, 32])
  return { k, v, pool, table: tensors.i32(table), layer: 0, segment: 1, base: 0 }
}

function exportCall(tensors: DeviceTensors, { pool, sequence }: Packed, table = sequence.table) {
  const content = contentOf(tensors, 30, usual)
  return { ...content, pool, table: tensors.i32(table), layer: 0, segment: 1 }
}

function importCall(tensors: DeviceTensors, packed: Packed, table = packed.sequence.table) {
  const expected = expectedContent(packed.sequence.segments[1], usual)
  const content = contentOf(tensors, 30, usual)
  for (const name of ['kCodes', 'vCodes'] as const)
    content[name].write(Uint8Array.from(expected[name]))
  for (const name of ['kParams', 'vParams', 'vChannel'] as const)
    content[name].write(Float32Array.from(expected[name]))
  content.positions.write(Int32Array.from(expected.positions))
  return { ...content, pool: packed.pool, table: tensors.i32(table), layer: 0, segment: 1 }
}

function mixedCall(tensors: DeviceTensors, { pool, sequence }: Packed, table = sequence.table) {
  return {
    q: tensors.f32(new Float32Array(4 * 32), [1, 4, 32]),
    out: tensors.output('f32', [1, 4, 32]),
    lse: tensors.output('f32', [1, 4]),
    pool,
    tables: tensors.i32(table),
    starts: tensors.i32([0]),
    cuSeqlens: tensors.i32([0, 1]),
    positions: tensors.i32([sequence.length - 1]),
    layer: 0,
    scale: 1,
    slidingWindow: 9,
  }
}

describeBackends('a damaged page table', (backend) => {
  const ops: Record<string, (tensors: DeviceTensors, packed: Packed, table: Int32Array) => void> = {
    appendKv: (...args) => appendKv(appendCall(...args)),
    packSegment: (...args) => packSegment(packCall(...args)),
    unpackSegment: (...args) => unpackSegment(unpackCall(...args)),
    exportSegment: (...args) => exportSegment(exportCall(...args)),
    importSegment: (...args) => importSegment(importCall(...args)),
    mixedAttention: (...args) => mixedAttention(mixedCall(...args)),
  }
  const units = usualPoolBytes / kvTable.unitBytes
  /** The segment that each op of these tests works on. */
  const segmentOf = (op: string) => (op === 'appendKv' ? 0 : 1)
  type Word = Parameters<PackedCache['wordAt']>[2]
  type Damage = (table: Int32Array, packed: Packed, segment: number) => void

  /** Every KV head's word set to a value: which head is found first does not matter. */
  const word =
    (name: Word, value: number, kvHead?: number): Damage =>
    (table, { cache }, segment) => {
      for (const head of kvHead === undefined ? [0, 1] : [kvHead]) {
        table[cache.wordAt(table, segment, name, head)] = value
      }
    }
  const header =
    (index: number, value: number): Damage =>
    (table) => {
      table[index] = value
    }
  const page =
    (unit: number, kvHead: number, isFirst = false): Damage =>
    (table, { cache, sequence }, segment) => {
      const nPages = Math.ceil(sequence.segments[segment].nTokens / kvTable.pageTokens)
      const index = isFirst ? 0 : nPages - 1
      table[table[cache.wordAt(table, segment, 'pagesBegin', kvHead)] + index] = unit
    }

  const everyOp = Object.keys(ops)
  const onSegments = everyOp.filter((op) => op !== 'appendKv')
  /** Attention with a sliding window need not look at pages before it. */
  const onAllPages = onSegments.filter((op) => op !== 'mixedAttention')
  const damages: [string, readonly string[], Damage][] = [
    ...[0, -1, int32Min].map((n): [string, readonly string[], Damage] => [
      `${n} layers`,
      everyOp,
      header(kvTable.layers, n),
    ]),
    ['2^31 - 1 layers', everyOp, header(kvTable.layers, int32Max)],
    ['a layer more than there are words', everyOp, header(kvTable.layers, 2 ** 20)],
    ...[0, 3, -1, int32Max].map((n): [string, readonly string[], Damage] => [
      `${n} KV heads`,
      everyOp,
      header(kvTable.kvHeads, n),
    ]),
    // mixedAttention knows of no other number than the table's
    ['1 KV head', everyOp.filter((op) => op !== 'mixedAttention'), header(kvTable.kvHeads, 1)],
    ...[0, -1, int32Min, int32Max].map((n): [string, readonly string[], Damage] => [
      `at most ${n} segments`,
      everyOp,
      header(kvTable.maxSegments, n),
    ]),
    [
      'a size that is 0 modulo 2^64 words',
      everyOp,
      (table) => {
        table[kvTable.layers] = 2 ** 30
        table[kvTable.maxSegments] = 2 ** 30 - 1
      },
    ],
    ...[-1, 10_000, int32Max, int32Max - 14, int32Max - 15, int32Min].map(
      (n): [string, readonly string[], Damage] => [
        `a tail of ${n} tokens`,
        ['appendKv', 'mixedAttention'],
        header(kvTable.tailLength, n),
      ],
    ),
    ...[-1, 10_000, int32Max, int32Max - 14, int32Max - 15, int32Min].map(
      (n): [string, readonly string[], Damage] => [
        `a segment of ${n} tokens`,
        onSegments,
        word('nTokens', n),
      ],
    ),
    ...[-1, int32Max, int32Min].map((n): [string, readonly string[], Damage] => [
      `pages listed from word ${n} on`,
      everyOp,
      word('pagesBegin', n),
    ]),
    [
      'pages listed from the last word on',
      onSegments,
      (table, packed, segment) => word('pagesBegin', table.length - 1)(table, packed, segment),
    ],
    [
      'pages listed behind the table',
      everyOp,
      (table, packed, segment) => word('pagesBegin', table.length)(table, packed, segment),
    ],
    ...[-1, units - 1, units, int32Max, int32Min].flatMap(
      (unit): [string, readonly string[], Damage][] => [
        [`the first head's last page at unit ${unit}`, everyOp, page(unit, 0)],
        [`the second head's last page at unit ${unit}`, everyOp, page(unit, 1)],
        [`the first head's first page at unit ${unit}`, onAllPages, page(unit, 0, true)],
        [`the second head's first page at unit ${unit}`, onAllPages, page(unit, 1, true)],
      ],
    ),
    ...[0, 1, 5, 33, -1, int32Min].flatMap((n): [string, readonly string[], Damage][] => [
      [`keys in format ${n}`, everyOp, word('keyFormat', n)],
      [`values in format ${n}`, everyOp, word('valueFormat', n, 1)],
    ]),
    ['a tail of codes', ['appendKv'], word('keyFormat', 4)],
    ...[-1, units, int32Max, int32Min].map((unit): [string, readonly string[], Damage] => [
      `parameters at unit ${unit}`,
      onSegments,
      word('paramsUnit', unit),
    ]),
    ['parameters that reach beyond the pool', onSegments, word('paramsUnit', units - 1)],
    ...[-1, units, int32Max, int32Min].map((unit): [string, readonly string[], Damage] => [
      `a bitmap at unit ${unit}`,
      onSegments,
      word('bitmapUnit', unit),
    ]),
    ...[int32Max, int32Min].map((span): [string, readonly string[], Damage] => [
      `a bitmap of ${span} bits`,
      onSegments,
      word('span', span),
    ]),
    ['a bitmap of one bit more', ['packSegment'], word('span', 54)],
    ['one token more', ['packSegment', 'exportSegment', 'importSegment'], word('nTokens', 31)],
    [
      'one token fewer, in the second head',
      ['packSegment', 'exportSegment', 'importSegment'],
      word('nTokens', 29, 1),
    ],
    ['positions before every row', ['unpackSegment'], word('start', -1)],
    ['positions from 2^31 - 1 on', ['unpackSegment'], word('start', int32Max)],
    ['a bitmap of fewer bits than tokens', ['unpackSegment', 'exportSegment'], word('span', 10)],
    ...[4, -1, int32Max, int32Min].map((n): [string, readonly string[], Damage] => [
      `${n} segments of at most 3`,
      ['unpackSegment', 'exportSegment', 'mixedAttention'],
      header(kvTable.header, n),
    ]),
    [
      'fewer segments',
      ['unpackSegment', 'exportSegment'],
      (table) => {
        table[kvTable.header] = 1
      },
    ],
  ]

  test.each(damages)('%s is rejected at the next sync', async (_, names, damage) => {
    const { tensors, device } = backend
    const packed = pack(tensors, usual)
    await device.sync()
    for (const op of names) {
      const table = packed.sequence.table.slice()
      damage(table, packed, segmentOf(op))
      ops[op](tensors, packed, table)
      await expectRejected(device.sync(), { code: 'ERR_ZC_ARGUMENT', op })
    }
    ops.unpackSegment(tensors, packed, packed.sequence.table) // the device goes on
    await device.sync()
  })

  test('every prefix of a table is rejected or read within', async () => {
    const { tensors, device } = backend
    const packed = pack(tensors, usual)
    await device.sync()
    const { table } = packed.sequence
    for (let words = kvTable.header; words < table.length; words += 7) {
      for (const [op, call] of Object.entries(ops)) {
        if (op === 'packSegment') continue // its rows would overwrite what the others read
        call(tensors, packed, table.slice(0, words))
        const fault = await device.sync().then(
          () => undefined,
          (error: unknown) => error,
        )
        if (fault) expect(fault).toMatchObject({ code: 'ERR_ZC_ARGUMENT', op })
      }
    }
  })

  test.each([-1, 1, int32Max, int32Min])('layer %i of 1', async (layer) => {
    const { tensors, device } = backend
    const packed = pack(tensors, usual)
    await device.sync()
    appendKv({ ...appendCall(tensors, packed), layer })
    await expectRejected(device.sync(), { code: 'ERR_ZC_ARGUMENT', op: 'appendKv' })
    packSegment({ ...packCall(tensors, packed), layer })
    await expectRejected(device.sync(), { code: 'ERR_ZC_ARGUMENT', op: 'packSegment' })
    unpackSegment({ ...unpackCall(tensors, packed), layer })
    await expectRejected(device.sync(), { code: 'ERR_ZC_ARGUMENT', op: 'unpackSegment' })
    exportSegment({ ...exportCall(tensors, packed), layer })
    await expectRejected(device.sync(), { code: 'ERR_ZC_ARGUMENT', op: 'exportSegment' })
    importSegment({ ...importCall(tensors, packed), layer })
    await expectRejected(device.sync(), { code: 'ERR_ZC_ARGUMENT', op: 'importSegment' })
  })

  test.each([3, 4, 1000, int32Max])('segment %i of 3', async (segment) => {
    const { tensors, device } = backend
    const packed = pack(tensors, usual)
    await device.sync()
    const message = /^segment: /
    packSegment({ ...packCall(tensors, packed), segment })
    await expectRejected(device.sync(), { code: 'ERR_ZC_ARGUMENT', op: 'packSegment', message })
    unpackSegment({ ...unpackCall(tensors, packed), segment })
    await expectRejected(device.sync(), { code: 'ERR_ZC_ARGUMENT', op: 'unpackSegment', message })
    exportSegment({ ...exportCall(tensors, packed), segment })
    await expectRejected(device.sync(), { code: 'ERR_ZC_ARGUMENT', op: 'exportSegment', message })
    importSegment({ ...importCall(tensors, packed), segment })
    await expectRejected(device.sync(), { code: 'ERR_ZC_ARGUMENT', op: 'importSegment', message })
  })

  test('a segment of floats cannot be packed', async () => {
    const { tensors, device } = backend
    const packed = pack(tensors, usual)
    const table = packed.sequence.table.slice()
    for (const name of ['keyFormat', 'valueFormat'] as const) word(name, 16)(table, packed, 1)
    packSegment(packCall(tensors, packed, table))
    const code = 'ERR_ZC_UNSUPPORTED'
    await expectRejected(device.sync(), { code, op: 'packSegment', message: /^segment: / })
  })
})

describeBackends('segments refuse', (backend) => {
  const ids = (change: (rows: Int32Array) => void) => (packed: Packed) => {
    const rows = packed.sequence.packed[0].rows.slice()
    change(rows)
    return rows
  }
  test.each([
    ['out of order', ids((rows) => rows.subarray(3, 5).reverse())],
    ['twice the same', ids((rows) => rows.copyWithin(7, 6, 7))],
    ['negative', ids((rows) => rows.fill(-1, 0, 1))],
    ['beyond the rows', ids((rows) => rows.fill(53, 59, 60))],
    ['of 2^31 - 1', ids((rows) => rows.fill(int32Max, 29, 30))],
    ['of -2^31', ids((rows) => rows.fill(int32Min, 30, 31))],
  ])('ids %s, at the next sync', async (_, make) => {
    const { tensors, device } = backend
    const packed = pack(tensors, usual)
    packSegment({ ...packCall(tensors, packed), ids: tensors.i32(make(packed), [2, 30]) })
    const fault = { code: 'ERR_ZC_ARGUMENT', op: 'packSegment', message: /^ids: / } as const
    await expectRejected(device.sync(), fault)
  })

  type Refused = [string, (t: DeviceTensors) => object, ErrorCode, string]
  const rows = (t: DeviceTensors, dtype: FloatDtype, shape: number[]) => t.output(dtype, shape)

  const append: Refused[] = [
    ['integers for k', (t) => ({ k: t.output('i32', [1, 2, 32]) }), 'ERR_ZC_DTYPE', 'k'],
    ['k of two axes', (t) => ({ k: rows(t, 'f32', [1, 64]) }), 'ERR_ZC_SHAPE', 'k'],
    ['v of another dtype', (t) => ({ v: rows(t, 'f16', [1, 2, 32]) }), 'ERR_ZC_DTYPE', 'v'],
    ['v of other rows', (t) => ({ v: rows(t, 'f32', [2, 2, 32]) }), 'ERR_ZC_SHAPE', 'v'],
    ['a pool of floats', (t) => ({ pool: t.output('f32', [64]) }), 'ERR_ZC_DTYPE', 'pool'],
    ['a pool of two axes', (t) => ({ pool: t.output('u8', [8, 8]) }), 'ERR_ZC_SHAPE', 'pool'],
    ['tables of two axes', (t) => ({ tables: t.output('i32', [1, 99]) }), 'ERR_ZC_SHAPE', 'tables'],
    ['float tables', (t) => ({ tables: t.output('f32', [99]) }), 'ERR_ZC_DTYPE', 'tables'],
    ['float starts', (t) => ({ starts: t.output('f32', [1]) }), 'ERR_ZC_DTYPE', 'starts'],
    ['two sequences', (t) => ({ cuSeqlens: t.i32([0, 1, 1]) }), 'ERR_ZC_SHAPE', 'cuSeqlens'],
    ['float cuSeqlens', (t) => ({ cuSeqlens: t.f32([0, 1]) }), 'ERR_ZC_DTYPE', 'cuSeqlens'],
    ['half a layer', () => ({ layer: 0.5 }), 'ERR_ZC_ARGUMENT', 'layer'],
  ]
  test.each(append)('%s, as appendKv', (_, fault, code, argument) => {
    const { tensors } = backend
    const call = { ...appendCall(tensors, pack(tensors, usual)), ...fault(tensors) }
    expectRefused(() => appendKv(call), { code, op: 'appendKv', argument })
  })

  const packing: Refused[] = [
    ['v of other rows', (t) => ({ v: rows(t, 'f32', [52, 2, 32]) }), 'ERR_ZC_SHAPE', 'v'],
    ['float ids', (t) => ({ ids: t.output('f32', [2, 30]) }), 'ERR_ZC_DTYPE', 'ids'],
    ['ids of one head', (t) => ({ ids: t.output('i32', [1, 30]) }), 'ERR_ZC_SHAPE', 'ids'],
    ['tables of two axes', (t) => ({ table: t.output('i32', [1, 99]) }), 'ERR_ZC_SHAPE', 'table'],
    ['a table of 7 words', (t) => ({ table: t.output('i32', [7]) }), 'ERR_ZC_SHAPE', 'table'],
    ['the tail', () => ({ segment: 0 }), 'ERR_ZC_ARGUMENT', 'segment'],
    ['segment -1', () => ({ segment: -1 }), 'ERR_ZC_ARGUMENT', 'segment'],
    ['segment NaN', () => ({ segment: Number.NaN }), 'ERR_ZC_ARGUMENT', 'segment'],
    ['layer 2^31', () => ({ layer: 2 ** 31 }), 'ERR_ZC_ARGUMENT', 'layer'],
  ]
  test.each(packing)('%s, as packSegment', (_, fault, code, argument) => {
    const { tensors } = backend
    const call = { ...packCall(tensors, pack(tensors, usual)), ...fault(tensors) }
    expectRefused(() => packSegment(call), { code, op: 'packSegment', argument })
  })

  test.each([1, 7, -2, 2.5])('the norm %p', (norm) => {
    const { tensors } = backend
    const call = packCall(tensors, pack(tensors, usual))
    const range = { norm: norm as 2 }
    for (const ranges of [{ keyRange: range }, { valueRange: range }]) {
      expectRefused(() => packSegment({ ...call, ...ranges }), { code: 'ERR_ZC_ARGUMENT' })
    }
  })

  const unpacking: Refused[] = [
    ['integers for k', (t) => ({ k: t.output('i32', [9, 2, 32]) }), 'ERR_ZC_DTYPE', 'k'],
    ['v unlike k', (t) => ({ v: rows(t, 'f32', [9, 2, 32]) }), 'ERR_ZC_SHAPE', 'v'],
    ['segment -1', () => ({ segment: -1 }), 'ERR_ZC_ARGUMENT', 'segment'],
    ['half a base', () => ({ base: 0.5 }), 'ERR_ZC_ARGUMENT', 'base'],
    ['a float table', (t) => ({ table: t.output('f32', [99]) }), 'ERR_ZC_DTYPE', 'table'],
  ]
  test.each(unpacking)('%s, as unpackSegment', (_, fault, code, argument) => {
    const { tensors } = backend
    const call = { ...unpackCall(tensors, pack(tensors, usual)), ...fault(tensors) }
    expectRefused(() => unpackSegment(call), { code, op: 'unpackSegment', argument })
  })

  const exporting: Refused[] = [
    ['the tail', () => ({ segment: 0 }), 'ERR_ZC_ARGUMENT', 'segment'],
    ['float kCodes', (t) => ({ kCodes: rows(t, 'f32', [2, 30, 32]) }), 'ERR_ZC_DTYPE', 'kCodes'],
    ['other vCodes', (t) => ({ vCodes: t.output('u8', [2, 29, 32]) }), 'ERR_ZC_SHAPE', 'vCodes'],
    ['f16 kParams', (t) => ({ kParams: rows(t, 'f16', [2, 2, 32]) }), 'ERR_ZC_DTYPE', 'kParams'],
    ['other kParams', (t) => ({ kParams: rows(t, 'f32', [2, 32]) }), 'ERR_ZC_SHAPE', 'kParams'],
    ['other vParams', (t) => ({ vParams: rows(t, 'f32', [2, 2, 32]) }), 'ERR_ZC_SHAPE', 'vParams'],
    ['other vChannel', (t) => ({ vChannel: rows(t, 'f32', [32]) }), 'ERR_ZC_SHAPE', 'vChannel'],
    ['other positions', (t) => ({ positions: t.output('i32', [30]) }), 'ERR_ZC_SHAPE', 'positions'],
  ]
  test.each(exporting)('%s, as exportSegment and importSegment', (_, fault, code, argument) => {
    const { tensors } = backend
    const call = { ...exportCall(tensors, pack(tensors, usual)), ...fault(tensors) }
    expectRefused(() => exportSegment(call), { code, op: 'exportSegment', argument })
    expectRefused(() => importSegment(call), { code, op: 'importSegment', argument })
  })

  test.each([8, 24, 264, 528])('head_dim %i', (headDim) => {
    const { tensors } = backend
    const packed = pack(tensors, usual)
    const k = tensors.output('f32', [53, 2, headDim])
    const fault = { code: 'ERR_ZC_UNSUPPORTED', argument: 'k' } as const
    expectRefused(() => appendKv({ ...appendCall(tensors, packed), k, v: k }), fault)
    expectRefused(() => packSegment({ ...packCall(tensors, packed), k, v: k }), fault)
    expectRefused(() => unpackSegment({ ...unpackCall(tensors, packed), k, v: k }), fault)
    const content = contentOf(tensors, 30, { nKvHeads: 2, headDim })
    const refuse = () => exportSegment({ ...exportCall(tensors, packed), ...content })
    expectRefused(refuse, { code: 'ERR_ZC_UNSUPPORTED', argument: 'kCodes' })
    const refuseImport = () => importSegment({ ...exportCall(tensors, packed), ...content })
    expectRefused(refuseImport, { code: 'ERR_ZC_UNSUPPORTED', argument: 'kCodes' })
  })

  test('a head_dim other than the table was made for may not crash', async () => {
    const { tensors, device } = backend
    const packed = pack(tensors, usual)
    await device.sync()
    const k = tensors.output('f32', [58, 2, 256])
    unpackSegment({ ...unpackCall(tensors, packed), k, v: k })
    await device
      .sync()
      .catch((error: unknown) => expect(error).toMatchObject({ name: 'ZipCacheError' }))
  })
})
