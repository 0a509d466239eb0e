import { loadModel } from '../engine/load-model.js'
import { checkObject } from '../engine/options.js'
import type { Asker } from './asker.js'
import { localAsker } from './local-asker.js'
import type { WorkerSetting } from './worker-asker.js'

/**
 * Loads a model and asks it; `close` disposes of it.
 *
 * Rejects as `loadModel` and `localAsker`.
 */
export async function modelAsker(setting: WorkerSetting, signal?: AbortSignal): Promise<Asker> {
  checkObject('setting', setting)
  const { dir, device, dtype, weights, threads, tasks, questions, seed } = setting
  const model = await loadModel(dir, {
    ...{ device, dtype },
    ...(weights === undefined ? {} : { weights }),
    ...(threads === undefined ? {} : { threads }),
    ...(signal === undefined ? {} : { signal }),
  })
  try {
    const { name, isa } = model.device.info
    const identity = {
      model: await model.fingerprint(),
      device: `${name} (${isa})`,
      dtype: model.dtype,
      ...(model.weights === 'stored' ? {} : { weights: model.weights }),
    }
    const release = () => model.dispose()
    return await localAsker({ model, tasks, questions, seed, identity, release })
  } catch (error) {
    await model.dispose()
    throw error
  }
}
