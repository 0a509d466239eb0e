/** The whole model on CUDA's kernels: emulated everywhere, and on a GPU where there is one. */
import { join } from 'node:path'
import { loadModel } from '../../lib/index'
import { readFixturePrompts } from '../eval/fixture-prompts'
import { describeDevices } from '../support/backends'
import { kTrainedModels } from './model-copies'
import { collect } from './running'

const [prompt] = readFixturePrompts().filter(({ lines }) => lines === 10)

/** Answers a prompt of 10 lines and goes on until a window was compressed. */
async function answer(device: string, policy: string, maxTokens: number) {
  const model = await loadModel(join(kTrainedModels, 'line-retrieval'), {
    device,
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
    test.each([
      ['zipcache', 120],
      ['fp16', 20],
    ])(
      '%s: %i tokens, the ones of the CPU',
      async (policy, n) => {
        const there = await answer(device, policy, n)
        const here = await answer('cpu', policy, n)
        expect(there.ids).toEqual(here.ids)
        expect(there.ids.slice(0, prompt.answer_ids.length)).toEqual(prompt.answer_ids)
        expect(there.ratio).toBe(here.ratio)
        there.logprobs.forEach((logprob, i) => {
          expect(Math.abs(logprob - here.logprobs[i])).toBeLessThan(2e-2)
        })
      },
      240_000,
    )
  },
  ['cuda-emu', 'cuda'],
)
