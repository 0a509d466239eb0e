// A writer of GGUF files, as far as a LLaMA model needs it.
// Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
import { closeSync, openSync, writeSync } from 'node:fs'

const kVersion = 3
/** Tensors begin at multiples of this many bytes: the format's default. */
const kAlignment = 32

/** Metadata value types. */
const kUint32 = 4
const kInt32 = 5
const kFloat32 = 6
const kBool = 7
const kString = 8
const kArray = 9

const kTensorTypes = {
  F32: { id: 0, elementBytes: 4 },
  F16: { id: 1, elementBytes: 2 },
  BF16: { id: 30, elementBytes: 2 },
  Q8_0: { id: 8, elementBytes: 34 / 32 },
}

/** Typed metadata values, since a JavaScript number does not say which of the types it is. */
export const gguf = {
  uint32: (value) => ({ type: kUint32, bytes: uint32(value) }),
  float32: (value) => ({ type: kFloat32, bytes: float32(value) }),
  bool: (value) => ({ type: kBool, bytes: Buffer.from([value ? 1 : 0]) }),
  string: (value) => ({ type: kString, bytes: string(value) }),
  strings: (values) => array(kString, values.map(string)),
  int32s: (values) => array(kInt32, values.map(int32)),
}

/**
 * Writes a GGUF file.
 * @param {string} file
 * @param {Record<string, { type: number, bytes: Buffer }>} metadata made by `gguf`
 * @param {{ name: string, shape: number[], type: keyof kTensorTypes, bytes: () => Uint8Array }[]}
 *   tensors shape is row-major, as in safetensors; `bytes` is called when its turn comes
 */
export function writeGguf(file, metadata, tensors) {
  const parts = [Buffer.from('GGUF'), uint32(kVersion)]
  parts.push(uint64(tensors.length), uint64(Object.keys(metadata).length))
  for (const [key, { type, bytes }] of Object.entries(metadata)) {
    parts.push(string(key), uint32(type), bytes)
  }
  let offset = 0
  for (const { name, shape, type } of tensors) {
    const { id, elementBytes } = kTensorTypes[type]
    // GGUF lists the dimension that is contiguous first.
    parts.push(string(name), uint32(shape.length), ...[...shape].reverse().map(uint64))
    parts.push(uint32(id), uint64(offset))
    offset += padded(shape.reduce((product, size) => product * size, elementBytes))
  }
  const header = Buffer.concat(parts)

  const descriptor = openSync(file, 'w')
  const writePadded = (bytes) => {
    writeSync(descriptor, bytes)
    writeSync(descriptor, Buffer.alloc(padded(bytes.length) - bytes.length))
  }
  writePadded(header)
  for (const { bytes } of tensors) writePadded(bytes())
  closeSync(descriptor)
}

function padded(length) {
  return Math.ceil(length / kAlignment) * kAlignment
}

function uint32(value) {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32LE(value)
  return bytes
}

function int32(value) {
  const bytes = Buffer.alloc(4)
  bytes.writeInt32LE(value)
  return bytes
}

function uint64(value) {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64LE(BigInt(value))
  return bytes
}

function float32(value) {
  const bytes = Buffer.alloc(4)
  bytes.writeFloatLE(value)
  return bytes
}

function string(value) {
  const text = Buffer.from(value)
  return Buffer.concat([uint64(text.length), text])
}

function array(type, values) {
  const bytes = Buffer.concat([uint32(type), uint64(values.length), ...values])
  return { type: kArray, bytes }
}
