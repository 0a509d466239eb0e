import { loadModel } from '../engine/load-model.js'
import type { Model } from '../engine/model.js'
import type { DeviceOptions } from './options.js'

/** Loads a model, uses it, and disposes of it whatever happens. */
export async function withModel<T>(
  dir: string,
  { device, dtype, weights, threads }: DeviceOptions,
  signal: AbortSignal,
  use: (model: Model) => Promise<T>,
): Promise<T> {
  const model = await loadModel(dir, { device, dtype, weights, threads, signal })
  try {
    return await use(model)
  } finally {
    await model.dispose()
  }
}
