import { TYPED_ARRAYS } from '../../lib/ops/dtype.js'
import type { Device, DType, Tensor, TypedArrays } from '../../lib/ops/index.js'
import { type FloatDtype, fromBf16, fromF16 } from '../../lib/reference/index.js'
import { atOddOffset } from './random-data.js'

/** The byte that fills what a test has not written yet. */
const CANARY = 0x5a

/**
 * The tensors of one test. Every tensor is a view into a larger one, with elements on either side
 * that no op may touch. By default it begins one element in, so that it is aligned to its element
 * and no further; 16 elements in, it is aligned to 16 bytes.
 */
export class DeviceTensors {
  readonly device: Device
  readonly #before: number
  readonly #frames = new Map<Tensor, Tensor>()
  readonly #others: Tensor[] = []

  constructor(device: Device, elementsBefore: 1 | 16 = 1) {
    this.device = device
    this.#before = elementsBefore
  }

  /** A tensor whose bytes are 0x5a: what an op leaves out shows. */
  output<D extends DType>(dtype: D, shape: readonly number[]): Tensor<D> {
    const length = shape.reduce((product, size) => product * size, 1)
    const frame = this.device.tensor(dtype, [this.#before + length + 1])
    const filling = new TYPED_ARRAYS[dtype](frame.length)
    new Uint8Array(filling.buffer).fill(CANARY)
    frame.write(filling as TypedArrays[D])
    const tensor = frame.view(shape, this.#before)
    this.#frames.set(tensor, frame)
    return tensor
  }

  /** A tensor with these values; 16-bit floats as raw bits. */
  input<D extends DType>(
    dtype: D,
    values: TypedArrays[D],
    shape: readonly number[] = [values.length],
  ): Tensor<D> {
    return this.output(dtype, shape).write(atOddOffset(values))
  }

  i32(values: ArrayLike<number>, shape: readonly number[] = [values.length]): Tensor<'i32'> {
    return this.input('i32', Int32Array.from(values), shape)
  }

  f32(values: ArrayLike<number>, shape: readonly number[] = [values.length]): Tensor<'f32'> {
    return this.input('f32', Float32Array.from(values), shape)
  }

  /** Disposes a tensor made elsewhere with these. */
  own<T extends Tensor>(tensor: T): T {
    this.#others.push(tensor)
    return tensor
  }

  /** The elements of a tensor made here, once it is known that its neighbours are untouched. */
  async read<D extends DType>(tensor: Tensor<D>): Promise<TypedArrays[D]> {
    const frame = this.#frames.get(tensor as Tensor)
    if (!frame) throw new Error('the tensor was made elsewhere')
    const all = (await frame.read()) as TypedArrays[D]
    const bytes = new Uint8Array(all.buffer)
    const size = all.BYTES_PER_ELEMENT
    const before = bytes.subarray(0, this.#before * size)
    const outside = [...before, ...bytes.subarray(bytes.length - size)]
    if (outside.some((byte) => byte !== CANARY)) {
      throw new Error(`an op wrote outside of a tensor of shape (${tensor.shape.join(', ')})`)
    }
    return all.subarray(this.#before, all.length - 1) as TypedArrays[D]
  }

  /** The same as numbers, 16-bit floats widened. */
  async values(tensor: Tensor): Promise<Float64Array> {
    const stored = await this.read(tensor)
    if (tensor.dtype === 'f16') return fromF16(stored)
    if (tensor.dtype === 'bf16') return fromBf16(stored)
    return Float64Array.from(stored)
  }

  dispose(): void {
    for (const [tensor, frame] of this.#frames) {
      tensor.dispose()
      frame.dispose()
    }
    this.#frames.clear()
    for (const tensor of this.#others.splice(0)) tensor.dispose()
  }
}

/** The float dtypes, for `test.each`. */
export const floatDtypes: readonly FloatDtype[] = ['f32', 'f16', 'bf16']
