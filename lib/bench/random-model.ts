import { mkdtemp, open, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expectedTensors } from '../model/checkpoint.js'
import { parseModelConfig } from '../model/config.js'
import { toF16 } from '../reference/index.js'
import { outlierNormals } from './bench-tensors.js'

/** config.json of a model with 25.3M parameters, grouped queries and room for long prompts. */
export const kRandomModelConfig = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  hidden_size: 512,
  intermediate_size: 1408,
  num_hidden_layers: 6,
  num_attention_heads: 8,
  num_key_value_heads: 2,
  head_dim: 64,
  hidden_act: 'silu',
  rms_norm_eps: 1e-5,
  rope_theta: 500000,
  vocab_size: 8192,
  max_position_embeddings: 131072,
  tie_word_embeddings: false,
} as const

/** Random numbers are made once for so many weights, and then repeat. */
const kDistinct = 1 << 18

/**
 * Lends a folder with a model of this config and random float16 weights for the time of `use`: it
 * takes as long as a trained one.
 *
 * Rejects with `ERR_ZC_CONFIG` for a config that is none.
 */
export async function withRandomModel<T>(
  config: Record<string, unknown>,
  use: (dir: string) => Promise<T>,
): Promise<T> {
  const parsed = parseModelConfig(config as Parameters<typeof parseModelConfig>[0])
  const tensors = expectedTensors(parsed).map(({ name, shape }) => {
    const length = shape.reduce((all, size) => all * size, 1)
    return { name, shape, length }
  })
  const header: Record<string, object> = {}
  let end = 0
  for (const { name, shape, length } of tensors) {
    header[name] = { dtype: 'F16', shape, data_offsets: [end, end + 2 * length] }
    end += 2 * length
  }
  // Padded, so that data begin at a multiple of 8 and can be used where they lie.
  const json = JSON.stringify(header)
  const text = Buffer.from(json.padEnd(Math.ceil(json.length / 8) * 8))
  const size = Buffer.alloc(8)
  size.writeBigUInt64LE(BigInt(text.length))

  const weights = toF16(outlierNormals(kDistinct, 0.02, 1))
  const ones = toF16(new Float32Array(parsed.hiddenSize).fill(1))
  const dir = await mkdtemp(join(tmpdir(), 'zipcache-model-'))
  try {
    await writeFile(join(dir, 'config.json'), JSON.stringify(config))
    const file = await open(join(dir, 'model.safetensors'), 'w')
    try {
      await file.writeFile(size)
      await file.writeFile(text)
      for (const { shape, length } of tensors) {
        const values = shape.length === 1 ? ones : weights
        for (let at = 0; at < length; at += values.length) {
          const part = values.subarray(0, length - at)
          await file.writeFile(new Uint8Array(part.buffer, part.byteOffset, part.byteLength))
        }
      }
    } finally {
      await file.close()
    }
    return await use(dir)
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
}
