import { show, ZipCacheError } from '../errors.js'
import { checkTensors, openCheckpoint } from '../model/checkpoint.js'
import { readModelConfig } from '../model/config.js'
import { ropeFrequencies } from '../model/rope-frequencies.js'
import { specialTokensOf } from '../model/special-tokens.js'
import { loadTokenizer } from '../model/tokenizer.js'
import {
  attentionDtypeOf,
  type ComputeDtype,
  loadWeights,
  type WeightFormat,
} from '../model/weights.js'
import { Device } from '../ops/index.js'
import { checkKvMemory } from './engine.js'
import { Model } from './model.js'
import { checkOptions } from './options.js'

/** Settings of `loadModel`. */
export interface LoadOptions {
  /**
   * A device by name, opened for this model: `cpu`, `cuda`, `auto`, or another that `Device.open`
   * takes, as `cuda:1` and `cpu:avx512`; or one that the caller keeps. Default `cpu`.
   */
  device?: string | Device
  /**
   * What the model computes in; default `f32`. With `bf16` weights and activations are rounded to
   * bfloat16, sums and the residual stream stay in float32.
   */
  dtype?: ComputeDtype
  /**
   * How matrices are kept; default `stored`, in the file's type or that of `dtype`. With `int8` each row is
   * rounded to 8 bits with a scale of its own when the model is loaded: half the bytes of a 16-bit
   * weight, which is what decoding on a CPU waits for. On the CPU alone.
   */
  weights?: WeightFormat
  /** Threads of a device opened by name, without effect on one that is passed; default one a core. */
  threads?: number
  /**
   * The most memory that caches of this model may take together, in bytes; default half of what the
   * device has free once the weights are there. A GPU gives it at once. An engine of `createEngine` has
   * memory of its own beside it: where one does the work, this may be as little as 1 MiB.
   */
  kvMemory?: number
  /** Aborting rejects with `signal.reason`. */
  signal?: AbortSignal
}

const LOAD_OPTIONS = ['device', 'dtype', 'weights', 'threads', 'kvMemory', 'signal']

/**
 * Loads a Hugging Face folder: config.json, safetensors (one file or shards, memory-mapped),
 * tokenizer.json if there is one. LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM and
 * Qwen3ForCausalLM.
 *
 * Rejects with `ERR_ZC_CONFIG` for a config that is damaged or not supported, naming what;
 * `ERR_ZC_CHECKPOINT` and `ERR_ZC_NUMERIC` for weights that are missing, damaged or not numbers;
 * `ERR_ZC_TOKENIZER`; `ERR_ZC_DEVICE`; `ERR_ZC_ARGUMENT` for a bad option; `ERR_ZC_UNSUPPORTED` for
 * `int8` on a GPU; `signal.reason` when
 * aborted. Nothing stays allocated then, and the config and the headers are checked before anything
 * is. On the CPU the files must stay as they are while the model lives: cut short, they end the
 * process.
 */
export async function loadModel(dir: string, options: LoadOptions = {}): Promise<Model> {
  checkOptions(options, LOAD_OPTIONS)
  const { dtype = 'f32', weights: format = 'stored', signal } = options
  if (dtype !== 'f32' && dtype !== 'bf16') {
    throw new ZipCacheError('ERR_ZC_ARGUMENT', `dtype: is ${show(dtype)}, expected f32 or bf16`, {
      argument: 'dtype',
    })
  }
  if (format !== 'stored' && format !== 'int8') {
    const message = `weights: is ${show(format)}, expected stored or int8`
    throw new ZipCacheError('ERR_ZC_ARGUMENT', message, { argument: 'weights' })
  }
  if (options.kvMemory !== undefined) checkKvMemory(options.kvMemory)
  signal?.throwIfAborted()
  const config = await readModelConfig(dir)
  const checked = checkTensors(await openCheckpoint(dir), config)
  const tokenizer = await loadTokenizer(dir)
  signal?.throwIfAborted()

  const ownsDevice = !(options.device instanceof Device)
  const device =
    options.device instanceof Device
      ? options.device
      : await Device.open(options.device ?? 'cpu', threadsOf(options))
  const disposers: (() => void)[] = []
  const release = async () => {
    for (const dispose of disposers) dispose()
    if (ownsDevice) await device.dispose()
  }
  try {
    if (format === 'int8' && device.info.kind !== 'cpu') {
      const message = `weights: int8 is multiplied on the CPU alone, the device is ${device.info.name}`
      throw new ZipCacheError('ERR_ZC_UNSUPPORTED', message, { argument: 'weights' })
    }
    const weights = await loadWeights(device, checked, dtype, format, signal)
    disposers.push(() => weights.dispose())
    const { invFreq, attentionScale } = ropeFrequencies(
      config.rope,
      config.headDim,
      config.maxPositions,
    )
    const frequencies = device.from(invFreq, [invFreq.length], 'f32')
    disposers.push(() => frequencies.dispose())
    const forwardModel = {
      device,
      config,
      weights,
      dtype,
      weightFormat: format,
      attentionDtype: attentionDtypeOf(dtype),
      invFreq: frequencies,
      attentionScale,
      specialTokens: tokenizer && specialTokensOf(tokenizer, config.vocabSize),
    }
    await device.sync() // what is still to be freed is not free
    const kvMemory = options.kvMemory ?? device.memory.free / 2
    return new Model(forwardModel, kvMemory, tokenizer, release)
  } catch (error) {
    await release()
    throw error
  }
}

function threadsOf({ threads }: LoadOptions): { threads?: number } {
  return threads === undefined ? {} : { threads }
}
