import { appendKv, packSegment, type QuantRange } from '../../lib/ops/index.js'
import {
  type FloatDtype,
  packSegment as referencePackSegment,
  type Segment,
  type SegmentFormat,
} from '../../lib/reference/index.js'
import type { DeviceTensors } from './device-tensors.js'
import type { PackedCache, SegmentPlan } from './packed-cache.js'
import { randomKeys, randomNumbers, randomValues, storeAs } from './random-data.js'

/** How a precision class stores its keys and values. */
export interface Formats {
  keyFormat: SegmentFormat
  valueFormat: SegmentFormat
}

/** One compression: `nSalient` of `nTokens` tokens in the formats of one class, the rest in those of the other. */
export interface BlockPlan {
  nTokens: number
  nSalient: number
  salient: Formats
  regular: Formats
  keyRange?: QuantRange
  valueRange?: QuantRange
}

/** A sequence: blocks compressed one after another, then the tail. */
export interface SequencePlan {
  blocks: readonly BlockPlan[]
  tail: { format: FloatDtype; nTokens: number }
}

export interface PackedSequence {
  table: Int32Array
  /** what the reference makes of the same rows: the tail, then the segments in the table's order */
  segments: Segment[]
  /** what was compressed, per segment but the tail: the rows each KV head took, and their block */
  packed: { rows: Int32Array; nTokens: number; block: number; start: number }[]
  /** tokens in all */
  length: number
}

export interface SequenceInput {
  cache: PackedCache
  plan: SequencePlan
  nKvHeads: number
  headDim: number
  /** of K and V as they come from the model */
  dtype: FloatDtype
  seed: number
  layer?: number
  /** default `randomKeys` */
  keys?: typeof randomKeys
}

/** Compresses random keys and values into the cache, and by the reference. */
export function packSequence(tensors: DeviceTensors, input: SequenceInput): PackedSequence {
  const { cache, plan, nKvHeads, headDim, dtype, seed, layer = 0, keys = randomKeys } = input
  const next = randomNumbers(seed)
  const plans: SegmentPlan[] = []
  const packed: PackedSequence['packed'] = []
  let start = 0
  for (const [block, { nTokens, nSalient, salient, regular }] of plan.blocks.entries()) {
    const all = Array.from({ length: nTokens }, (_, i) => i)
    const chosen = Array.from({ length: nKvHeads }, () => choose(next, nTokens, nSalient))
    const left = chosen.map((rows) => all.filter((row) => !rows.has(row)))
    const add = (segment: SegmentPlan, rows: Iterable<number>[]) => {
      plans.push(segment)
      packed.push({
        rows: Int32Array.from(rows.flatMap((own) => [...own])),
        nTokens: segment.nTokens,
        block,
        start,
      })
    }
    if (nSalient === nTokens) {
      add(
        { ...salient, nTokens, start },
        left.map(() => all),
      )
    } else {
      const shared = { start, span: nTokens }
      add({ ...salient, ...shared, nTokens: nSalient, bitmap: 'set' }, chosen)
      add({ ...regular, ...shared, nTokens: nTokens - nSalient, bitmap: 'clear' }, left)
    }
    start += nTokens
  }
  const table = cache.table({ ...plan.tail, start }, plans)

  const inputs = [...plan.blocks, plan.tail].map(({ nTokens }, index) => {
    const shape = { nTokens, nKvHeads, headDim }
    const k = storeAs(dtype, keys(seed * 31 + index * 2, shape))
    const v = storeAs(dtype, randomValues(seed * 31 + index * 2 + 1, shape))
    const upload = ({ stored }: { stored: Float32Array | Uint16Array }) =>
      tensors.input(dtype, stored as Uint16Array, [nTokens, nKvHeads, headDim])
    return { k: k.values, v: v.values, tensors: { k: upload(k), v: upload(v) } }
  })
  const target = { pool: cache.pool, table: tensors.i32(table), layer }
  const segments = packed.map(({ rows, nTokens, block, start: base }, index) => {
    const { keyRange = 'minmax', valueRange = 'minmax' } = plan.blocks[block]
    const own = inputs[block]
    const ids = tensors.i32(rows, [nKvHeads, nTokens])
    const ranges = { keyRange, valueRange }
    packSegment({ ...own.tensors, ids, ...target, segment: index + 1, ...ranges })
    const { keyFormat, valueFormat } = plans[index]
    const options = {
      k: own.k,
      v: own.v,
      rows,
      nKvHeads,
      headDim,
      keyFormat,
      valueFormat,
      ...ranges,
    }
    return at(base, referencePackSegment(options))
  })

  const newest = inputs.at(-1)!
  appendKv({
    ...newest.tensors,
    pool: cache.pool,
    tables: tensors.i32(table),
    starts: tensors.i32([0]),
    cuSeqlens: tensors.i32([0, plan.tail.nTokens]),
    layer,
  })
  const tailRows = Array.from({ length: plan.tail.nTokens }, (_, i) => i)
  const tail = referencePackSegment({
    k: newest.k,
    v: newest.v,
    rows: new Array(nKvHeads).fill(tailRows).flat(),
    nKvHeads,
    headDim,
    keyFormat: plan.tail.format,
    valueFormat: plan.tail.format,
  })
  return {
    table,
    segments: [at(start, tail), ...segments],
    packed,
    length: start + plan.tail.nTokens,
  }
}

/** The segment with positions counted from `base`. */
function at(base: number, segment: Segment): Segment {
  return { ...segment, positions: Array.from(segment.positions!, (row) => base + row) }
}

/** `count` distinct numbers below n, ascending. */
function choose(next: () => number, n: number, count: number): Set<number> {
  const keys = Array.from({ length: n }, (_, i) => ({ i, key: next() })).sort(
    (a, b) => a.key - b.key,
  )
  return new Set(
    keys
      .slice(0, count)
      .map(({ i }) => i)
      .sort((a, b) => a - b),
  )
}
