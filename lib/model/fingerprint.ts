import { createHash } from 'node:crypto'
import { isDeepStrictEqual } from 'node:util'
import type { Tensor } from '../ops/index.js'
import type { ModelConfig } from './config.js'
import type { ForwardModel } from './forward.js'
import { type ComputeDtype, namedTensors } from './weights.js'

/** Elements of a weight that are looked at, from its beginning and from its end. */
const SAMPLE = 512

/** Of models whose weights lie on a device, where they never change. */
const known = new WeakMap<ForwardModel, Promise<string>>()

/**
 * What tells models apart: a SHA-256 over the configuration, the compute type, and each weight's
 * type, shape, first and last elements. Models that were trained differently differ everywhere. It is
 * computed once for a model.
 */
export async function fingerprintOf(model: ForwardModel): Promise<string> {
  let fingerprint = known.get(model)
  if (!fingerprint) {
    fingerprint = computeFingerprint(model)
    known.set(model, fingerprint)
    fingerprint.catch(() => known.delete(model)) // its caller is told
  }
  return fingerprint
}

async function computeFingerprint({ config, dtype, weights }: ForwardModel): Promise<string> {
  const all = namedTensors(weights)
  // All are enqueued before any is awaited: each wait may be as long as a decode step of others.
  const samples = await Promise.all(all.map(([, tensor]) => readSamples(tensor)))
  const hash = createHash('sha256').update(factsOf(config, dtype))
  for (const [index, [name, tensor]] of all.entries()) {
    hash.update(`\n${name} ${tensor.dtype} ${tensor.shape.join('x')}\n`)
    for (const { buffer, byteOffset, byteLength } of samples[index] as ArrayBufferView[]) {
      hash.update(new Uint8Array(buffer, byteOffset, byteLength))
    }
  }
  return hash.digest('hex')
}

/**
 * The configuration and the compute type in JSON. What configs have come to say since sequences are saved is left out
 * where it says nothing: those that were saved before are still of their models.
 */
function factsOf(config: ModelConfig, dtype: ComputeDtype): string {
  const { intermediateSizes, intermediateSize } = config
  const nothing = new Map<string, unknown>([
    ['gatesAttention', false],
    ['recurrence', null],
    ['globalHeads', null],
    ['kvSources', [...intermediateSizes.keys()]],
    ['intermediateSizes', intermediateSizes.map(() => intermediateSize)],
    ['normalizesValues', false],
    ['perLayerInputs', null],
    ['scalesLayers', false],
    ['logitsCap', 0],
    ['besideMlp', false],
  ])
  return JSON.stringify({ config, dtype }, (key, value) =>
    nothing.has(key) && isDeepStrictEqual(value, nothing.get(key)) ? undefined : value,
  )
}

/** Elements from a tensor's beginning and from its end. */
async function readSamples(tensor: Tensor): Promise<ArrayBufferView[]> {
  const n = Math.min(SAMPLE, tensor.length)
  const views = [0, tensor.length - n].map((offset) => tensor.view([n], offset))
  const reads = views.map((view) => view.read())
  for (const view of views) view.dispose() // once it was read
  return Promise.all(reads)
}
