import { copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { f32ToBf16, f32ToF16, fromBf16, fromF16 } from '../../lib/reference/index'

export const kFixtures = join(__dirname, '..', 'fixtures', 'hf')
export const kTrainedModels = join(__dirname, '..', '..', 'models')

/** The small checkpoints whose logits and tokens transformers computed. */
export const fixtureNames = [
  'llama',
  'mistral',
  'qwen2',
  'qwen3',
  'llama3-rope',
  'phi3',
  'smollm3',
  'gemma3',
  'qwen3-moe',
  'mixtral',
  'ministral',
  'mistral3',
  'qwen2.5-vl',
  'qwen3-vl',
  'seed-oss',
  'granite',
  'olmo2',
  'olmo3',
  'olmoe',
  'exaone4',
  'ernie4.5',
  'glm',
  'glm4',
  'granite-moe',
  'qwen3-vl-moe',
  'gpt-oss',
  'qwen2-moe',
  'glm4-moe',
  'ernie4.5-moe',
  'ministral3',
  'dots1',
  'minimax-m2',
  'glm4v-moe',
  'qwen2-vl',
  'glm4v',
  'exaone4.5',
  'gemma',
  'granite4',
  'llava',
  'internvl',
  'smolvlm',
  'hunyuan',
  'solar-open',
  'hy3',
  'exaone-moe',
  'mellum',
  'qwen3.5',
  'qwen3.5-moe',
  'qwen3-next',
  'granite4-h',
  'granite4-h-moe',
  'gemma4',
  'gemma4-e',
  'gemma4-moe',
] as const

/** Those with experts: a rounding may choose another where two are liked as much. */
export const withExperts: readonly string[] = [
  'qwen3-moe',
  'mixtral',
  'olmoe',
  'granite-moe',
  'qwen3-vl-moe',
  'gpt-oss',
  'qwen2-moe',
  'glm4-moe',
  'ernie4.5-moe',
  'dots1',
  'minimax-m2',
  'glm4v-moe',
  'solar-open',
  'hy3',
  'exaone-moe',
  'mellum',
  'qwen3.5-moe',
  'qwen3-next',
  'granite4-h-moe',
  'gemma4-moe',
]

/** One tensor of a safetensors file. */
export interface StoredTensor {
  dtype: string
  shape: number[]
  bytes: Uint8Array
}

/** Tensors by name, in the order of the file. */
export type StoredTensors = Map<string, StoredTensor>

export function readSafetensors(path: string): StoredTensors {
  const file = readFileSync(path)
  const headerEnd = 8 + Number(file.readBigUInt64LE(0))
  const header = JSON.parse(file.toString('utf8', 8, headerEnd))
  delete header.__metadata__
  type Entry = { dtype: string; shape: number[]; data_offsets: [number, number] }
  return new Map(
    Object.entries<Entry>(header).map(
      ([
        name,
        {
          dtype,
          shape,
          data_offsets: [begin, end],
        },
      ]) => {
        // A copy: typed arrays over it need its start aligned.
        const bytes = Uint8Array.from(file.subarray(headerEnd + begin, headerEnd + end))
        return [name, { dtype, shape, bytes }]
      },
    ),
  )
}

export function safetensorsOf(tensors: StoredTensors): Buffer {
  const header: Record<string, unknown> = {}
  let end = 0
  for (const [name, { dtype, shape, bytes }] of tensors) {
    header[name] = { dtype, shape, data_offsets: [end, end + bytes.length] }
    end += bytes.length
  }
  const text = Buffer.from(JSON.stringify(header))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(text.length))
  return Buffer.concat([length, text, ...[...tensors.values()].map(({ bytes }) => bytes)])
}

/** The numbers of a tensor. */
export function valuesOf({ dtype, bytes }: StoredTensor): Float64Array {
  const { buffer } = bytes
  switch (dtype) {
    case 'F32':
      return Float64Array.from(new Float32Array(buffer))
    case 'F16':
      return fromF16(new Uint16Array(buffer))
    case 'BF16':
      return fromBf16(new Uint16Array(buffer))
    case 'I64':
      return Float64Array.from(new BigInt64Array(buffer), Number)
    default:
      throw new Error(`dtype ${dtype}`)
  }
}

/** The tensor rounded to another dtype. */
export function storedAs(tensor: StoredTensor, dtype: 'F32' | 'F16' | 'BF16'): StoredTensor {
  const values = valuesOf(tensor)
  const round = { F16: f32ToF16, BF16: f32ToBf16 }
  const stored =
    dtype === 'F32' ? Float32Array.from(values) : Uint16Array.from(values, round[dtype])
  return { dtype, shape: tensor.shape, bytes: new Uint8Array(stored.buffer) }
}

/** What transformers computed of a fixture, in float32. */
export interface FixtureReference {
  ids: number[]
  /** (64, vocab): after each of the last 64 tokens */
  logits: Float64Array
  /** 32 tokens, end-of-text ignored */
  greedy: number[]
}

export function readReference(fixture: string): FixtureReference {
  const tensors = readSafetensors(join(kFixtures, fixture, 'reference.safetensors'))
  const values = (name: string) => valuesOf(tensors.get(name)!)
  return {
    ids: [...values('input_ids')],
    logits: values('logits'),
    greedy: [...values('greedy')],
  }
}

/** What a copy of a model folder changes. */
export interface CopyChanges {
  /** keys of config.json */
  config?: Record<string, unknown>
  /** changes or replaces the tensors */
  tensors?: (tensors: StoredTensors) => StoredTensors | undefined
  /** the tensors are spread over so many files */
  shards?: number
  /** further files by name; null leaves one of the original's out */
  files?: Record<string, string | null>
}

const kCopiedFiles = ['generation_config.json', 'tokenizer.json', 'tokenizer_config.json']

/** Copies of model folders, which live as long as the test file. */
export class ModelCopies {
  readonly #root = mkdtempSync(join(tmpdir(), 'zipcache-copies-'))

  copy(from: string, changes: CopyChanges = {}): string {
    const dir = mkdtempSync(join(this.#root, 'copy-'))
    const config = JSON.parse(readFileSync(join(from, 'config.json'), 'utf8'))
    writeFileSync(join(dir, 'config.json'), JSON.stringify({ ...config, ...changes.config }))
    for (const name of kCopiedFiles) {
      if (existsSync(join(from, name))) copyFileSync(join(from, name), join(dir, name))
    }
    const original = readSafetensors(join(from, 'model.safetensors'))
    const tensors = changes.tensors?.(original) ?? original
    if (changes.shards === undefined) {
      writeFileSync(join(dir, 'model.safetensors'), safetensorsOf(tensors))
    } else {
      writeShards(dir, tensors, changes.shards)
    }
    for (const [name, text] of Object.entries(changes.files ?? {})) {
      if (text === null) rmSync(join(dir, name))
      else writeFileSync(join(dir, name), text)
    }
    return dir
  }

  remove(): void {
    rmSync(this.#root, { recursive: true, force: true })
  }
}

/** Deals the tensors out to the files one after another, so that a layer's are in several. */
function writeShards(dir: string, tensors: StoredTensors, nShards: number): void {
  const weightMap: Record<string, string> = {}
  const shards = Array.from({ length: nShards }, (): StoredTensors => new Map())
  let next = 0
  for (const [name, tensor] of tensors) {
    const index = next++ % nShards
    shards[index].set(name, tensor)
    weightMap[name] = shardName(index, nShards)
  }
  shards.forEach((shard, index) => {
    writeFileSync(join(dir, shardName(index, nShards)), safetensorsOf(shard))
  })
  const index = JSON.stringify({ metadata: {}, weight_map: weightMap })
  writeFileSync(join(dir, 'model.safetensors.index.json'), index)
}

function shardName(index: number, nShards: number): string {
  const five = (n: number) => String(n).padStart(5, '0')
  return `model-${five(index + 1)}-of-${five(nShards)}.safetensors`
}

/**
 * Tensors of a checkpoint with matrices (n, k) as `round` leaves them, in float32: those that are rounded to fewer bits
 * when they are loaded.
 */
export function withRoundedMatrices(
  tensors: StoredTensors,
  round: (x: Float64Array, n: number, k: number) => ArrayLike<number>,
): StoredTensors {
  return new Map(
    [...tensors].map(([name, tensor]) => {
      if (!isRoundedMatrix(name)) return [name, tensor]
      const { shape } = tensor
      const stored = valuesOf(tensor)
      // gpt-oss alone has biases of experts, and its matrices as (in, out).
      const isTransposed = tensors.has(`${name}_bias`)
      const [n, k] = shape.slice(-2) as [number, number]
      const [height, width] = isTransposed ? [k, n] : [n, k]
      const x = isTransposed ? transposedMatrices(stored, [n, k]) : stored
      const rounded = Float32Array.from(round(x, x.length / width, width))
      // Mamba's steps lie below what is rounded, and are not.
      const steps = tensors.get(name.replace('mamba.in_proj.weight', 'mamba.A_log'))!
      if (name.endsWith('mamba.in_proj.weight')) {
        const first = x.length - steps.shape[0]! * width
        rounded.set(x.subarray(first), first)
      }
      const values = isTransposed ? transposedMatrices(rounded, [height, width]) : rounded
      return [name, { ...tensor, dtype: 'F32', bytes: Buffer.from(values.buffer) }]
    }),
  )
}

/** Matrices (n, k) one after another, each as (k, n). */
export function transposedMatrices<T extends Float64Array | Float32Array | Uint16Array>(
  x: T,
  [n, k]: readonly [number, number],
): T {
  return x.map((_, i) => {
    const [matrix, rest] = [Math.floor(i / (n * k)), i % (n * k)]
    return x[matrix * n * k + (rest % n) * k + Math.floor(rest / n)]!
  }) as T
}

function isRoundedMatrix(name: string): boolean {
  return /(_proj(_qkvz?|_z)?(\.weight)?|per_layer_\w+(gate|projection)\.weight|put_linear\.weight|\.w[123]\.weight|(^|\.)lm_head\.weight)$/.test(
    name,
  )
}

/**
 * Fixtures with a matrix for logits. Tied embeddings are looked up as they are and multiplied in fewer bits, which no
 * file can say.
 */
export const untiedFixtures = fixtureNames.filter((name) => {
  const config = readFileSync(join(kFixtures, name, 'config.json'), 'utf8')
  return JSON.parse(config).tie_word_embeddings !== true
})
