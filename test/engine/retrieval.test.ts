/** What the method is for: answers out of a compressed cache, and fewer bytes. */
import { join } from 'node:path'
import type { PolicySpec } from '../../lib/index'
import { type FixturePrompt, readFixturePrompts } from '../eval/fixture-prompts'
import { expectRefused } from '../support/errors'
import { kFixtures, kTrainedModels } from './model-copies'
import { idsOf, useModel } from './running'

const model = useModel(join(kTrainedModels, 'line-retrieval'))
const prompts = readFixturePrompts()
const ofLines = (lines: number) => prompts.filter((prompt) => prompt.lines === lines)

async function ask({ ids, answer_ids }: FixturePrompt, policy: PolicySpec) {
  const sequence = model().createSequence({ policy })
  const answer = await idsOf(sequence, ids, answer_ids.length)
  const { ratio } = sequence.bytes
  sequence.dispose()
  return { isRight: answer.join() === answer_ids.join(), ratio }
}

test.each(['fp16', 'zipcache'])('%s answers every question over 50 lines', async (policy) => {
  for (const prompt of ofLines(50)) {
    const { isRight } = await ask(prompt, policy)
    expect({ number: prompt.number, isRight }).toEqual({ number: prompt.number, isRight: true })
  }
})

test('uniform2 does not answer every question over 50 and 100 lines: the task tells methods apart', async () => {
  let nWrong = 0
  for (const prompt of [...ofLines(50), ...ofLines(100)]) {
    if (!(await ask(prompt, 'uniform2')).isRight) nWrong++
    if (nWrong === 2) break
  }
  expect(nWrong).toBe(2)
})

test('zipcache answers over 200 lines out of less than a 4.3th of the bytes', async () => {
  const { isRight, ratio } = await ask(ofLines(200)[0], 'zipcache')
  expect(isRight).toBe(true)
  expect(ratio).toBeGreaterThanOrEqual(4.3)
})

describe('the hard model', () => {
  const base = useModel(join(kTrainedModels, 'line-retrieval-base'))

  test('zipcache-plus answers over 200 lines out of less than a fifth of the bytes', async () => {
    for (const prompt of ofLines(200).slice(0, 3)) {
      const sequence = base().createSequence({ policy: 'zipcache-plus' })
      const answer = await idsOf(sequence, prompt.ids, prompt.answer_ids.length)
      expect(answer).toEqual(prompt.answer_ids)
      expect(sequence.bytes.ratio).toBeGreaterThanOrEqual(5)
      sequence.dispose()
    }
  })
})

test('probes among special tokens are drawn from those of the prompt', async () => {
  const [prompt] = ofLines(50)
  expect((await ask(prompt, { name: 'zipcache', probes: 'special' })).isRight).toBe(true)
})

describe('a model without a tokenizer', () => {
  const bare = useModel(join(kFixtures, 'llama'))

  test('has no special tokens to draw probes from', () => {
    const policy = { name: 'zipcache', probes: { special: 0.1 } } as const
    expectRefused(() => bare().createSequence({ policy }), {
      code: 'ERR_ZC_ARGUMENT',
      argument: 'policy.probes',
    })
  })
})
