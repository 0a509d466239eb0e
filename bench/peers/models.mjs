// The models that both engines run, each as a Hugging Face folder and as GGUF files.
import { createHash } from 'node:crypto'
import {
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { say } from '../../scripts/progress.mjs'
import { root } from '../../scripts/setup.mjs'
import { convertToGguf } from './convert.mjs'
import { kRandomShapes, writeRandomModel } from './random-model.mjs'

/** The two that come with the repository. */
export const kShippedModels = ['line-retrieval', 'line-retrieval-base']
export const kModelNames = [...Object.keys(kRandomShapes), ...kShippedModels]

const kGgufTypes = ['F16', 'BF16', 'Q8_0']
const kSeed = 1
/** Positions of the shipped models for timing, beyond the 8,192 that they were trained on. */
const kTimedPositions = 20480

/**
 * @typedef {object} BenchModel
 * @property {string} name
 * @property {string} folder Hugging Face
 * @property {Record<'F16' | 'BF16' | 'Q8_0', string>} gguf files
 * @property {number} positions
 * @property {number} vocabSize
 * @property {number} parameters
 * @property {{ nLayers: number, nHeads: number, nKvHeads: number, headDim: number }} shape
 */

/**
 * Makes a model's files, unless they are there.
 * @param {string} name one of kModelNames
 * @param {string} cache a folder to keep them in
 * @returns {BenchModel}
 */
export function prepareModel(name, cache) {
  const dir = path.join(cache, name)
  const stamp = path.join(dir, 'stamp')
  const inputs = hashInputs(name)
  if (!existsSync(stamp) || readFileSync(stamp, 'utf8') !== inputs) {
    say(`making the files of ${name}`)
    rmSync(dir, { recursive: true, force: true })
    mkdirSync(dir, { recursive: true })
    if (kRandomShapes[name]) writeRandomModel(dir, kRandomShapes[name], kSeed)
    else copyShippedModel(name, dir)
    for (const type of kGgufTypes) convertToGguf(dir, ggufFile(dir, type), type)
    // Last, so that an interrupted run leaves nothing that looks complete.
    writeFileSync(stamp, inputs)
  }
  const config = JSON.parse(readFileSync(path.join(dir, 'config.json'), 'utf8'))
  return {
    name,
    folder: dir,
    gguf: Object.fromEntries(kGgufTypes.map((type) => [type, ggufFile(dir, type)])),
    positions: config.max_position_embeddings,
    vocabSize: config.vocab_size,
    parameters: Math.round(statSync(path.join(dir, 'model.safetensors')).size / 2),
    shape: {
      nLayers: config.num_hidden_layers,
      nHeads: config.num_attention_heads,
      nKvHeads: config.num_key_value_heads,
      headDim: config.head_dim,
    },
  }
}

function ggufFile(dir, type) {
  return path.join(dir, `${type}.gguf`)
}

/** Of all that the files of a model are made from. */
function hashInputs(name) {
  const makers = ['convert', 'float16', 'gguf', 'hf-folder', 'models', 'random-model']
  const files = makers.map((maker) => fileURLToPath(new URL(`${maker}.mjs`, import.meta.url)))
  if (kShippedModels.includes(name)) {
    files.push(path.join(root, 'models', name, 'model.safetensors'))
  }
  const hash = createHash('sha256')
  for (const file of files) hash.update(readFileSync(file))
  return hash.digest('hex')
}

function copyShippedModel(name, dir) {
  cpSync(path.join(root, 'models', name), dir, { recursive: true })
  const file = path.join(dir, 'config.json')
  const config = JSON.parse(readFileSync(file, 'utf8'))
  writeFileSync(file, JSON.stringify({ ...config, max_position_embeddings: kTimedPositions }))
}
