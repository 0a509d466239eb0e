import type { CacheMemory } from '../cache/index.js'
import type { Scratch } from '../model/scratch.js'
import { convert, type Tensor } from '../ops/index.js'
import type { KeptPlan } from '../policy/policy.js'
import type { Probes } from './compress.js'
import { gatherHeads, Room } from './room.js'
import { scoreRows } from './row-scores.js'
import { NewTensors, type RowBytes, type RowStore, type RowWriter, rowShape } from './row-store.js'

/** The rows that one layer keeps. Never written again, so that forks share them. */
interface Layer {
  /** (n_rows, n_kv_heads, head_dim): row r is the r-th token that a head kept, each its own. */
  readonly k: Tensor<'f16'>
  readonly v: Tensor<'f16'>
  /** (n_kv_heads, n_rows), where the plan accumulates. */
  readonly scores: Tensor<'f32'> | null
  nHolders: number
}

/**
 * `KeptPlan` at work: some tokens of each KV head in 16 bits, the others dropped. Keys were rotated
 * to their positions before, so that a row needs none.
 */
export class KeptRows implements RowStore {
  readonly plan: KeptPlan
  readonly #memory: CacheMemory
  #layers: Layer[] = []
  #length = 0
  #nRows = 0
  /** Tokens there were when the last prompt ended. */
  #promptLength = 0

  constructor(memory: CacheMemory, plan: KeptPlan) {
    this.#memory = memory
    this.plan = plan
  }

  get length(): number {
    return this.#length
  }

  get nRows(): number {
    return this.#nRows
  }

  get bytes(): RowBytes {
    const bytes = { rows: 0, low: 0, params: 0, tail: 0, scores: 0 }
    for (const { k, v, scores } of this.#layers) {
      bytes.rows += k.sizeBytes + v.sizeBytes
      bytes.scores += scores?.sizeBytes ?? 0
    }
    return bytes
  }

  begin(nTokens: number, isPrompt: boolean, scratch: Scratch): RowWriter {
    const length = this.#length + nTokens
    const promptLength = isPrompt ? length : this.#promptLength
    const nRows = this.#nRows + nTokens
    const facts = { nRows, promptLength, isPrompt }
    const nKept = this.plan.nKept(facts)
    const added: Layer[] = []
    const room = new Room(scratch)
    const tensors = new NewTensors(this.#memory)
    return {
      nObservers: nKept < nRows || this.plan.accumulates ? this.plan.nObservers(facts, nTokens) : 0,
      get bytes() {
        return tensors.bytes
      },
      read: (layer, k, v) => this.#read(layer, k, v, scratch),
      write: async (layer, k, v, probes) => {
        added.push(await this.#keep(layer, k, v, { ...facts, nKept }, probes, room, tensors))
      },
      publish: () => {
        for (const old of this.#layers) this.#free(old)
        this.#layers = added
        this.#length = length
        this.#nRows = nKept
        this.#promptLength = promptLength
      },
      discard: () => tensors.discard(),
    }
  }

  fork(): RowStore {
    const copy = new KeptRows(this.#memory, this.plan)
    for (const layer of this.#layers) layer.nHolders++
    copy.#layers = [...this.#layers]
    copy.#length = this.#length
    copy.#nRows = this.#nRows
    copy.#promptLength = this.#promptLength
    return copy
  }

  dispose(): void {
    for (const layer of this.#layers.splice(0)) this.#free(layer)
  }

  #free(layer: Layer): void {
    if (--layer.nHolders > 0) return
    for (const tensor of [layer.k, layer.v, layer.scores]) {
      if (tensor) this.#memory.freeRows(tensor)
    }
  }

  #read(layer: number, k: Tensor, v: Tensor, scratch: Scratch): void {
    const held = this.#layers[layer]
    if (!held) return
    for (const [x, out] of [
      [held.k, k],
      [held.v, v],
    ] as const) {
      convert({ x, out: scratch.keep(out.view(x.shape)) })
    }
  }

  async #keep(
    layer: number,
    k: Tensor,
    v: Tensor,
    facts: { nRows: number; nKept: number; promptLength: number; isPrompt: boolean },
    probes: Probes | null,
    room: Room,
    tensors: NewTensors,
  ): Promise<Layer> {
    const shape = rowShape(this.#memory)
    const { nKvHeads } = shape
    const { nRows, nKept } = facts
    const before = { scores: this.#layers[layer]?.scores ?? null, first: 0 }
    const scores = probes ? await scoreRows(shape, k, nRows, probes, before, room) : null
    const kept = Array.from({ length: nKvHeads }, (_, head) =>
      nKept < nRows && scores
        ? this.plan.select(scores.subarray(head * nRows, (head + 1) * nRows), facts)
        : Int32Array.from({ length: nKept }, (_, row) => row),
    )
    const own = gatherHeads(k, v, kept, tensors, room)
    if (!this.plan.accumulates || !scores) return { ...own, scores: null, nHolders: 1 }
    const ownScores = new Float32Array(nKvHeads * nKept)
    for (const [head, rowsOfHead] of kept.entries()) {
      rowsOfHead.forEach((row, r) => {
        ownScores[head * nKept + r] = scores[head * nRows + row] as number
      })
    }
    const stored = tensors.make('f32', [nKvHeads, nKept]).write(ownScores)
    return { ...own, scores: stored, nHolders: 1 }
  }
}
