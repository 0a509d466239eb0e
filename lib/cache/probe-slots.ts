import { ZipCacheError } from '../errors.js'
import { type Device, type DType, type Tensor, tensorBytes } from '../ops/index.js'

/** What a probe row is made of. */
export interface ProbeShape {
  readonly nLayers: number
  readonly nHeads: number
  readonly headDim: number
  readonly dtype: DType
}

/**
 * Room for the probe rows of all running windows, in tensors of fixed address: a slot keeps the
 * query and the log-sum-exp of one token in every layer. Sequences that share a past share its slots.
 */
export class ProbeSlots {
  /** One a layer: q (capacity, n_heads, head_dim), lse (capacity, n_heads) f32. */
  readonly layers: readonly { readonly q: Tensor; readonly lse: Tensor<'f32'> }[]
  readonly slotBytes: number
  readonly #capacity: number
  readonly #tensors: Tensor[] = []
  readonly #holders: number[] = []
  /** Slots that were used and are free. */
  readonly #free: number[] = []

  /** Throws `ERR_ZC_OUT_OF_MEMORY` when the memory cannot be had. */
  constructor(device: Device, shape: ProbeShape, capacity: number) {
    const { nLayers, nHeads, headDim, dtype } = shape
    this.#capacity = capacity
    this.slotBytes = probeSlotBytes(shape)
    const layers: { q: Tensor; lse: Tensor<'f32'> }[] = []
    this.layers = layers
    try {
      while (layers.length < nLayers) {
        const q = device.reserve(dtype, [capacity, nHeads, headDim])
        this.#tensors.push(q)
        const lse = device.reserve('f32', [capacity, nHeads])
        this.#tensors.push(lse)
        layers.push({ q, lse })
      }
    } catch (error) {
      this.dispose()
      throw error
    }
  }

  /** Bytes of slots that are given out. */
  get usedBytes(): number {
    return (this.#holders.length - this.#free.length) * this.slotBytes
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

  retain(slot: number): void {
    this.#holders[slot] = (this.#holders[slot] as number) + 1
  }

  free(slot: number): void {
    const holders = (this.#holders[slot] as number) - 1
    this.#holders[slot] = holders
    if (holders === 0) this.#free.push(slot)
  }

  dispose(): void {
    for (const tensor of this.#tensors) tensor.dispose()
  }
}

/** Bytes of one slot: a row's query and log-sum-exp in every layer. */
export function probeSlotBytes({ nLayers, nHeads, headDim, dtype }: ProbeShape): number {
  return nLayers * (tensorBytes(dtype, [nHeads, headDim]) + 4 * nHeads)
}
