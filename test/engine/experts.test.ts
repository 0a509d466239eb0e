/** Models with experts: who is chosen for a row says nothing about others' tokens. */
import { join } from 'node:path'
import { loadModel } from '../../lib/index'
import { kFixtures, withExperts } from './model-copies'
import { idsOf, someIds } from './running'

const kinds = [
  { device: 'cpu' },
  { device: 'cpu:baseline', dtype: 'bf16' },
  { device: 'cpu', weights: 'int8' },
  { device: 'cpu', weights: 'int4' },
  { device: 'cpu:baseline', weights: 'int4' },
  { device: 'cuda-emu' },
  { device: 'cuda-emu', dtype: 'f32' },
  { device: 'cuda-emu', weights: 'int8' },
  { device: 'cuda-emu', weights: 'int4' },
] as const

describe.each(withExperts)('%s', (name) => {
  test.each(kinds)('%j: tokens of a batch are those of sequences alone', async (options) => {
    const model = await loadModel(join(kFixtures, name), { ...options, kvMemory: 1 << 24 })
    const prompts = [1, 9, 40, 130].map((n) => someIds(n, model.config.vocabSize, n))
    const ask = (ids: number[]) => idsOf(model, ids, 12, { policy: 'zipcache' })
    const alone: number[][] = []
    for (const ids of prompts) alone.push(await ask(ids))
    expect(await Promise.all(prompts.map(ask))).toEqual(alone)
    expect(new Set(alone.flat()).size).toBeGreaterThan(5)
    await model.dispose()
  })
})
