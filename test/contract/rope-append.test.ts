import fc from 'fast-check'
import type { ErrorCode } from '../../lib/errors.js'
import { appendKv, rope, ropeAppend, unpackSegment } from '../../lib/ops/index.js'
import { type FloatDtype, rope as reference } from '../../lib/reference/index.js'
import { describeBackends } from '../support/backends.js'
import { expectClose, expectIdentical } from '../support/compare.js'
import { type DeviceTensors, floatDtypes } from '../support/device-tensors.js'
import { expectRefused, expectRejected } from '../support/errors.js'
import { kvTable, PackedCache, stackTables } from '../support/packed-cache.js'
import { propertyRuns } from '../support/properties.js'
import { cumulative, normals, randomNumbers, storeAs } from '../support/random-data.js'
import { headCounts } from '../support/shapes.js'
import { tolerance } from '../support/tolerance.js'

/** One call: the new rows of each sequence, appended to `before` tokens of its tail. */
interface Call {
  nHeads: number
  nKvHeads: number
  headDim: number
  /** of q and k before RoPE */
  dtype: FloatDtype
  /** of v, and of q and k after it */
  out: FloatDtype
  tail: FloatDtype
  sequences: readonly { before: number; rows: number; masked?: boolean }[]
  keepsRows: boolean
  /** q has angles of its own */
  turnsApart?: boolean
  seed: number
}

const usual: Call = {
  nHeads: 8,
  nKvHeads: 2,
  headDim: 64,
  dtype: 'f32',
  out: 'f16',
  tail: 'f16',
  sequences: [{ before: 5, rows: 1 }],
  keepsRows: false,
  seed: 1,
}

/** Tensors of a call, and the tails they go to; made twice they are equal. */
function prepare(tensors: DeviceTensors, call: Call) {
  const { nHeads, nKvHeads, headDim, dtype, out, tail, sequences, seed } = call
  const nLayers = 2
  const nPages = sequences.reduce((n, { before, rows }) => n + Math.ceil((before + rows) / 16), 0)
  const pageBytes = 2 * 16 * headDim * 4 + 2 * kvTable.unitBytes
  const poolBytes = nLayers * nKvHeads * nPages * pageBytes + 4 * kvTable.unitBytes
  const cache = new PackedCache(tensors, { nKvHeads, headDim, poolBytes, nLayers })
  const tables = sequences.map(({ before, rows }) =>
    cache.table({ format: tail, nTokens: before + rows, start: 0 }, []),
  )
  const { words, starts } = stackTables(tables)
  sequences.forEach(({ masked }, s) => {
    if (masked) starts[s] = -1
  })
  const cuSeqlens = cumulative(sequences.map(({ rows }) => rows))
  const rows = cuSeqlens.at(-1)!
  const made = (heads: number, type: FloatDtype, own: number) => {
    const { stored, values } = storeAs(type, normals(seed + own, rows * heads * headDim))
    return { values, tensor: tensors.input(type, stored as Uint16Array, [rows, heads, headDim]) }
  }
  const angles = randomNumbers(seed + 9)
  const someTurns = () => Float32Array.from({ length: (rows * headDim) / 2 }, () => angles() * 6.28)
  const turn = someTurns()
  const ofQ = call.turnsApart ? someTurns() : turn
  const table = [rows, headDim / 2]
  return {
    q: made(nHeads, dtype, 1),
    k: made(nKvHeads, dtype, 2),
    v: made(nKvHeads, out, 3),
    cos: tensors.f32(turn.map(Math.cos), table),
    sin: tensors.f32(turn.map(Math.sin), table),
    qCos: tensors.f32(ofQ.map(Math.cos), table),
    qSin: tensors.f32(ofQ.map(Math.sin), table),
    qOut: tensors.output(out, [rows, nHeads, headDim]),
    kOut: tensors.output(out, [rows, nKvHeads, headDim]),
    pool: cache.pool,
    paged: {
      pool: cache.pool,
      tables: tensors.i32(words),
      starts: tensors.i32(starts),
      cuSeqlens: tensors.i32(cuSeqlens),
      layer: 1,
    },
    tables,
  }
}

describeBackends('ropeAppend', (backend) => {
  /** The op against `rope` and `appendKv` of the same backend. */
  async function expectParts(call: Call) {
    const { tensors } = backend
    const whole = prepare(tensors, call)
    const { cos, sin, qCos, qSin, paged } = whole
    const rows = call.keepsRows ? { kOut: whole.kOut } : {}
    const ofQ = call.turnsApart ? { qCos, qSin } : {}
    const input = { q: whole.q.tensor, k: whole.k.tensor, v: whole.v.tensor }
    ropeAppend({ ...input, cos, sin, ...ofQ, qOut: whole.qOut, ...rows, ...paged })

    const parts = prepare(tensors, call)
    rope({ x: parts.q.tensor, cos: qCos, sin: qSin, out: parts.qOut })
    rope({ x: parts.k.tensor, cos, sin, out: parts.kOut })
    appendKv({ k: parts.kOut, v: parts.v.tensor, ...parts.paged })

    const compare = async (name: 'qOut' | 'kOut') =>
      expectIdentical(await tensors.values(whole[name]), await tensors.values(parts[name]), {
        name,
        shape: whole[name].shape,
        seed: call.seed,
      })
    await compare('qOut')
    if (call.keepsRows) await compare('kOut')
    const pool = { name: 'pool', shape: whole.pool.shape, seed: call.seed }
    expectIdentical(await whole.pool.read(), await parts.pool.read(), pool)
    const untouched = await tensors.values(whole.q.tensor)
    expectIdentical(untouched, whole.q.values, { name: 'q', shape: whole.q.tensor.shape })
    tensors.dispose()
  }

  test.each([16, 32, 48, 64, 96, 128, 256, 320, 512])('head_dim %i', async (headDim) => {
    for (const heads of headCounts) await expectParts({ ...usual, ...heads, headDim })
  })

  test('q and k with angles of their own', async () => {
    for (const keepsRows of [false, true]) {
      for (const headDim of [16, 64, 128]) {
        await expectParts({ ...usual, headDim, keepsRows, turnsApart: true })
      }
    }
  })

  test('more heads in a group than a block has threads for', async () => {
    await expectParts({ ...usual, nHeads: 40, nKvHeads: 1, headDim: 128 })
  })

  describe.each(floatDtypes)('q and k of %s', (dtype) => {
    test.each(floatDtypes)('to %s, and tails of every dtype', async (out) => {
      for (const tail of floatDtypes) {
        for (const keepsRows of [false, true]) {
          await expectParts({ ...usual, dtype, out, tail, keepsRows })
        }
      }
    })
  })

  test.each([
    ['a batch', [1, 1, 1, 1, 1].map((rows, s) => ({ before: 7 * s, rows }))],
    ['a prompt', [{ before: 0, rows: 133 }]],
    [
      'many lengths',
      [0, 1, 15, 16, 17, 0, 40].map((rows, s) => ({ before: s % 2 ? 0 : 13, rows })),
    ],
    [
      'masked ones',
      [true, false, true, false].map((masked, s) => ({ before: 3, rows: 1 + s, masked })),
    ],
    ['all masked', [{ before: 0, rows: 2, masked: true }]],
    ['no rows', [{ before: 1, rows: 0 }]],
  ])('sequences: %s', async (_, sequences) => {
    for (const keepsRows of [false, true]) await expectParts({ ...usual, sequences, keepsRows })
  })

  test('property: any small call', async () => {
    const dtype = fc.constantFrom(...floatDtypes)
    const sequence = fc.record({
      before: fc.nat({ max: 40 }),
      rows: fc.nat({ max: 20 }),
      masked: fc.boolean(),
    })
    const calls = fc.record({
      heads: fc.constantFrom(...headCounts),
      headDim: fc.integer({ min: 1, max: 8 }).map((n) => 16 * n),
      ...{ dtype, out: dtype, tail: dtype, keepsRows: fc.boolean() },
      sequences: fc.array(sequence, { minLength: 1, maxLength: 4 }),
      seed: fc.nat({ max: 1e6 }),
    })
    const property = fc.asyncProperty(calls, ({ heads, ...call }) =>
      expectParts({ ...call, ...heads }),
    )
    await fc.assert(property, propertyRuns(40))
  })

  test('q and k may be turned where they are', async () => {
    const { tensors } = backend
    const call: Call = { ...usual, out: 'f32', tail: 'f32', keepsRows: true }
    const there = prepare(tensors, call)
    const here = prepare(tensors, call)
    const { cos, sin } = there
    const rows = ({ q, k, v }: typeof here) => ({ q: q.tensor, k: k.tensor, v: v.tensor })
    ropeAppend({ ...rows(there), cos, sin, qOut: there.qOut, kOut: there.kOut, ...there.paged })
    const own = rows(here)
    ropeAppend({ ...own, cos, sin, qOut: own.q, kOut: own.k, ...here.paged })
    for (const [name, turned, expected] of [
      ['q', own.q, there.qOut],
      ['k', own.k, there.kOut],
    ] as const) {
      const same = { name, shape: turned.shape }
      expectIdentical(await tensors.values(turned), await tensors.values(expected), same)
    }
    expectIdentical(await here.pool.read(), await there.pool.read(), {
      name: 'pool',
      shape: here.pool.shape,
    })
  })

  test('equals the reference', async () => {
    const { tensors } = backend
    const call: Call = { ...usual, out: 'f32', tail: 'f32', sequences: [{ before: 0, rows: 19 }] }
    const { q, k, v, cos, sin, qOut, paged, pool, tables } = prepare(tensors, call)
    ropeAppend({ q: q.tensor, k: k.tensor, v: v.tensor, cos, sin, qOut, ...paged })
    const { nHeads, nKvHeads, headDim } = call
    const tail = [19, nKvHeads, headDim]
    const [tailK, tailV] = [tensors.output('f32', tail), tensors.output('f32', tail)]
    const place = { table: tensors.i32(tables[0]), layer: 1, segment: 0, base: 0 }
    unpackSegment({ pool, ...place, k: tailK, v: tailV })
    const [c, s] = [await tensors.values(cos), await tensors.values(sin)]
    const angles = { cos: c, sin: s, headDim }
    const within = { tolerance: tolerance.f32Rope }
    const turnedQ = reference({ x: q.values, ...angles, nHeads })
    const turnedK = reference({ x: k.values, ...angles, nHeads: nKvHeads })
    expectClose(await tensors.values(qOut), turnedQ, { name: 'qOut', shape: qOut.shape, ...within })
    expectClose(await tensors.values(tailK), turnedK, { name: 'k', shape: tail, ...within })
    expectIdentical(await tensors.values(tailV), v.values, { name: 'v', shape: tail })
  })

  test('no sequences', async () => {
    const { tensors, device } = backend
    const rows = (heads: number) => tensors.output('f32', [0, heads, 32])
    ropeAppend({
      ...{ q: rows(4), k: rows(2), v: rows(2), qOut: rows(4) },
      ...{ cos: tensors.output('f32', [0, 16]), sin: tensors.output('f32', [0, 16]) },
      ...{ pool: tensors.output('u8', [64]), tables: tensors.i32([]), starts: tensors.i32([]) },
      ...{ cuSeqlens: tensors.i32([0]), layer: 0 },
    })
    await device.sync()
  })

  type Prepared = ReturnType<typeof prepare>
  const whole = ({ q, k, v, cos, sin, qOut, paged }: Prepared) => ({
    ...{ q: q.tensor, k: k.tensor, v: v.tensor, cos, sin, qOut, ...paged },
  })

  const faults: [string, (t: DeviceTensors, own: Prepared) => object, RegExp][] = [
    ['cuSeqlens of more rows', (t) => ({ cuSeqlens: t.i32([0, 2]) }), /^cuSeqlens: /],
    ['cuSeqlens that begin later', (t) => ({ cuSeqlens: t.i32([1, 1]) }), /^cuSeqlens: /],
    ['a start of -2', (t) => ({ starts: t.i32([-2]) }), /^starts: /],
    ['a start beyond the tables', (t) => ({ starts: t.i32([2 ** 31 - 1]) }), /^starts: /],
    ['a layer too many', () => ({ layer: 2 }), /^(table|layer)/],
    [
      'a tail of no tokens',
      (t, { tables }) => {
        const words = tables[0].slice()
        words[kvTable.tailLength] = 0
        return { tables: t.i32(words), starts: t.i32([0]) }
      },
      /tail/,
    ],
    [
      'a page outside of the pool',
      (t, { tables }) => {
        const words = tables[0].slice()
        words[words.length - 1] = 2 ** 30
        return { tables: t.i32(words), starts: t.i32([0]) }
      },
      /^table: /,
    ],
  ]
  test.each(faults)('%s, at the next sync', async (_, fault, message) => {
    const { tensors, device } = backend
    const own = prepare(tensors, usual)
    ropeAppend({ ...whole(own), ...fault(tensors, own) })
    await expectRejected(device.sync(), { code: 'ERR_ZC_ARGUMENT', op: 'ropeAppend', message })
  })

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['integers for q', (t) => ({ q: t.output('i32', [1, 8, 64]) }), 'ERR_ZC_DTYPE', 'q'],
    ['q of two axes', (t) => ({ q: t.output('f32', [1, 512]) }), 'ERR_ZC_SHAPE', 'q'],
    ['k of another dtype', (t) => ({ k: t.output('f16', [1, 2, 64]) }), 'ERR_ZC_DTYPE', 'k'],
    ['k of other rows', (t) => ({ k: t.output('f32', [2, 2, 64]) }), 'ERR_ZC_SHAPE', 'k'],
    ['3 KV heads for 8', (t) => ({ k: t.output('f32', [1, 3, 64]) }), 'ERR_ZC_SHAPE', 'k'],
    ['k of another head_dim', (t) => ({ k: t.output('f32', [1, 2, 32]) }), 'ERR_ZC_SHAPE', 'k'],
    ["v of q's dtype", (t) => ({ v: t.output('f32', [1, 2, 64]) }), 'ERR_ZC_DTYPE', 'v'],
    ['v of other heads', (t) => ({ v: t.output('f16', [1, 8, 64]) }), 'ERR_ZC_SHAPE', 'v'],
    ['integers for qOut', (t) => ({ qOut: t.output('i32', [1, 8, 64]) }), 'ERR_ZC_DTYPE', 'qOut'],
    ['another qOut', (t) => ({ qOut: t.output('f16', [1, 2, 64]) }), 'ERR_ZC_SHAPE', 'qOut'],
    ['f32 kOut', (t) => ({ kOut: t.output('f32', [1, 2, 64]) }), 'ERR_ZC_DTYPE', 'kOut'],
    ['another kOut', (t) => ({ kOut: t.output('f16', [1, 8, 64]) }), 'ERR_ZC_SHAPE', 'kOut'],
    ['f16 cos', (t) => ({ cos: t.output('f16', [1, 32]) }), 'ERR_ZC_DTYPE', 'cos'],
    ['cos of whole heads', (t) => ({ cos: t.output('f32', [1, 64]) }), 'ERR_ZC_SHAPE', 'cos'],
    ['another qCos', (t) => ({ qCos: t.output('f32', [2, 32]) }), 'ERR_ZC_SHAPE', 'qCos'],
    ['f16 qSin', (t) => ({ qSin: t.output('f16', [1, 32]) }), 'ERR_ZC_DTYPE', 'qSin'],
    ['another sin', (t) => ({ sin: t.output('f32', [2, 32]) }), 'ERR_ZC_SHAPE', 'sin'],
    ['a pool of floats', (t) => ({ pool: t.output('f32', [64]) }), 'ERR_ZC_DTYPE', 'pool'],
    ['float tables', (t) => ({ tables: t.output('f32', [99]) }), 'ERR_ZC_DTYPE', 'tables'],
    ['float starts', (t) => ({ starts: t.output('f32', [1]) }), 'ERR_ZC_DTYPE', 'starts'],
    ['two sequences', (t) => ({ cuSeqlens: t.i32([0, 1, 1]) }), 'ERR_ZC_SHAPE', 'cuSeqlens'],
    ['half a layer', () => ({ layer: 0.5 }), 'ERR_ZC_ARGUMENT', 'layer'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const call = { ...whole(prepare(tensors, usual)), ...fault(tensors) }
    expectRefused(() => ropeAppend(call), { code, op: 'ropeAppend', argument })
  })

  test.each([8, 24, 264, 528])('refuses a head_dim of %i', (headDim) => {
    const { tensors } = backend
    const rows = (heads: number, dtype: FloatDtype) => tensors.output(dtype, [1, heads, headDim])
    const angles = tensors.output('f32', [1, headDim / 2])
    const call = {
      ...whole(prepare(tensors, usual)),
      ...{ q: rows(8, 'f32'), k: rows(2, 'f32'), v: rows(2, 'f16'), qOut: rows(8, 'f16') },
      ...{ cos: angles, sin: angles },
    }
    expectRefused(() => ropeAppend(call), { code: 'ERR_ZC_UNSUPPORTED', argument: 'q' })
  })
})
