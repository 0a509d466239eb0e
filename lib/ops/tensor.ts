import { ZipCacheError } from '../errors.js'
import type { TensorHandle } from '../native/addon.js'
import { loadAddon } from '../native/load.js'
import { checkNumber } from './arguments.js'
import type { Device } from './device.js'
import { DTYPE_BYTES, DTYPES, type DType, TYPED_ARRAYS, type TypedArrays } from './dtype.js'

/**
 * Row-major device memory with a dtype and a shape. Made by `Device.tensor` and `Device.from`;
 * freed by `dispose`, in stream order: after the last op that was enqueued before. The garbage
 * collector frees what was forgotten.
 */
export class Tensor<D extends DType = DType> {
  /** Where it lies. */
  readonly device: Device
  /** Type of its elements. */
  readonly dtype: D
  /** Extents, the outermost first. */
  readonly shape: readonly number[]
  /** @internal */
  readonly handle: TensorHandle
  #disposed = false

  /** @internal */
  constructor(device: Device, handle: TensorHandle, dtype: D, shape: readonly number[]) {
    this.device = device
    this.handle = handle
    this.dtype = dtype
    this.shape = shape
  }

  /** Number of elements. */
  get length(): number {
    return this.shape.reduce((product, size) => product * size, 1)
  }

  /** Bytes of all elements. */
  get sizeBytes(): number {
    return this.length * DTYPE_BYTES[this.dtype]
  }

  /** Whether `dispose` was called. */
  get disposed(): boolean {
    return this.#disposed
  }

  /**
   * Enqueues a copy of `values` into the tensor from element `offset` on; `values` may change once
   * this returns.
   *
   * Throws `ERR_ZC_DTYPE` when the array's type is not the tensor's, `ERR_ZC_SHAPE` when it does
   * not fit.
   */
  write(values: TypedArrays[D], offset = 0): this {
    const own = storable(values, this.dtype)
    checkNumber('offset', offset)
    loadAddon().writeTensor(this.handle, own, offset * DTYPE_BYTES[this.dtype])
    return this
  }

  /**
   * The elements, once everything enqueued before has run; 16-bit floats as raw bits.
   *
   * Rejects with the first error of an earlier op.
   */
  async read(): Promise<TypedArrays[D]> {
    const buffer = await loadAddon().readTensor(this.handle)
    return new TYPED_ARRAYS[this.dtype](buffer) as TypedArrays[D]
  }

  /**
   * The same memory under another shape, from element `offset` on; it stays alive while either
   * tensor does.
   *
   * Throws `ERR_ZC_SHAPE` when it would reach beyond this tensor.
   */
  view(shape: readonly number[], offset = 0): Tensor<D> {
    checkNumber('offset', offset)
    const handle = loadAddon().viewTensor(
      this.handle,
      DTYPES.indexOf(this.dtype),
      shape,
      offset * DTYPE_BYTES[this.dtype],
    )
    return new Tensor(this.device, handle, this.dtype, [...shape])
  }

  /**
   * `view` that reads the bytes as another dtype: bit patterns of floats in a tensor of integers.
   *
   * Throws `ERR_ZC_SHAPE` when it would reach beyond this tensor or begin between two elements.
   */
  reinterpret<E extends DType>(dtype: E, shape: readonly number[], offset = 0): Tensor<E> {
    checkNumber('offset', offset)
    const byteOffset = offset * DTYPE_BYTES[this.dtype]
    const handle = loadAddon().viewTensor(this.handle, DTYPES.indexOf(dtype), shape, byteOffset)
    return new Tensor(this.device, handle, dtype, [...shape])
  }

  /** Lets go of the memory; later uses throw `ERR_ZC_HANDLE`. Idempotent. */
  dispose(): void {
    if (this.#disposed) return
    this.#disposed = true
    loadAddon().disposeTensor(this.handle)
  }

  /** `dispose`, for `using`. */
  [Symbol.dispose](): void {
    this.dispose()
  }
}

/**
 * A tensor as the addon knows it. Of what is none, or absent, this is undefined: where an op needs
 * a tensor the addon says which.
 */
export function handleOf(tensor: Tensor): TensorHandle
export function handleOf(tensor: Tensor | undefined): TensorHandle | undefined
export function handleOf(tensor: Tensor | null | undefined): TensorHandle | undefined {
  return tensor?.handle
}

/**
 * Values as N-API takes them: it does not open shared memory, so that is copied.
 *
 * Throws `ERR_ZC_DTYPE` when the array's type is not the dtype's.
 */
export function storable<D extends DType>(values: TypedArrays[D], dtype: D): TypedArrays[D] {
  if (values instanceof TYPED_ARRAYS[dtype]) {
    return values.buffer instanceof SharedArrayBuffer ? (values.slice() as TypedArrays[D]) : values
  }
  throw new ZipCacheError(
    'ERR_ZC_DTYPE',
    `values: is not a ${TYPED_ARRAYS[dtype].name}, which a tensor of ${dtype} needs`,
    { argument: 'values' },
  )
}
