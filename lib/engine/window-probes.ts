import type { ProbeSlots } from '../cache/index.js'

/**
 * The probe rows of the running window: which of its tokens are probes is drawn when it opens;
 * their queries and log-sum-exps are kept in slots until it closes and its tokens are scored.
 */
export class WindowProbes {
  /** Tokens of the window that are probes, ascending. */
  readonly steps: Int32Array
  readonly #arena: ProbeSlots
  /** Slots of the first probes, in the order of `steps`. */
  readonly #slots: number[] = []

  constructor(arena: ProbeSlots, steps: Int32Array) {
    this.#arena = arena
    this.steps = steps
  }

  /** Bytes of the rows kept. */
  get bytes(): number {
    return this.#slots.length * this.#arena.slotBytes
  }

  /** How many rows are kept that no fork holds, too. */
  get nOwn(): number {
    return this.#slots.filter((slot) => !this.#arena.isShared(slot)).length
  }

  /** The slots of all probes so far, in the order of `steps`. */
  get slots(): Int32Array {
    return Int32Array.from(this.#slots)
  }

  /**
   * For the window's next tokens [first, first + n): the slot to keep each in, -1 for none.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY`, with nothing taken.
   */
  take(first: number, n: number): Int32Array {
    const before = this.#slots.length
    const slots = new Int32Array(n).fill(-1)
    try {
      for (const step of this.steps) {
        if (step < first || step >= first + n) continue
        const slot = this.#arena.allocate()
        this.#slots.push(slot)
        slots[step - first] = slot
      }
    } catch (error) {
      this.#keep(before)
      throw error
    }
    return slots
  }

  /** Gives back the slots of the window's tokens from `length` on. */
  truncate(length: number): void {
    this.#keep(this.steps.filter((step) => step < length).length)
  }

  /** Probe rows with the same content, in shared slots: they are never written twice. */
  fork(): WindowProbes {
    const copy = new WindowProbes(this.#arena, this.steps)
    for (const slot of this.#slots) {
      this.#arena.retain(slot)
      copy.#slots.push(slot)
    }
    return copy
  }

  dispose(): void {
    this.#keep(0)
  }

  #keep(n: number): void {
    for (const slot of this.#slots.splice(n)) this.#arena.free(slot)
  }
}
