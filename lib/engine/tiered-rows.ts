import type { CacheMemory, KvShape } from '../cache/index.js'
import type { Scratch } from '../model/scratch.js'
import {
  codeBytesPerRow,
  convert,
  dequantize,
  gatherRows,
  quantize,
  type Tensor,
} from '../ops/index.js'
import type { TieredPlan } from '../policy/policy.js'
import type { Probes } from './compress.js'
import { Room, scoreRows } from './row-scores.js'
import type { RowBytes, RowStore, RowWriter } from './row-store.js'

/** Groups of channels that a head is quantized in. */
const GROUPS = 2

/**
 * Some rows of each KV head, its own, that were quantized together: group g of head h is plane
 * GROUPS h + g, (nRows, head_dim / GROUPS).
 */
interface LowRows {
  readonly nRows: number
  /** (planes, nRows, bytes) u8 of K, then of V. */
  readonly codes: Tensor<'u8'>
  /** (4, planes, nRows): scales and zeros of K, then of V. */
  readonly params: Tensor<'f16'>
  nHolders: number
}

/** (planes, head_dim / GROUPS): what dequantized keys are multiplied by, 1 / b. */
interface Balance {
  readonly tensor: Tensor<'f16'>
  nHolders: number
}

/** The rows of one layer. Never written again, so that forks share them. */
interface Layer {
  /** (n, n_kv_heads, head_dim) in 16 bits: row r is the r-th of each head, each its own. */
  readonly k: Tensor<'f16'>
  readonly v: Tensor<'f16'>
  /** (n_kv_heads, n): the attention they received. */
  readonly scores: Tensor<'f32'>
  readonly low: readonly LowRows[]
  readonly balance: Balance
  nHolders: number
}

/** How many rows there are while tokens are taken. */
interface Counts {
  /** Quantized before. */
  readonly nLow: number
  /** In 16 bits before, and the new ones. */
  readonly nHigh: number
  /** Of those, how many stay in 16 bits. */
  readonly nKept: number
}

/** `TieredPlan` at work. Quantized rows come first, then those in 16 bits. */
export class TieredRows implements RowStore {
  readonly plan: TieredPlan
  readonly #memory: CacheMemory
  #layers: Layer[] = []
  #length = 0
  #nHigh = 0

  constructor(memory: CacheMemory, plan: TieredPlan) {
    this.#memory = memory
    this.plan = plan
  }

  get length(): number {
    return this.#length
  }

  get nRows(): number {
    return this.#length
  }

  get bytes(): RowBytes {
    const bytes = { rows: 0, low: 0, params: 0, tail: 0, scores: 0 }
    for (const { k, v, scores, low, balance } of this.#layers) {
      bytes.rows += k.sizeBytes + v.sizeBytes
      bytes.scores += scores.sizeBytes
      bytes.params += balance.tensor.sizeBytes
      for (const { codes, params } of low) {
        bytes.low += codes.sizeBytes
        bytes.params += params.sizeBytes
      }
    }
    return bytes
  }

  begin(nTokens: number, _isPrompt: boolean, scratch: Scratch): RowWriter {
    const length = this.#length + nTokens
    const nHigh = this.#nHigh + nTokens
    const nKept = this.plan.nKept(nHigh, length)
    const counts = { nLow: this.#length - this.#nHigh, nHigh, nKept }
    const added: Layer[] = []
    const made: Tensor[] = []
    const make = <D extends 'u8' | 'f16' | 'f32'>(dtype: D, shape: readonly number[]) => {
      const tensor = this.#memory.rowTensor(dtype, shape)
      made.push(tensor)
      return tensor
    }
    const room = new Room(scratch)
    const coder = new PlaneCoder(this.#memory.shape, this.plan, room)
    return {
      nObservers: nTokens,
      get bytes() {
        return made.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
      },
      read: (layer, k, v) => {
        const { low, balance, ...held } = this.#layers[layer] as Layer
        let first = 0
        for (const rows of low) {
          coder.decode(rows, balance, k, v, first)
          first += rows.nRows
        }
        for (const [x, out] of [
          [held.k, k],
          [held.v, v],
        ] as const) {
          const offset = first * coder.width
          convert({ x, out: scratch.keep(out.view(x.shape, offset)) })
        }
      },
      write: async (layer, k, v, probes) => {
        added.push(await this.#grow(layer, k, v, counts, probes as Probes, coder, room, make))
      },
      publish: () => {
        // What the new layers hold of the old ones is held once more before those let go.
        for (const { low, balance } of added) for (const part of [...low, balance]) part.nHolders++
        for (const old of this.#layers) this.#free(old)
        this.#layers = added
        this.#length = length
        this.#nHigh = nKept
      },
      discard: () => {
        for (const tensor of made) this.#memory.freeRows(tensor)
      },
    }
  }

  fork(): RowStore {
    const copy = new TieredRows(this.#memory, this.plan)
    for (const layer of this.#layers) layer.nHolders++
    copy.#layers = [...this.#layers]
    copy.#length = this.#length
    copy.#nHigh = this.#nHigh
    return copy
  }

  dispose(): void {
    for (const layer of this.#layers.splice(0)) this.#free(layer)
  }

  #free(layer: Layer): void {
    if (--layer.nHolders > 0) return
    const { k, v, scores, low, balance } = layer
    for (const tensor of [k, v, scores]) this.#memory.freeRows(tensor)
    for (const rows of low) {
      if (--rows.nHolders > 0) continue
      this.#memory.freeRows(rows.codes)
      this.#memory.freeRows(rows.params)
    }
    if (--balance.nHolders === 0) this.#memory.freeRows(balance.tensor)
  }

  async #grow(
    layer: number,
    k: Tensor,
    v: Tensor,
    { nLow, nHigh, nKept }: Counts,
    probes: Probes,
    coder: PlaneCoder,
    room: Room,
    make: <D extends 'u8' | 'f16' | 'f32'>(dtype: D, shape: readonly number[]) => Tensor<D>,
  ): Promise<Layer> {
    const { shape } = this.#memory
    const { nKvHeads, headDim } = shape
    const held = this.#layers[layer]
    const nRows = nLow + nHigh
    const before = { scores: held?.scores ?? null, first: nLow }
    const scores = await scoreRows(shape, k, nRows, probes, before, room)
    const balance =
      held?.balance ?? (await coder.balanceOf(k, nRows, probes, (of) => make('f16', of)))

    const kept: Int32Array[] = []
    const others: Int32Array[] = []
    const keptScores = new Float32Array(nKvHeads * nKept)
    for (let head = 0; head < nKvHeads; head++) {
      const own = scores.subarray(head * nRows + nLow, (head + 1) * nRows)
      const rows = nKept < nHigh ? this.plan.select(own, nKept) : Int32Array.from(own.keys())
      const isKept = new Uint8Array(nHigh)
      for (const [r, row] of rows.entries()) {
        isKept[row] = 1
        keptScores[head * nKept + r] = own[row] as number
      }
      kept.push(rows.map((row) => nLow + row))
      others.push(
        Int32Array.from(own.keys())
          .filter((row) => !isKept[row])
          .map((row) => nLow + row),
      )
    }

    const low = [...(held?.low ?? [])]
    const nOthers = nHigh - nKept
    if (nOthers > 0) {
      const rows: LowRows = {
        nRows: nOthers,
        codes: make('u8', coder.codesShape(nOthers)),
        params: make('f16', coder.paramsShape(nOthers)),
        nHolders: 0,
      }
      await coder.encode(rows, balance, k, v, others)
      low.push(rows)
    }
    const keptShape = [nKept, nKvHeads, headDim]
    const own = { k: make('f16', keptShape), v: make('f16', keptShape) }
    coder.gather(k, kept, own.k)
    coder.gather(v, kept, own.v)
    const stored = make('f32', [nKvHeads, nKept]).write(keptScores)
    return { ...own, scores: stored, low, balance, nHolders: 1 }
  }
}

/** Bytes of the first prompt's rows of one layer. */
export function tieredBytes(shape: KvShape, plan: TieredPlan, nTokens: number): number {
  const { nKvHeads, headDim } = shape
  const width = nKvHeads * headDim
  const nKept = plan.nKept(nTokens, nTokens)
  const planes = nKvHeads * GROUPS
  const low = 2 * planes * (codeBytesPerRow(headDim / GROUPS, plan.bits) + 4)
  return nKept * (4 * width + 4 * nKvHeads) + (nTokens - nKept) * low + 2 * width
}

/** What `PlaneCoder` and `scoreRows` allocate for a first prompt of so many tokens. */
export function tieredActivationBytes(
  { nHeads, nKvHeads, headDim }: { nHeads: number; nKvHeads: number; headDim: number },
  plan: TieredPlan,
  nTokens: number,
  attentionBytes: number,
): number {
  const nKept = plan.nKept(nTokens, nTokens)
  const width = nKvHeads * headDim
  const gathered = (n: number, perRow: number) => n * (4 * perRow + width * attentionBytes)
  const nLow = nTokens - nKept
  const encoded = gathered(nLow, nKvHeads * GROUPS) + 4 * (nLow + 1) * width
  const balanced = 4 * (nTokens * (nHeads * headDim + width) + width)
  const sums = 4 * nKvHeads * nTokens
  return gathered(nKept, nKvHeads) + (nLow > 0 ? encoded : 0) + balanced + sums
}

/** Moves rows of heads between tensors (rows, n_kv_heads, head_dim) and planes. */
class PlaneCoder {
  readonly width: number
  readonly #shape: KvShape
  readonly #plan: TieredPlan
  readonly #room: Room
  readonly #nPlanes: number
  readonly #planeWidth: number

  constructor(shape: KvShape, plan: TieredPlan, room: Room) {
    this.#shape = shape
    this.#plan = plan
    this.#room = room
    this.width = shape.nKvHeads * shape.headDim
    this.#nPlanes = shape.nKvHeads * GROUPS
    this.#planeWidth = shape.headDim / GROUPS
  }

  codesShape(nRows: number): number[] {
    return [2, this.#nPlanes, nRows, codeBytesPerRow(this.#planeWidth, this.#plan.bits)]
  }

  paramsShape(nRows: number): number[] {
    return [4, this.#nPlanes, nRows]
  }

  /** The rows of each head, side by side: out (n, n_kv_heads, head_dim). */
  gather(x: Tensor, rowsOfHead: readonly Int32Array[], out: Tensor<'f16'>): void {
    const { nKvHeads, headDim } = this.#shape
    const n = out.shape[0] as number
    const places = new Int32Array(n * nKvHeads)
    for (const [head, rows] of rowsOfHead.entries()) {
      rows.forEach((row, r) => {
        places[r * nKvHeads + head] = row * nKvHeads + head
      })
    }
    const rows = this.#room.tensor('places', 'i32', [places.length]).write(places)
    const picked = this.#room.tensor('picked', x.dtype, [places.length, headDim])
    gatherRows({ x: this.#cut(x, headDim), rows, out: picked })
    convert({ x: picked, out: this.#view(out, [places.length, headDim]) })
  }

  /**
   * What balances a layer's keys: b = sqrt(max |q| / max |k|) of each channel, over the rows of the
   * prompt and the query heads of a KV head.
   *
   * Source: MiKV (arXiv 2402.18096) Eq. 2.
   */
  async balanceOf(
    k: Tensor,
    nRows: number,
    { q }: Probes,
    make: (shape: number[]) => Tensor<'f16'>,
  ): Promise<Balance> {
    const { headDim } = this.#shape
    const nHeads = q.shape[1] as number
    const group = nHeads / this.#shape.nKvHeads
    const ofQueries = await this.#largest('queries', q, nHeads * headDim, q.shape[0] as number)
    const ofKeys = await this.#largest('keys', k, this.width, nRows)
    const inverse = ofKeys.map((key, channel) => {
      const head = Math.floor(channel / headDim)
      let query = 0
      for (let member = head * group; member < (head + 1) * group; member++) {
        query = Math.max(query, ofQueries[member * headDim + (channel % headDim)] as number)
      }
      const inverse = Math.sqrt(key / query)
      return inverse > 0 && inverse < MAX_BALANCE ? inverse : 1
    })
    const tensor = make([this.#nPlanes, this.#planeWidth])
    const staged = this.#room.tensor('balance', 'f32', [this.#nPlanes, this.#planeWidth])
    convert({ x: staged.write(inverse), out: tensor })
    return { tensor, nHolders: 0 }
  }

  /** The given rows of each head, quantized. */
  async encode(
    rows: LowRows,
    balance: Balance,
    k: Tensor,
    v: Tensor,
    rowsOfHead: readonly Int32Array[],
  ): Promise<void> {
    const { nRows } = rows
    const [nPlanes, width] = [this.#nPlanes, this.#planeWidth]
    const places = new Int32Array(nPlanes * nRows)
    for (let plane = 0; plane < nPlanes; plane++) {
      const own = rowsOfHead[Math.floor(plane / GROUPS)] as Int32Array
      own.forEach((row, r) => {
        places[plane * nRows + r] = row * nPlanes + plane
      })
    }
    const from = this.#room.tensor('plane places', 'i32', [places.length]).write(places)
    const picked = this.#room.tensor('planes', k.dtype, [places.length, width])
    const values = this.#room.tensor('plane values', 'f32', [places.length, width])
    for (const [part, x] of [k, v].entries()) {
      gatherRows({ x: this.#cut(x, width), rows: from, out: picked })
      convert({ x: picked, out: values })
      if (part === 0) values.write(await this.#balanced(values, balance, nRows))
      quantize({
        x: values,
        scheme: 'tokenwise',
        bits: this.#plan.bits,
        ...this.#codes(rows, part),
      })
    }
  }

  /** Puts quantized rows into k and v, from row `first` on. */
  decode(rows: LowRows, balance: Balance, k: Tensor, v: Tensor, first: number): void {
    const { nRows } = rows
    const [nPlanes, width] = [this.#nPlanes, this.#planeWidth]
    const places = new Int32Array(nPlanes * nRows).map(
      (_, i) => (i % nPlanes) * nRows + Math.floor(i / nPlanes),
    )
    const { scratch } = this.#room
    const from = scratch.ints(places)
    const planes = scratch.tensor(k.dtype, [places.length, width])
    const { bits } = this.#plan
    for (const [part, out] of [k, v].entries()) {
      const all = this.#codes(rows, part)
      if (part === 1) dequantize({ ...all, scheme: 'tokenwise', bits, out: planes })
      for (let plane = 0; plane < nPlanes && part === 0; plane++) {
        const of = <T extends Tensor>(x: T, each: number[]) => {
          const size = each.reduce((product, n) => product * n, 1)
          return scratch.keep(x.view(each, plane * size)) as T
        }
        dequantize({
          ...{ scheme: 'cst', bits, out: of(planes, [nRows, width]) },
          codes: of(all.codes, [nRows, all.codes.shape[1] as number]),
          scale: of(all.scale, [nRows]),
          zero: of(all.zero, [nRows]),
          channel: of(balance.tensor, [width]),
        })
      }
      gatherRows({
        x: planes,
        rows: from,
        out: this.#view(out, [places.length, width], first * this.width),
      })
    }
  }

  /** Keys times b. */
  async #balanced(keys: Tensor<'f32'>, balance: Balance, nRows: number): Promise<Float32Array> {
    const staged = this.#room.tensor('inverse', 'f32', [this.#nPlanes, this.#planeWidth])
    convert({ x: balance.tensor, out: staged })
    const [values, inverse] = await Promise.all([keys.read(), staged.read()])
    const width = this.#planeWidth
    return values.map((value, i) => {
      const plane = Math.floor(i / (nRows * width))
      return value / (inverse[plane * width + (i % width)] as number)
    })
  }

  /** Codes and parameters of K (0) or V (1), planes below each other. */
  #codes({ codes, params, nRows }: LowRows, part: number) {
    const n = this.#nPlanes * nRows
    const bytes = codeBytesPerRow(this.#planeWidth, this.#plan.bits)
    return {
      codes: this.#view(codes, [n, bytes], part * n * bytes),
      scale: this.#view(params, [n], 2 * part * n),
      zero: this.#view(params, [n], (2 * part + 1) * n),
    }
  }

  /** The largest |x| of each column of the first rows. */
  async #largest(name: string, x: Tensor, width: number, nRows: number): Promise<Float32Array> {
    const floats = this.#room.tensor(name, 'f32', [nRows, width])
    convert({ x: this.#view(x, [nRows, width]), out: floats })
    const most = new Float32Array(width)
    for (const [i, value] of (await floats.read()).entries()) {
      const column = i % width
      most[column] = Math.max(most[column] as number, Math.abs(value))
    }
    return most
  }

  /** All of x in rows of `width` elements. */
  #cut<T extends Tensor>(x: T, width: number): T {
    return this.#view(x, [x.length / width, width])
  }

  #view<T extends Tensor>(x: T, shape: number[], offset = 0): T {
    return this.#room.scratch.keep(x.view(shape, offset)) as T
  }
}

/** Beyond it a reciprocal is no number of float16. */
const MAX_BALANCE = 60_000
