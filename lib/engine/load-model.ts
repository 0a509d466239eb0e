import { show, ZipCacheError } from '../errors.js'
import { checkTensors, openCheckpoint } from '../model/checkpoint.js'
import { headsOf, type ModelConfig, readModelConfig } from '../model/config.js'
import { readGenerationConfig } from '../model/generation-config.js'
import { checkPath } from '../model/model-files.js'
import { ropeFrequencies } from '../model/rope-frequencies.js'
import { specialTokensOf } from '../model/special-tokens.js'
import { loadTokenizer } from '../model/tokenizer.js'
import {
  attentionDtypeOf,
  type ComputeDtype,
  loadWeights,
  usualDtype,
  WEIGHT_FORMATS,
  type WeightFormat,
} from '../model/weights.js'
import { Device } from '../ops/index.js'
import { checkKvMemory } from './engine.js'
import { Model } from './model.js'
import { checkOptions } from './options.js'

/** Settings of `loadModel`. */
export interface LoadOptions {
  /**
   * A device by name, opened for this model: `auto`, `cuda`, `cpu`, or another that `Device.open`
   * takes, as `cuda:1` and `cpu:avx512`; or one that the caller keeps. Default what the environment
   * variable `ZIPCACHE_DEVICE` names, else `auto`: a GPU that can be used, else the CPU.
   */
  device?: string | Device | undefined
  /**
   * What the model computes in; default `f32` on a CPU and `bf16` on a GPU, whose tensor cores take 16
   * bits. With `bf16` weights and activations are rounded to bfloat16, attention is computed in
   * float16, sums and the residual stream stay in float32.
   */
  dtype?: ComputeDtype | undefined
  /**
   * How matrices are kept; default `stored`, in the file's type or that of `dtype`. With `int8` each row is
   * rounded to 8 bits with a scale of its own when the model is loaded: half the bytes of a 16-bit
   * weight, which is what decoding waits for. With `int4` each 32 elements of a row are rounded to 4 bits
   * with a scale and a zero point of their own: half of that again, at the cost of accuracy. Matrices whose
   * rows are no multiple of 64 are then kept in 8 bits. Routers of experts stay as they are, and so do codes
   * of a quantized checkpoint of as many bits or fewer, where `stored` keeps them.
   */
  weights?: WeightFormat | undefined
  /** Threads of a device opened by name, without effect on one that is passed; default one a core. */
  threads?: number | undefined
  /**
   * The most memory that caches of the model's own engine may take together, in bytes; default half of
   * what the device has free when the first of them is made. A GPU gives it at once. See
   * `EngineOptions`: an engine of `createEngine` has memory of its own beside it.
   */
  kvMemory?: number | undefined
  /**
   * The longest context there shall be, in tokens; default and at most the model's. Where positions
   * rotate otherwise in long contexts (`longrope`, as in Phi), they rotate as this asks for.
   */
  maxPositions?: number | undefined
  /** Aborting rejects with `signal.reason`. */
  signal?: AbortSignal | undefined
}

const LOAD_OPTIONS = [
  ...['device', 'dtype', 'weights', 'threads', 'kvMemory', 'maxPositions', 'signal'],
]

/**
 * Loads a Hugging Face folder: config.json, safetensors (one file or shards, memory-mapped),
 * tokenizer.json if there is one. `dir`: its path, or its `file:` URL. Its architecture is an
 * `Architecture`; of one that sees images, it is the text model.
 *
 * Rejects with `ERR_ZC_CONFIG` for a config that is damaged or not supported, naming what;
 * `ERR_ZC_CHECKPOINT` and `ERR_ZC_NUMERIC` for weights that are missing, damaged or not numbers;
 * `ERR_ZC_TOKENIZER`; `ERR_ZC_DEVICE`; `ERR_ZC_ARGUMENT` for a bad option; `signal.reason` when
 * aborted. Nothing stays allocated then, and the config and the headers are checked before anything
 * is. On the CPU the files must stay as they are while the model lives: cut short, they end the
 * process.
 */
export async function loadModel(dir: string | URL, options: LoadOptions = {}): Promise<Model> {
  checkOptions(options, LOAD_OPTIONS)
  const { dtype: asked, weights: format = 'stored', signal } = options
  if (asked !== undefined && asked !== 'f32' && asked !== 'bf16') {
    throw new ZipCacheError('ERR_ZC_ARGUMENT', `dtype: is ${show(asked)}, expected f32 or bf16`, {
      argument: 'dtype',
    })
  }
  if (!WEIGHT_FORMATS.includes(format)) {
    const message = `weights: is ${show(format)}, expected stored, int8 or int4`
    throw new ZipCacheError('ERR_ZC_ARGUMENT', message, { argument: 'weights' })
  }
  const folder = checkPath('dir', dir, 'the path of a model folder')
  signal?.throwIfAborted()
  const config = withMaxPositions(await readModelConfig(folder), options.maxPositions)
  const checked = checkTensors(await openCheckpoint(folder), config)
  const tokenizer = await loadTokenizer(folder)
  const generationConfig = await readGenerationConfig(folder)
  signal?.throwIfAborted()

  const ownsDevice = !(options.device instanceof Device)
  const device =
    options.device instanceof Device
      ? options.device
      : await Device.open(options.device, { threads: options.threads })
  const disposers: (() => void)[] = []
  const release = async () => {
    for (const dispose of disposers) dispose()
    if (ownsDevice) await device.dispose()
  }
  try {
    if (options.kvMemory !== undefined) checkKvMemory(options.kvMemory, device)
    const dtype = asked ?? usualDtype(device)
    const weights = await loadWeights(device, checked, { config, dtype, format, signal })
    disposers.push(() => weights.dispose())
    const isRotated = config.qkNorm === 'each head, rotated'
    const distinct = [...new Set(isRotated ? [...config.ropes, null] : config.ropes)]
    const ropes = distinct.map((rope) => {
      // Layers that share it have heads of one shape.
      const { rotaryDim } = headsOf(config, config.ropes.indexOf(rope))
      const { invFreq, attentionScale } = ropeFrequencies(rope, rotaryDim, config.maxPositions)
      const frequencies = device.from(invFreq, [invFreq.length], 'f32')
      disposers.push(() => frequencies.dispose())
      return { invFreq: frequencies, attentionScale }
    })
    const forwardModel = {
      device,
      config,
      weights,
      dtype,
      weightFormat: format,
      attentionDtype: attentionDtypeOf(dtype),
      ropes,
      ropeOfLayer: config.ropes.map((rope) => distinct.indexOf(rope)),
      ropeOfRotated: isRotated ? distinct.indexOf(null) : null,
      specialTokens: tokenizer && specialTokensOf(tokenizer, config.vocabSize),
    }
    await device.sync() // what is still to be freed is not free
    return new Model(forwardModel, options.kvMemory ?? null, tokenizer, generationConfig, release)
  } catch (error) {
    await release()
    throw error
  }
}

function withMaxPositions(config: ModelConfig, wanted = config.maxPositions): ModelConfig {
  const { maxPositions } = config
  if (Number.isInteger(wanted) && wanted >= 1 && wanted <= maxPositions) {
    return { ...config, maxPositions: wanted }
  }
  const message = `maxPositions: is ${show(wanted)}, expected an integer from 1 to the model's ${maxPositions}`
  throw new ZipCacheError('ERR_ZC_ARGUMENT', message, { argument: 'maxPositions' })
}
