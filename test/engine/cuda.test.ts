/** The whole model on CUDA's kernels: emulated everywhere, and on a GPU where there is one. */
import { join } from 'node:path'
import { loadModel } from '../../lib/index'
import { readFixturePrompts } from '../eval/fixture-prompts'
import { describeDevices } from '../support/backends'
import { fixtureNames, kFixtures, kTrainedModels, ModelCopies, readReference } from './model-copies'
import { collect, maxDifference, someIds } from './running'

const copies = new ModelCopies()
afterAll(() => copies.remove())

const [prompt] = readFixturePrompts().filter(({ lines }) => lines === 10)

/** Answers a prompt of 10 lines and goes on until a window was compressed. */
async function answer(
  { device, dtype }: { device: string; dtype: 'f32' | 'bf16' },
  policy: string,
  maxTokens: number,
) {
  const model = await loadModel(join(kTrainedModels, 'line-retrieval'), {
    ...{ device, dtype },
    kvMemory: 1 << 24,
  })
  try {
    const sequence = model.createSequence({ policy })
    const { ids, logprobs } = await collect(
      sequence.generate(prompt.ids, { maxTokens, ignoreEos: true }),
    )
    const { ratio } = sequence.bytes
    sequence.dispose()
    return { ids, logprobs, ratio }
  } finally {
    await model.dispose()
  }
}

describeDevices(
  'a model',
  (device) => {
    // In bfloat16 a rounding that falls the other way shows a hundred times more.
    test.each([
      ['zipcache', 120, 'f32', 2e-2],
      ['zipcache', 120, 'bf16', 1e-1],
      ['fp16', 20, 'f32', 2e-2],
    ] as const)(
      '%s: %i tokens in %s, the ones of the CPU in f32',
      async (policy, n, dtype, tolerance) => {
        const there = await answer({ device, dtype }, policy, n)
        const here = await answer({ device: 'cpu', dtype: 'f32' }, policy, n)
        expect(there.ids).toEqual(here.ids)
        expect(there.ids.slice(0, prompt.answer_ids.length)).toEqual(prompt.answer_ids)
        expect(there.ratio).toBeCloseTo(here.ratio, dtype === 'f32' ? 10 : 1)
        there.logprobs.forEach((logprob, i) => {
          expect(Math.abs(logprob - here.logprobs[i])).toBeLessThan(tolerance)
        })
      },
      240_000,
    )

    test.each(
      fixtureNames.flatMap((name) => [
        [name, 'f32', 5e-4] as const,
        // Logits of 3 in steps of 2^-8, and a layer's sums of them.
        [name, 'bf16', 1e-1] as const,
      ]),
    )('logits of %s in %s, those of transformers', async (name, dtype, tolerance) => {
      const { ids, logits } = readReference(name)
      const options = { device, dtype, kvMemory: 1 << 24 }
      const model = await loadModel(join(kFixtures, name), options)
      try {
        const own = await model.logits(ids, { policy: 'zipcache' })
        const last = own.subarray(own.length - logits.length)
        expect(maxDifference(last, logits)).toBeLessThan(tolerance)
      } finally {
        await model.dispose()
      }
    })
  },
  ['cuda-emu', 'cuda'],
)

describeDevices(
  'a model with a sliding window',
  (device) => {
    test.each(['full', 'fp16'])(
      '%s: what it hides is not missed when others have its pages',
      async (policy) => {
        const dir = copies.copy(join(kFixtures, 'mistral'), { config: { sliding_window: 24 } })
        const model = await loadModel(dir, { device, dtype: 'f32', kvMemory: 1 << 24 })
        try {
          const ids = someIds(150, model.config.vocabSize)
          const whole = await model.logits(ids, { policy })
          const sequence = model.createSequence({ policy })
          await sequence.prefill(ids.slice(0, 110))
          const { tail } = sequence.bytes.byClass
          const other = model.createSequence({ policy })
          await other.prefill(someIds(150, model.config.vocabSize, 2))
          const rest = await sequence.logits(ids.slice(110))
          const expected = whole.subarray(whole.length - rest.length)
          expect(maxDifference(rest, expected)).toBeLessThan(policy === 'full' ? 5e-4 : 2e-2)
          // Of 7 pages 5 are hidden.
          const { nLayers, nKvHeads } = model.config
          const pageBytes = tail / (2 * nLayers * nKvHeads + 1)
          expect(pageBytes).toBe(2 * 16 * model.config.headDim * (policy === 'full' ? 4 : 2))
          for (const each of [sequence, other]) each.dispose()
        } finally {
          await model.dispose()
        }
      },
    )
  },
  ['cpu', 'cuda-emu', 'cuda'],
)
