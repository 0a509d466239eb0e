import { ZipCacheError } from '../errors.js'
import { type Device, type DType, type Tensor, tensorBytes } from '../ops/index.js'

/** What a probe row is made of, in layers whose heads are alike. */
export interface ProbeShape {
  readonly nLayers: number
  readonly nHeads: number
  readonly headDim: number
  readonly dtype: DType
}

/** The rows of all slots, in layers whose heads are alike. */
export class ProbeRows {
  /** All of it: q (n_layers, capacity, n_heads, head_dim), lse (n_layers, capacity, n_heads) f32. */
  readonly all: { readonly q: Tensor; readonly lse: Tensor<'f32'> }
  /** Views, one a layer: q (capacity, n_heads, head_dim), lse (capacity, n_heads) f32. */
  readonly layers: readonly { readonly q: Tensor; readonly lse: Tensor<'f32'> }[]
  readonly #tensors: Tensor[] = []

  /** Throws `ERR_ZC_OUT_OF_MEMORY` when the memory cannot be had. */
  constructor(device: Device, { nLayers, nHeads, headDim, dtype }: ProbeShape, capacity: number) {
    try {
      const q = this.#keep(device.reserve<DType>(dtype, [nLayers, capacity, nHeads, headDim]))
      const lse = this.#keep(device.reserve('f32', [nLayers, capacity, nHeads]))
      this.all = { q, lse }
      this.layers = Array.from({ length: nLayers }, (_, layer) => {
        const rows = layer * capacity * nHeads
        return {
          q: this.#keep(q.view([capacity, nHeads, headDim], rows * headDim)),
          lse: this.#keep(lse.view([capacity, nHeads], rows)),
        }
      })
    } catch (error) {
      this.dispose()
      throw error
    }
  }

  /**
   * Views of layers that follow each other, for the caller to dispose of: q (n_layers, capacity,
   * n_heads, head_dim), lse (n_layers, capacity, n_heads) f32.
   */
  ofLayers(first: number, nLayers: number): { q: Tensor; lse: Tensor<'f32'> } {
    const [, capacity, nHeads, headDim] = this.all.q.shape as [number, number, number, number]
    const rows = first * capacity * nHeads
    return {
      q: this.all.q.view([nLayers, capacity, nHeads, headDim], rows * headDim),
      lse: this.all.lse.view([nLayers, capacity, nHeads], rows),
    }
  }

  #keep<T extends Tensor>(tensor: T): T {
    this.#tensors.push(tensor)
    return tensor
  }

  dispose(): void {
    for (const tensor of this.#tensors) tensor.dispose()
  }
}

/**
 * Room for the probe rows of all running windows, in tensors of fixed address: a slot keeps the
 * query and the log-sum-exp of one token in every layer. Sequences that share a past share its slots.
 */
export class ProbeSlots {
  /** (n_shapes) what a slot keeps, layers of one shape after those of the other. */
  readonly ofShapes: readonly ProbeRows[]
  readonly slotBytes: number
  readonly #capacity: number
  readonly #holders: number[] = []
  /** Slots that were used and are free. */
  readonly #free: number[] = []

  /** Throws `ERR_ZC_OUT_OF_MEMORY` when the memory cannot be had. */
  constructor(device: Device, shapes: readonly ProbeShape[], capacity: number) {
    this.#capacity = capacity
    this.slotBytes = probeSlotBytes(shapes)
    const made: ProbeRows[] = []
    this.ofShapes = made
    try {
      for (const shape of shapes) made.push(new ProbeRows(device, shape, capacity))
    } catch (error) {
      this.dispose()
      throw error
    }
  }

  /** Slots that can be given out. */
  get nFree(): number {
    return this.#capacity - this.#holders.length + this.#free.length
  }

  /** Bytes of slots that are given out. */
  get usedBytes(): number {
    return (this.#capacity - this.nFree) * this.slotBytes
  }

  /** Throws `ERR_ZC_OUT_OF_MEMORY` when all slots are given out. */
  allocate(): number {
    const slot = this.#free.pop() ?? this.#holders.length
    if (slot >= this.#capacity) {
      throw new ZipCacheError(
        'ERR_ZC_OUT_OF_MEMORY',
        `kvMemory: all ${this.#capacity} probe rows of running windows are in use`,
        { argument: 'kvMemory' },
      )
    }
    this.#holders[slot] = 1
    return slot
  }

  /** Whether a slot has more than one holder. */
  isShared(slot: number): boolean {
    return (this.#holders[slot] as number) > 1
  }

  retain(slot: number): void {
    this.#holders[slot] = (this.#holders[slot] as number) + 1
  }

  free(slot: number): void {
    const holders = (this.#holders[slot] as number) - 1
    this.#holders[slot] = holders
    if (holders === 0) this.#free.push(slot)
  }

  dispose(): void {
    for (const rows of this.ofShapes) rows.dispose()
  }
}

/** Bytes of one slot: a row's query and log-sum-exp in every layer. */
export function probeSlotBytes(shapes: readonly ProbeShape[]): number {
  return shapes.reduce(
    (sum, { nLayers, nHeads, headDim, dtype }) =>
      sum + nLayers * (tensorBytes(dtype, [nHeads, headDim]) + 4 * nHeads),
    0,
  )
}
