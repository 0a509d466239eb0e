import { mkdtemp, open, rm, statfs, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ZipCacheError } from '../errors.js'
import { expectedTensors, storedShape } from '../model/checkpoint.js'
import { parseModelConfig } from '../model/config.js'
import { toBf16, toF16 } from '../reference/index.js'
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

/** Random numbers are made once for so many weights, and then repeat: a prime, so that no rows do. */
const kDistinct = 262_147

/** How `withRandomModel` stores a model. */
export interface RandomModelOptions {
  /** Of the weights; default `f16`. */
  readonly dtype?: 'f16' | 'bf16' | undefined
  /** Where its folder is made; default the system's for temporary files. */
  readonly parent?: string | undefined
}

/**
 * Lends a folder with a model of this config and random 16-bit weights for the time of `use`: it
 * takes as long as a trained one.
 *
 * Rejects with `ERR_ZC_CONFIG` for a config that is none, `ERR_ZC_IO` when there is no room for it.
 */
export async function withRandomModel<T>(
  config: Record<string, unknown>,
  use: (dir: string) => Promise<T>,
  { dtype = 'f16', parent = tmpdir() }: RandomModelOptions = {},
): Promise<T> {
  const parsed = parseModelConfig(config as Parameters<typeof parseModelConfig>[0])
  // Some are several weights.
  const shapes = new Map(expectedTensors(parsed).map((own) => [own.name, storedShape(own)]))
  const tensors = [...shapes].map(([name, shape]) => {
    const length = shape.reduce((all, size) => all * size, 1)
    return { name, shape, length }
  })
  const header: Record<string, object> = {}
  let end = 0
  for (const { name, shape, length } of tensors) {
    header[name] = { dtype: dtype.toUpperCase(), shape, data_offsets: [end, end + 2 * length] }
    end += 2 * length
  }
  await checkRoom(parent, end)
  // Padded, so that data begin at a multiple of 8 and can be used where they lie.
  const json = JSON.stringify(header)
  const text = Buffer.from(json.padEnd(Math.ceil(json.length / 8) * 8))
  const size = Buffer.alloc(8)
  size.writeBigUInt64LE(BigInt(text.length))

  const store = dtype === 'bf16' ? toBf16 : toF16
  const weights = store(outlierNormals(kDistinct, 0.02, 1))
  const ones = store(new Float32Array(parsed.hiddenSize).fill(1))
  const dir = await mkdtemp(join(parent, 'zipcache-model-'))
  try {
    await writeFile(join(dir, 'config.json'), JSON.stringify(config))
    const file = await open(join(dir, 'model.safetensors'), 'w')
    try {
      await file.writeFile(size)
      await file.writeFile(text)
      // Where the last matrix ended, the next one goes on: q and k are not to be the same.
      let from = 0
      for (const { shape, length } of tensors) {
        const isMatrix = shape.length > 1
        const values = isMatrix ? weights : ones
        for (let at = 0; at < length; ) {
          const part = values.subarray(isMatrix ? from : 0).subarray(0, length - at)
          await file.writeFile(new Uint8Array(part.buffer, part.byteOffset, part.byteLength))
          at += part.length
          if (isMatrix) from = (from + part.length) % values.length
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

async function checkRoom(folder: string, bytes: number): Promise<void> {
  const { bavail, bsize } = await statfs(folder)
  if (bavail * bsize >= bytes) return
  throw new ZipCacheError(
    'ERR_ZC_IO',
    `parent: ${folder} has ${bavail * bsize} bytes free, expected ${bytes} for the model`,
    { argument: 'parent' },
  )
}
