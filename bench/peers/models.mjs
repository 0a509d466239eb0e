// The models that both engines run, each as a Hugging Face folder and as two GGUF files.
import {
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { say } from '../../scripts/progress.mjs'
import { root } from '../../scripts/setup.mjs'
import { convertToGguf } from './convert.mjs'
import { kRandomShapes, writeRandomModel } from './random-model.mjs'

/** The two that come with the repository. */
export const kShippedModels = ['line-retrieval', 'line-retrieval-base']
export const kModelNames = [...Object.keys(kRandomShapes), ...kShippedModels]

const kSeed = 1
/** Positions of the shipped models for timing, beyond the 8,192 that they were trained on. */
const kTimedPositions = 17408

/**
 * @typedef {object} BenchModel
 * @property {string} name
 * @property {string} folder Hugging Face
 * @property {Record<'F16' | 'BF16', string>} gguf files
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
  if (!existsSync(dir)) {
    say(`making the files of ${name}`)
    // Renamed when all is there, so that an interrupted run leaves nothing that looks complete.
    const unfinished = `${dir}.unfinished`
    rmSync(unfinished, { recursive: true, force: true })
    mkdirSync(unfinished, { recursive: true })
    if (kRandomShapes[name]) writeRandomModel(unfinished, kRandomShapes[name], kSeed)
    else copyShippedModel(name, unfinished)
    for (const type of ['F16', 'BF16']) {
      convertToGguf(unfinished, path.join(unfinished, `${type}.gguf`), type)
    }
    renameSync(unfinished, dir)
  }
  const config = JSON.parse(readFileSync(path.join(dir, 'config.json'), 'utf8'))
  return {
    name,
    folder: dir,
    gguf: { F16: path.join(dir, 'F16.gguf'), BF16: path.join(dir, 'BF16.gguf') },
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

function copyShippedModel(name, dir) {
  cpSync(path.join(root, 'models', name), dir, { recursive: true })
  const file = path.join(dir, 'config.json')
  const config = JSON.parse(readFileSync(file, 'utf8'))
  writeFileSync(file, JSON.stringify({ ...config, max_position_embeddings: kTimedPositions }))
}
