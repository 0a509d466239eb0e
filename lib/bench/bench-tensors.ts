import { DTYPE_BYTES, TYPED_ARRAYS } from '../ops/dtype.js'
import type { Device, DType, Tensor, TypedArrays } from '../ops/index.js'
import { type FloatDtype, fromBf16, fromF16, toBf16, toF16 } from '../reference/index.js'

/** Random numbers are made once, so many, and then repeat: what is timed does not look at them. */
const kDistinct = 1 << 20
/** Tensors of different seeds begin at different ones of them, a multiple of 16 apart. */
const kSeedStride = 16 * 4099
/** Elements of one copy to the device. */
const kWriteElements = 1 << 22

/** The tensors of some measurements, and what random numbers they hold. */
export class BenchTensors {
  readonly device: Device
  /** Inputs of one op, all copies together, have at least so many bytes: see `cold`. */
  readonly coldBytes: number
  readonly #all: Tensor[] = []
  readonly #distinct: number
  /** Numbers as they are stored, by dtype and deviation. */
  readonly #blocks = new Map<string, TypedArrays[FloatDtype]>()

  /** `distinct`: so many random numbers are made before they repeat. */
  constructor(device: Device, coldBytes: number, distinct = kDistinct) {
    this.device = device
    this.coldBytes = coldBytes
    this.#distinct = distinct
  }

  /** A tensor of NaN or, of integers, of ones in every bit: what an op leaves out shows. */
  output<D extends DType>(dtype: D, shape: readonly number[]): Tensor<D> {
    const tensor = this.#own(this.device.tensor(dtype, shape))
    const poison = new TYPED_ARRAYS[dtype](Math.min(tensor.length, kWriteElements))
    new Uint8Array(poison.buffer).fill(0xff)
    for (let at = 0; at < tensor.length; at += poison.length) {
      tensor.write(poison.subarray(0, tensor.length - at) as TypedArrays[D], at)
    }
    return tensor
  }

  i32(values: ArrayLike<number>, shape: readonly number[] = [values.length]): Tensor<'i32'> {
    return this.#own(this.device.from(Int32Array.from(values), shape, 'i32'))
  }

  f32(values: ArrayLike<number>, shape: readonly number[] = [values.length]): Tensor<'f32'> {
    return this.#own(this.device.from(Float32Array.from(values), shape, 'f32'))
  }

  /** Normal numbers; every 16th column is 8 times as large, as channels of keys are. */
  normal<D extends FloatDtype>(
    dtype: D,
    shape: readonly number[],
    { deviation = 1, seed = 1 } = {},
  ): Tensor<D> {
    return this.#normals(dtype, shape, 1, deviation, seed)[0] as Tensor as Tensor<D>
  }

  /**
   * The same input several times over, together at least `coldBytes`: taken in turn, each comes
   * from memory, as weights and caches do in a model that is larger than the processor's caches.
   */
  cold(dtype: FloatDtype, shape: readonly number[], { deviation = 1, seed = 1 } = {}): Tensor[] {
    const copies = this.copiesOf(product(shape) * DTYPE_BYTES[dtype])
    return this.#normals(dtype, shape, copies, deviation, seed)
  }

  /** How many inputs of this size are together at least `coldBytes`. */
  copiesOf(bytes: number): number {
    return Math.max(1, Math.ceil(this.coldBytes / bytes))
  }

  /** The same bytes so many times, side by side; see `cold`. */
  coldBytesOf(bytes: Uint8Array): Tensor<'u8'>[] {
    const copies = this.copiesOf(bytes.length)
    const all = this.#own(this.device.tensor('u8', [copies * bytes.length]))
    for (let copy = 0; copy < copies; copy++) all.write(bytes, copy * bytes.length)
    return Array.from({ length: copies }, (_, copy) =>
      this.#own(all.view([bytes.length], copy * bytes.length)),
    )
  }

  /** Part of a tensor, from element `offset` on; it goes when the others go. */
  view<D extends DType>(tensor: Tensor<D>, shape: readonly number[], offset = 0): Tensor<D> {
    return this.#own(tensor.view(shape, offset))
  }

  /** Lets go of all tensors; new ones can be made. */
  dispose(): void {
    for (const tensor of this.#all.splice(0)) tensor.dispose()
  }

  /** One tensor as long as `copies` of the shape, seen as that many. */
  #normals(
    dtype: FloatDtype,
    shape: readonly number[],
    copies: number,
    deviation: number,
    seed: number,
  ): Tensor[] {
    const block = this.#block(dtype, deviation)
    const length = product(shape)
    const all = this.#own(this.device.tensor(dtype, [copies * length]))
    for (let copy = 0; copy < copies; copy++) {
      let from = (seed * kSeedStride) % block.length
      for (let at = 0; at < length; ) {
        const part = block.subarray(from, from + length - at)
        all.write(part as never, copy * length + at)
        at += part.length
        from = 0
      }
    }
    return Array.from({ length: copies }, (_, copy) => this.#own(all.view(shape, copy * length)))
  }

  #block(dtype: FloatDtype, deviation: number): TypedArrays[FloatDtype] {
    const key = `${dtype} ${deviation}`
    const known = this.#blocks.get(key)
    if (known) return known
    const block = store(dtype, outlierNormals(this.#distinct, deviation, 1))
    this.#blocks.set(key, block)
    return block
  }

  #own<T extends Tensor>(tensor: T): T {
    this.#all.push(tensor)
    return tensor
  }
}

/** The elements of a tensor as numbers, 16-bit floats widened. */
export async function valuesOf(tensor: Tensor): Promise<Float64Array> {
  return widened(tensor.dtype, await tensor.read())
}

/** What stored elements mean. */
export function widened(dtype: DType, stored: TypedArrays[DType]): Float64Array {
  if (dtype !== 'f16') {
    return dtype === 'bf16' ? fromBf16(stored) : Float64Array.from(stored)
  }
  // There are only so many: a table is many times faster than computing millions of them.
  halves ??= fromF16(Uint16Array.from({ length: 1 << 16 }, (_, bits) => bits))
  const values = new Float64Array(stored.length)
  for (let i = 0; i < values.length; i++) values[i] = halves[stored[i] as number] as number
  return values
}

let halves: Float64Array | undefined

/** Takes the copies in turn, from the first on. */
export function inTurn<T>(copies: readonly T[]): () => T {
  let next = 0
  return () => copies[next++ % copies.length] as T
}

/** Normal numbers, every 16th 8 times as large as the others. */
export function outlierNormals(length: number, deviation: number, seed: number): Float32Array {
  const next = uniforms(seed)
  const out = new Float32Array(length)
  for (let i = 0; i < length; i++) {
    // Box and Muller's method.
    const normal = Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next())
    out[i] = deviation * normal * (i & 15 ? 1 : 8)
  }
  return out
}

/** Seeded numbers of [0, 1): Marsaglia's xorshift, 32 bits, for a million numbers in no time. */
export function uniforms(seed: number): () => number {
  let state = Math.imul(seed + 1, 0x9e3779b1) | 1
  return () => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return (state >>> 0) / 2 ** 32
  }
}

function store(dtype: FloatDtype, values: Float32Array): TypedArrays[FloatDtype] {
  switch (dtype) {
    case 'f32':
      return values
    case 'f16':
      return toF16(values)
    case 'bf16':
      return toBf16(values)
  }
}

function product(shape: readonly number[]): number {
  return shape.reduce((all, size) => all * size, 1)
}
