import type { CacheMemory, KvShape } from '../cache/index.js'
import type { Scratch } from '../model/scratch.js'
import { codeBytesPerRow, convert, type Tensor } from '../ops/index.js'
import type { TieredPlan } from '../policy/policy.js'
import type { Probes } from './compress.js'
import { type Balance, GROUPS, type LowRows, PlaneCoder } from './plane-coder.js'
import { gatherHeads, Room } from './room.js'
import { scoreRows } from './row-scores.js'
import { NewTensors, type RowBytes, type RowStore, type RowWriter, rowShape } from './row-store.js'

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
    const tensors = new NewTensors(this.#memory)
    const room = new Room(scratch)
    const coder = new PlaneCoder(rowShape(this.#memory), this.plan, room)
    return {
      nObservers: nTokens,
      get bytes() {
        return tensors.bytes
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
        added.push(await this.#grow(layer, k, v, counts, probes as Probes, coder, room, tensors))
      },
      publish: () => {
        // What the new layers hold of the old ones is held once more before those let go.
        for (const { low, balance } of added) for (const part of [...low, balance]) part.nHolders++
        for (const old of this.#layers) this.#free(old)
        this.#layers = added
        this.#length = length
        this.#nHigh = nKept
      },
      discard: () => tensors.discard(),
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
    tensors: NewTensors,
  ): Promise<Layer> {
    const shape = rowShape(this.#memory)
    const { nKvHeads } = shape
    const held = this.#layers[layer]
    const nRows = nLow + nHigh
    const before = { scores: held?.scores ?? null, first: nLow }
    const scores = await scoreRows(shape, k, nRows, probes, before, room)
    const balance = held?.balance ?? (await coder.balanceOf(k, nRows, probes, tensors))

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
        codes: tensors.make('u8', coder.codesShape(nOthers)),
        params: tensors.make('f16', coder.paramsShape(nOthers)),
        nHolders: 0,
      }
      await coder.encode(rows, balance, k, v, others)
      low.push(rows)
    }
    const own = gatherHeads(k, v, kept, tensors, room)
    const stored = tensors.make('f32', [nKvHeads, nKept]).write(keptScores)
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
