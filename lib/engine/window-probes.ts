import { convert, type Device, type DType, storeProbes, type Tensor } from '../ops/index.js'

/** What a probe row is made of. */
export interface ProbeShape {
  readonly nHeads: number
  readonly headDim: number
  readonly dtype: DType
}

/**
 * The probe rows of the running window: which of its tokens are probes is drawn when it opens;
 * their queries and log-sum-exps are kept until it closes and its tokens are scored.
 */
export class WindowProbes {
  /** Tokens of the window that are probes, ascending. */
  readonly steps: Int32Array
  readonly #device: Device
  readonly #shape: ProbeShape
  /** For each layer, the rows kept so far and room for some more. */
  readonly #layers: { q: Tensor; lse: Tensor<'f32'> }[]

  constructor(device: Device, steps: Int32Array, shape: ProbeShape) {
    this.#device = device
    this.steps = steps
    this.#shape = shape
    this.#layers = []
  }

  /** Bytes of the rows kept, and of the room for more. */
  get bytes(): number {
    return this.#layers.reduce((sum, { q, lse }) => sum + q.sizeBytes + lse.sizeBytes, 0)
  }

  /**
   * For the window's tokens [first, first + n): the slot to keep each in, -1 for none; null when
   * none is a probe.
   */
  slots(first: number, n: number): Int32Array | null {
    const slots = new Int32Array(n).fill(-1)
    let any = false
    this.steps.forEach((step, slot) => {
      if (step < first || step >= first + n) return
      slots[step - first] = slot
      any = true
    })
    return any ? slots : null
  }

  /** Keeps the rows of one layer that `slots` names; `highest` is the last of them. */
  store(layer: number, q: Tensor, lse: Tensor<'f32'>, slots: Tensor<'i32'>, highest: number): void {
    const kept = this.#room(layer, highest + 1)
    storeProbes({ q, lse, slots, probeQ: kept.q, probeLse: kept.lse })
  }

  /**
   * The rows of one layer: (at least steps.length, n_heads, head_dim) and (the same, n_heads). They
   * stay this object's.
   */
  layer(layer: number): { q: Tensor; lse: Tensor } {
    return this.#room(layer, this.steps.length)
  }

  dispose(): void {
    for (const { q, lse } of this.#layers) {
      q.dispose()
      lse.dispose()
    }
    this.#layers.length = 0
  }

  /**
   * The tensors of a layer with at least `nSlots` slots: few windows are full, so they grow by
   * doubling.
   */
  #room(layer: number, nSlots: number): { q: Tensor; lse: Tensor<'f32'> } {
    const old = this.#layers[layer]
    const capacity = old?.q.shape[0] ?? 0
    if (old && capacity >= nSlots) return old
    const { nHeads, headDim, dtype } = this.#shape
    const size = Math.min(Math.max(nSlots, 2 * capacity), this.steps.length)
    const grown = {
      q: this.#device.tensor(dtype, [size, nHeads, headDim]),
      lse: this.#device.tensor('f32', [size, nHeads]),
    }
    if (old) {
      copyFront(old.q, grown.q)
      copyFront(old.lse, grown.lse)
      old.q.dispose()
      old.lse.dispose()
    }
    this.#layers[layer] = grown
    return grown
  }
}

function copyFront(from: Tensor, to: Tensor): void {
  const front = to.view(from.shape)
  convert({ x: from, out: front })
  front.dispose()
}
