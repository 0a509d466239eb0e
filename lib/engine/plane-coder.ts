import type { KvShape } from '../cache/index.js'
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
import type { Room } from './room.js'
import type { NewTensors } from './row-store.js'

/** Groups of channels that a head is quantized in. */
export const GROUPS = 2

/**
 * Some rows of each KV head, its own, that were quantized together: group g of head h is plane
 * GROUPS h + g, (nRows, head_dim / GROUPS).
 */
export interface LowRows {
  readonly nRows: number
  /** (planes, nRows, bytes) u8 of K, then of V. */
  readonly codes: Tensor<'u8'>
  /** (4, planes, nRows): scales and zeros of K, then of V. */
  readonly params: Tensor<'f16'>
  nHolders: number
}

/** (planes, head_dim / GROUPS): what dequantized keys are multiplied by, 1 / b. */
export interface Balance {
  readonly tensor: Tensor<'f16'>
  nHolders: number
}

/** Beyond it a reciprocal is no number of float16. */
const MAX_BALANCE = 60_000

/** Moves rows of heads between tensors (rows, n_kv_heads, head_dim) and planes. */
export class PlaneCoder {
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

  /**
   * What balances a layer's keys: b = sqrt(max |q| / max |k|) of each channel, over the rows of the
   * prompt and the query heads of a KV head.
   *
   * Source: MiKV (arXiv 2402.18096) Eq. 2.
   */
  async balanceOf(k: Tensor, nRows: number, { q }: Probes, tensors: NewTensors): Promise<Balance> {
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
    const tensor = tensors.make('f16', [this.#nPlanes, this.#planeWidth])
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
