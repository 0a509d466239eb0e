// Hugging Face model folders, as far as the benchmark reads and writes them: config.json and one
// model.safetensors.
import { mkdirSync, openSync, readFileSync, writeFileSync, writeSync } from 'node:fs'
import path from 'node:path'
import { fromBf16, fromF16 } from './float16.mjs'

/**
 * @typedef {object} StoredTensor
 * @property {'F32' | 'F16' | 'BF16'} dtype
 * @property {number[]} shape row-major
 * @property {Buffer} bytes little-endian
 */

/**
 * Reads a folder.
 * @param {string} dir
 * @returns {{ config: Record<string, any>, tensors: Map<string, StoredTensor> }}
 */
export function readHfFolder(dir) {
  const config = JSON.parse(readFileSync(path.join(dir, 'config.json'), 'utf8'))
  const file = readFileSync(path.join(dir, 'model.safetensors'))
  const dataOffset = 8 + Number(file.readBigUInt64LE())
  const header = JSON.parse(file.toString('utf8', 8, dataOffset))
  const tensors = new Map()
  for (const [name, entry] of Object.entries(header)) {
    if (name === '__metadata__') continue
    const [begin, end] = entry.data_offsets
    const bytes = file.subarray(dataOffset + begin, dataOffset + end)
    tensors.set(name, { dtype: entry.dtype, shape: entry.shape, bytes })
  }
  return { config, tensors }
}

/**
 * The values of a tensor, widened to float32.
 * @param {StoredTensor} tensor
 */
export function valuesOf({ dtype, shape, bytes }) {
  const values = new Float32Array(shape.reduce((product, size) => product * size, 1))
  const read = {
    F32: (i) => bytes.readFloatLE(4 * i),
    F16: (i) => fromF16(bytes.readUInt16LE(2 * i)),
    BF16: (i) => fromBf16(bytes.readUInt16LE(2 * i)),
  }[dtype]
  if (!read) throw new Error(`dtype is ${dtype}, expected F32, F16 or BF16`)
  for (let i = 0; i < values.length; i++) values[i] = read(i)
  return values
}

/**
 * Writes a folder of bfloat16 tensors, each made when its turn comes, so that one is in memory at a
 * time.
 * @param {string} dir
 * @param {object} config
 * @param {{ name: string, shape: number[], bits: () => Uint16Array }[]} tensors
 */
export function writeHfFolder(dir, config, tensors) {
  mkdirSync(dir, { recursive: true })
  const entries = {}
  let end = 0
  for (const { name, shape } of tensors) {
    const begin = end
    end += 2 * shape.reduce((product, size) => product * size, 1)
    entries[name] = { dtype: 'BF16', shape, data_offsets: [begin, end] }
  }
  // Padded, so that data begin at a multiple of 8: what is not aligned cannot be used where it lies.
  const text = JSON.stringify(entries)
  const header = Buffer.from(text.padEnd(Math.ceil(text.length / 8) * 8))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(header.length))
  const file = openSync(path.join(dir, 'model.safetensors'), 'w')
  writeSync(file, length)
  writeSync(file, header)
  for (const { bits } of tensors) writeSync(file, new Uint8Array(bits().buffer))
  writeFileSync(path.join(dir, 'config.json'), `${JSON.stringify(config, null, 2)}\n`)
}
