import type { Device, DType, Tensor } from '../ops/index.js'
import { tensorBytes } from '../ops/index.js'

/**
 * Tensors that live for one step. They are freed together, in stream order, when the step is done
 * or given up.
 */
export class Scratch {
  readonly #device: Device
  readonly #tensors: Tensor[] = []
  #bytes = 0

  constructor(device: Device) {
    this.#device = device
  }

  /** Bytes of all tensors made so far. */
  get bytes(): number {
    return this.#bytes
  }

  tensor<D extends DType>(dtype: D, shape: readonly number[]): Tensor<D> {
    const tensor = this.#device.tensor(dtype, shape)
    this.#bytes += tensorBytes(dtype, shape)
    return this.keep(tensor)
  }

  /** A tensor holding these whole numbers. */
  ints(values: Int32Array): Tensor<'i32'> {
    return this.tensor('i32', [values.length]).write(values)
  }

  /** Frees `tensor` with the others: a view, say. */
  keep<T extends Tensor>(tensor: T): T {
    this.#tensors.push(tensor)
    return tensor
  }

  dispose(): void {
    for (const tensor of this.#tensors) tensor.dispose()
    this.#tensors.length = 0
  }
}
