import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { loadModel, type Model } from '../../lib/index'
import { kFixtures as kPlain, ModelCopies, readReference } from '../engine/model-copies'
import { expectSame, idsOf, maxDifference } from '../engine/running'

const kFixtures = join(kPlain, '..', 'quantized')
const names = readdirSync(kFixtures).filter((name) => !name.endsWith('.py'))
const copies = new ModelCopies()
afterAll(() => copies.remove())

const folder = (name: string) => join(kFixtures, name)
const referenceOf = (name: string) => readReference(join('..', 'quantized', name))

/** Logits differ from those of the widened weights by this much; float32 sums in another order by 1e-5. */
function toleranceOf(name: string): number {
  if (name === 'int8-channel' || name === 'gptq-8-channel') return 2e-3 // x is rounded to 16 bits
  if (!name.startsWith('fp8') && name !== 'gptq-8' && !name.endsWith('order')) return 0.04
  return 1e-4
}

async function withModel<R>(
  dir: string,
  options: Parameters<typeof loadModel>[1],
  body: (model: Model) => Promise<R>,
): Promise<R> {
  const model = await loadModel(dir, options)
  try {
    return await body(model)
  } finally {
    await model.dispose()
  }
}

async function lastLogits(model: Model, ids: number[], length: number): Promise<Float32Array> {
  const logits = await model.logits(ids, { policy: 'full' })
  return logits.subarray(logits.length - length)
}

test('there is a checkpoint of every format', () => {
  expect(names).toHaveLength(15)
})

describe.each(names)('%s', (name) => {
  const { ids, logits, greedy } = referenceOf(name)

  test('agrees with the weights that its packers made of it', async () => {
    await withModel(folder(name), { dtype: 'f32' }, async (model) => {
      const own = await lastLogits(model, ids, logits.length)
      expect(maxDifference(own, logits)).toBeLessThan(toleranceOf(name))
      expect(await idsOf(model, ids, greedy.length, { policy: 'full' })).toEqual(greedy)
    })
  })

  test('in bfloat16 and as int8: close to them', async () => {
    for (const options of [{ dtype: 'bf16' }, { weights: 'int8' }] as const) {
      await withModel(folder(name), options, async (model) => {
        const own = await lastLogits(model, ids, logits.length)
        expect(maxDifference(own, logits)).toBeLessThan(0.15)
      })
    }
  })

  test('in shards: identical logits', async () => {
    const [one, three] = [folder(name), copies.copy(folder(name), { shards: 3 })]
    const [a, b] = await Promise.all(
      [one, three].map((dir) =>
        withModel(dir, {}, async (model) => (await lastLogits(model, ids, logits.length)).slice()),
      ),
    )
    expectSame(a!, b!)
  })
})
