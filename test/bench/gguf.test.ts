import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import {
  bf16ToF32,
  f16ToF32,
  f32ToBf16,
  f32ToF16,
  toBf16,
  toF16,
} from '../../lib/reference/float16'
import { type Ended, end, kRoot, startNode } from '../cli/command-line'
import { ModelFolders } from '../model/model-folder'
import { propertyRuns } from '../support/properties'

const kConvert = join(kRoot, 'bench', 'peers', 'convert.mjs')
const folders = new ModelFolders()
const out = mkdtempSync(join(tmpdir(), 'zipcache-gguf-'))
afterAll(() => {
  folders.remove()
  rmSync(out, { recursive: true })
})

/** A LLaMA of one layer: hidden 6, 4 heads and 2 KV heads of head_dim 8, vocabulary 5. */
const kConfig = {
  model_type: 'llama',
  hidden_size: 6,
  intermediate_size: 10,
  num_hidden_layers: 1,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 8,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  vocab_size: 5,
  max_position_embeddings: 64,
  bos_token_id: 1,
  eos_token_id: 2,
}

/** GGUF names, Hugging Face names and shapes. */
const kTensors: [string, string, number[]][] = [
  ['token_embd.weight', 'model.embed_tokens.weight', [5, 6]],
  ['blk.0.attn_norm.weight', 'model.layers.0.input_layernorm.weight', [6]],
  ['blk.0.attn_q.weight', 'model.layers.0.self_attn.q_proj.weight', [32, 6]],
  ['blk.0.attn_k.weight', 'model.layers.0.self_attn.k_proj.weight', [16, 6]],
  ['blk.0.attn_v.weight', 'model.layers.0.self_attn.v_proj.weight', [16, 6]],
  ['blk.0.attn_output.weight', 'model.layers.0.self_attn.o_proj.weight', [6, 32]],
  ['blk.0.ffn_norm.weight', 'model.layers.0.post_attention_layernorm.weight', [6]],
  ['blk.0.ffn_gate.weight', 'model.layers.0.mlp.gate_proj.weight', [10, 6]],
  ['blk.0.ffn_up.weight', 'model.layers.0.mlp.up_proj.weight', [10, 6]],
  ['blk.0.ffn_down.weight', 'model.layers.0.mlp.down_proj.weight', [6, 10]],
  ['output_norm.weight', 'model.norm.weight', [6]],
  ['output.weight', 'lm_head.weight', [5, 6]],
]

type Dtype = 'F32' | 'F16' | 'BF16'

const size = (shape: readonly number[]) => shape.reduce((product, n) => product * n, 1)

/** Values of tensor t that float16 and bfloat16 both hold, no two of a tensor's first 256 equal. */
function plainValues(t: number, shape: readonly number[]): Float32Array {
  return Float32Array.from({ length: size(shape) }, (_, i) => (((i * 37 + t) % 256) - 128) / 64)
}

function encode(values: Float32Array, dtype: Dtype): Buffer {
  if (dtype === 'F32') return Buffer.from(values.buffer)
  return Buffer.from((dtype === 'F16' ? toF16(values) : toBf16(values)).buffer)
}

/** A checkpoint in one file; `replaced` are values of single tensors. */
function checkpoint(dtype: Dtype, replaced: Record<string, Float32Array> = {}): Buffer {
  const entries: Record<string, unknown> = {}
  const parts: Buffer[] = []
  let begin = 0
  for (const [t, [, name, shape]] of kTensors.entries()) {
    const bytes = encode(replaced[name] ?? plainValues(t, shape), dtype)
    entries[name] = { dtype, shape, data_offsets: [begin, begin + bytes.length] }
    begin += bytes.length
    parts.push(bytes)
  }
  const header = Buffer.from(JSON.stringify(entries))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(header.length))
  return Buffer.concat([length, header, ...parts])
}

function convert(dir: string, file: string, type: string): Promise<Ended> {
  return end(startNode([kConvert, dir, file, type]))
}

let nFiles = 0

async function converted(
  type: 'F16' | 'BF16',
  dtype: Dtype,
  replaced?: Record<string, Float32Array>,
): Promise<GgufFile> {
  const model = checkpoint(dtype, replaced)
  const dir = folders.write({ 'config.json': kConfig, 'model.safetensors': model })
  const file = join(out, `${nFiles++}.gguf`)
  expect(await convert(dir, file, type)).toEqual({ exitCode: 0, stdout: '', stderr: '' })
  return readGguf(readFileSync(file))
}

interface GgufFile {
  metadata: Map<string, unknown>
  tensors: Map<string, { dimensions: number[]; type: number; values: Float32Array }>
}

/** An own reader: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md */
function readGguf(file: Buffer): GgufFile {
  let at = 0
  const move = (count: number) => {
    at += count
    return at - count
  }
  const uint32 = () => file.readUInt32LE(move(4))
  const uint64 = () => Number(file.readBigUInt64LE(move(8)))
  const string = () => {
    const length = uint64()
    return file.toString('utf8', move(length), at)
  }
  const value = (type: number): unknown => {
    if (type === 4) return uint32()
    if (type === 5) return file.readInt32LE(move(4))
    if (type === 6) return file.readFloatLE(move(4))
    if (type === 7) return file.readUInt8(move(1)) === 1
    if (type === 8) return string()
    expect(type).toBe(9)
    const [element, length] = [uint32(), uint64()]
    return Array.from({ length }, () => value(element))
  }

  expect(file.toString('latin1', 0, move(4) + 4)).toBe('GGUF')
  expect(uint32()).toBe(3)
  const [nTensors, nPairs] = [uint64(), uint64()]
  const metadata = new Map<string, unknown>()
  for (let i = 0; i < nPairs; i++) metadata.set(string(), value(uint32()))
  const infos = Array.from({ length: nTensors }, () => ({
    name: string(),
    dimensions: Array.from({ length: uint32() }, uint64),
    type: uint32(),
    offset: uint64(),
  }))

  const dataOffset = Math.ceil(at / 32) * 32
  let end = 0
  const tensors: GgufFile['tensors'] = new Map()
  for (const { name, dimensions, type, offset } of infos) {
    // One after the other, each aligned.
    expect(offset).toBe(Math.ceil(end / 32) * 32)
    const elementBytes = type === 0 ? 4 : type === 8 ? 34 / 32 : 2
    end = offset + elementBytes * size(dimensions)
    const values = Float32Array.from({ length: size(dimensions) }, (_, i) => {
      if (type === 8) {
        const block = dataOffset + offset + 34 * Math.floor(i / 32)
        return f16ToF32(file.readUInt16LE(block)) * file.readInt8(block + 2 + (i % 32))
      }
      const element = dataOffset + offset + elementBytes * i
      if (type === 0) return file.readFloatLE(element)
      return (type === 1 ? f16ToF32 : bf16ToF32)(file.readUInt16LE(element))
    })
    tensors.set(name, { dimensions, type, values })
  }
  expect(file.length).toBe(dataOffset + Math.ceil(end / 32) * 32)
  return { metadata, tensors }
}

test.each([
  ['F16', 1],
  ['BF16', 30],
] as const)('a checkpoint becomes a GGUF file of %s matrices and F32 norms', async (type, id) => {
  const { metadata, tensors } = await converted(type, 'BF16')
  expect(Object.fromEntries(metadata)).toMatchObject({
    'general.architecture': 'llama',
    'general.file_type': type === 'F16' ? 1 : 32,
    'llama.context_length': 64,
    'llama.embedding_length': 6,
    'llama.block_count': 1,
    'llama.feed_forward_length': 10,
    'llama.attention.head_count': 4,
    'llama.attention.head_count_kv': 2,
    'llama.attention.key_length': 8,
    'llama.attention.value_length': 8,
    'llama.attention.layer_norm_rms_epsilon': Math.fround(1e-5),
    'llama.rope.dimension_count': 8,
    'llama.rope.freq_base': 10000,
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.tokens': ['<0>', '<1>', '<2>', '<3>', '<4>'],
    'tokenizer.ggml.merges': [expect.any(String)],
    'tokenizer.ggml.add_bos_token': false,
  })
  expect([...tensors.keys()].sort()).toEqual(kTensors.map(([name]) => name).sort())
  for (const [t, [name, , shape]] of kTensors.entries()) {
    const tensor = tensors.get(name)
    expect(tensor?.dimensions).toEqual([...shape].reverse())
    expect(tensor?.type).toBe(shape.length === 1 ? 0 : id)
    if (/attn_[qk]/.test(name)) continue
    expect(tensor?.values).toEqual(plainValues(t, shape))
  }
})

test('scores do not change when q and k are permuted for interleaved RoPE', async () => {
  const { tensors } = await converted('F16', 'F16')
  const [headDim, columns] = [kConfig.head_dim, kConfig.hidden_size]

  /** Rows of a head times x, rotated at a position as Hugging Face (half) or llama.cpp does. */
  const project = (
    weights: Float32Array,
    head: number,
    x: readonly number[],
    position: number,
    pairOf: (i: number) => [number, number],
  ) => {
    const y = Array.from({ length: headDim }, (_, row) => {
      const begin = (head * headDim + row) * columns
      return x.reduce((sum, xc, c) => sum + xc * (weights[begin + c] as number), 0)
    })
    for (let i = 0; i < headDim / 2; i++) {
      const angle = position * kConfig.rope_theta ** ((-2 * i) / headDim)
      const [a, b] = pairOf(i)
      const [ya, yb] = [y[a] as number, y[b] as number]
      y[a] = ya * Math.cos(angle) - yb * Math.sin(angle)
      y[b] = yb * Math.cos(angle) + ya * Math.sin(angle)
    }
    return y
  }
  const dot = (a: readonly number[], b: readonly number[]) =>
    a.reduce((sum, ai, i) => sum + ai * (b[i] as number), 0)
  const weightsOf = (name: string) => tensors.get(name)?.values as Float32Array
  const [storedQ, storedK] = [plainValues(2, [32, 6]), plainValues(3, [16, 6])]

  const vector = fc.array(fc.integer({ min: -8, max: 8 }), { minLength: 6, maxLength: 6 })
  const position = fc.nat(63)
  fc.assert(
    fc.property(vector, vector, position, position, fc.nat(3), (x, z, m, n, head) => {
      const kvHead = Math.floor(head / 2)
      const halves = (i: number): [number, number] => [i, i + headDim / 2]
      const neighbours = (i: number): [number, number] => [2 * i, 2 * i + 1]
      const expected = dot(
        project(storedQ, head, x, m, halves),
        project(storedK, kvHead, z, n, halves),
      )
      const actual = dot(
        project(weightsOf('blk.0.attn_q.weight'), head, x, m, neighbours),
        project(weightsOf('blk.0.attn_k.weight'), kvHead, z, n, neighbours),
      )
      expect(Math.abs(actual - expected)).toBeLessThanOrEqual(1e-9 * (1 + Math.abs(expected)))
    }),
    propertyRuns(100),
  )
})

test('values are rounded to the nearest, ties to even', async () => {
  // Halfway cases of both types, subnormal and smallest numbers, the limits of float16, zeros.
  const values = Float32Array.from([
    1 + 2 ** -11,
    1 + 3 * 2 ** -11,
    1 + 2 ** -8,
    1 + 3 * 2 ** -8,
    2 ** -14 - 2 ** -25,
    3 * 2 ** -25,
    2 ** -25,
    -(2 ** -24),
    65504,
    65519.996,
    65520,
    -1e30,
    0,
    -0,
    0.1,
    -3.3333333,
    ...Array.from({ length: 14 }, (_, i) => Math.sin(i) * 10 ** (i - 7)),
  ])
  const replaced = { 'lm_head.weight': values }
  for (const [type, toBits, toValue] of [
    ['F16', f32ToF16, f16ToF32],
    ['BF16', f32ToBf16, bf16ToF32],
  ] as const) {
    const { tensors } = await converted(type, 'F32', replaced)
    const expected = values.map((value) => toValue(toBits(value)))
    expect(tensors.get('output.weight')?.values).toEqual(expected)
  }
})

test('Q8_0 is within half a step of each block, of which the largest is 127 steps', async () => {
  const model = join(kRoot, 'models', 'line-retrieval')
  const [stored, rounded] = await Promise.all(
    ['F16', 'Q8_0'].map(async (type) => {
      const file = join(out, `trained-${type}.gguf`)
      expect(await convert(model, file, type)).toMatchObject({ exitCode: 0, stderr: '' })
      return readGguf(readFileSync(file))
    }),
  )
  expect(rounded?.metadata.get('general.file_type')).toBe(7)
  for (const [name, { dimensions, type, values }] of rounded?.tensors ?? []) {
    const exact = stored?.tensors.get(name)
    expect([name, dimensions]).toEqual([name, exact?.dimensions])
    expect([name, type]).toEqual([name, dimensions.length === 1 ? 0 : 8])
    let worst = 0
    for (let block = 0; block < values.length; block += 32) {
      const own = exact?.values.subarray(block, block + 32) as Float32Array
      const step = own.reduce((most, x) => Math.max(most, Math.abs(x)), 0) / 127
      // The scale is rounded to float16, which counts 127 times.
      const within = (0.5 + 127 * 2 ** -11) * step + 127 * 2 ** -25
      own.forEach((x, i) => {
        worst = Math.max(worst, Math.abs((values[block + i] as number) - x) / within)
      })
    }
    expect([name, worst <= 1 + 1e-6]).toEqual([name, true])
    if (type === 8) expect(worst).toBeGreaterThan(0.5)
  }
})

test('rows that are no whole blocks of 32 do not become Q8_0', async () => {
  const files = { 'config.json': kConfig, 'model.safetensors': checkpoint('F32') }
  const { exitCode, stderr } = await convert(folders.write(files), join(out, 'odd.gguf'), 'Q8_0')
  expect(exitCode).toBe(1)
  expect(stderr).toContain('Q8_0: rows of 6')
})

test('a model that llama.cpp would compute otherwise is refused', async () => {
  const config = { ...kConfig, rope_scaling: { rope_type: 'linear', factor: 2 } }
  const dir = folders.write({ 'config.json': config, 'model.safetensors': checkpoint('F32') })
  const { exitCode, stderr } = await convert(dir, join(out, 'refused.gguf'), 'F16')
  expect(exitCode).toBe(1)
  expect(stderr).toContain('rope_scaling is {"rope_type":"linear","factor":2}')
})
