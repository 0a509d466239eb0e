/** Tensors know their element type; ops take tensors, and all that they need. */
import {
  Device,
  type DType,
  flashAttention,
  linear,
  type Program,
  quantize,
  siluGate,
  type Tensor,
  type TypedArrays,
} from '../../lib/ops/index.js'
import { quantize as referenceQuantize } from '../../lib/reference/index.js'
import { type Equal, expectType } from './equal.js'

export async function tensors(device: Device) {
  const f32 = device.tensor('f32', [2, 3])
  const bf16 = device.from(new Uint16Array(6), [2, 3], 'bf16')
  expectType<Equal<typeof f32, Tensor<'f32'>>>()
  expectType<Equal<typeof bf16, Tensor<'bf16'>>>()
  expectType<Equal<Awaited<ReturnType<typeof f32.read>>, Float32Array>>()
  expectType<Equal<Awaited<ReturnType<typeof bf16.read>>, Uint16Array>>()
  const bits = f32.reinterpret('i32', [6])
  expectType<Equal<typeof bits, Tensor<'i32'>>>()
  expectType<Equal<typeof f32.dtype, 'f32'>>()
  expectType<Equal<DType, keyof TypedArrays>>()
  const any: Tensor = f32 // an op takes any of them
  siluGate({ gate: any, up: f32, out: bf16 })

  // @ts-expect-error: no such element type
  device.tensor('f64', [2])
  // @ts-expect-error: a shape is a list
  device.tensor('f32', 6)
  // @ts-expect-error: float32 is not written as bytes
  f32.write(new Uint8Array(24))
  // @ts-expect-error: raw bits of 16-bit floats need their type
  device.from(new Uint16Array(6), [2, 3], 'f32')
  // @ts-expect-error: only bytes are given back
  device.discard(f32, 0, 64)
  // @ts-expect-error: extents are read
  f32.shape[0] = 3
  // @ts-expect-error: devices are opened
  new Device()
}

export function ops(x: Tensor, out: Tensor, cu: Tensor) {
  linear({ x, weight: x, out, accumulate: true })
  linear({ x, weight: x, out, bias: undefined })
  // @ts-expect-error: nowhere to write to
  linear({ x, weight: x })
  // @ts-expect-error: arrays go through a device
  siluGate({ gate: new Float32Array(2), up: x, out })
  // @ts-expect-error: whether rows see later keys is said each time
  flashAttention({ q: x, k: x, v: x, out, lse: out, cuSeqlensQ: cu, cuSeqlensK: cu, scale: 1 })
  // @ts-expect-error: no such scheme
  quantize({ x, codes: out, scale: out, zero: out, scheme: 'rowwise', bits: 4 })
  // @ts-expect-error: no codes of 16 bits
  quantize({ x, codes: out, scale: out, zero: out, scheme: 'cst', bits: 16 })
}

export async function programs(device: Device, f32: Tensor<'f32'>, u8: Tensor<'u8'>) {
  const program = device.record(() => siluGate({ gate: f32, up: f32, out: f32 }))
  expectType<Equal<typeof program, Program>>()
  const bytes = await program.run(f32, new Float32Array(2), u8)
  expectType<Equal<typeof bytes, Uint8Array>>()
  // @ts-expect-error: not the input's element type
  await program.run(f32, new Int32Array(2), u8)
}

export function reference() {
  const { codes } = referenceQuantize({
    x: [1, 2],
    rows: 1,
    channels: 2,
    bits: 4,
    scheme: 'tokenwise',
  })
  expectType<Equal<typeof codes, Uint8Array>>()
  // @ts-expect-error: how many rows there are, an array does not say
  referenceQuantize({ x: [1, 2], channels: 2, bits: 4, scheme: 'tokenwise' })
}
