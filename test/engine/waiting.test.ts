/** Calls that wait, and whose sequences hold memory meanwhile that others want. */
import { join } from 'node:path'
import type { PromptAnew } from '../../lib/engine/sequence'
import { createEngine, type PolicySpec } from '../../lib/index'
import { kFixtures } from './model-copies'
import { collect, idsOf, someIds, useModel } from './running'

const model = useModel(join(kFixtures, 'llama'))
const policies: PolicySpec[] = ['fp16', 'zipcache', { name: 'zipcache', saliencyRatio: 'auto' }]
const ids = (n: number, seed: number) => someIds(n, model().config.vocabSize, seed)
const options = { maxTokens: 12, ignoreEos: true }

/** As many tokens as this under this policy take so many mebibytes. */
async function tokensIn(mib: number, policy: PolicySpec): Promise<number> {
  await using engine = createEngine({ model: model(), kvMemory: 1 << 26 })
  const sequence = engine.createSequence({ policy })
  await sequence.prefill(ids(1600, 0))
  return Math.floor((1600 * mib * 2 ** 20) / sequence.bytes.resident)
}

test.each(policies)('the last one that waits gives its past up: %j', async (policy) => {
  const n = await tokensIn(0.4, policy)
  await using engine = createEngine({ model: model(), kvMemory: 2 ** 20 })
  const [past, rest] = [ids(n, 1), ids(40, 2)]
  const waiting = engine.createSequence({ policy })
  await waiting.prefill(past)
  const kept = waiting.bytes.resident

  // One that is under way, and not read on with until the others wait.
  const other = engine.createSequence({ policy })
  const running = other.generate(ids(n, 3), options)
  await running.next()
  const large = idsOf(engine, ids(Math.floor(1.7 * n), 4), 12, { policy })
  const told: number[] = []
  const anew: PromptAnew = {
    ids: [...past, ...rest],
    places: [{ nBehind: 30, reached: () => told.push(waiting.length) }],
    begins: () => told.push(waiting.length),
  }
  const answer = collect(waiting.generate(rest, options, { places: [], anew }))
  await new Promise((resolve) => setTimeout(resolve, 20))
  expect(engine.stats()).toMatchObject({ decoding: 1, queued: 2 })
  expect(waiting.bytes.resident).toBe(kept) // they wait for the one that runs
  await running.return()
  other.dispose()
  expect(await large).toHaveLength(12)
  const said = (await answer).ids
  expect(told).toEqual([0, n + 10])
  expect(waiting.tokens).toEqual([...past, ...rest, ...said])

  await using roomy = createEngine({ model: model(), kvMemory: 1 << 26 })
  const fresh = roomy.createSequence({ policy })
  await fresh.prefill(anew.ids.slice(0, n + 10))
  expect(said).toEqual(await idsOf(fresh, anew.ids.slice(n + 10), 12))
  expect(waiting.segments).toEqual(fresh.segments)
})

test('a call that is given up where a turn ends is told of no other', async () => {
  await using engine = createEngine({ model: model(), kvMemory: 2 ** 24 })
  const sequence = engine.createSequence()
  const abort = new AbortController()
  const told: string[] = []
  const first = () => {
    told.push('first')
    abort.abort(new Error('enough'))
  }
  const places = [
    { nBehind: 10, reached: first },
    { nBehind: 10, reached: () => told.push('second') },
  ]
  const answer = sequence.generate(ids(30, 1), { ...options, signal: abort.signal }, { places })
  await expect(collect(answer)).rejects.toThrow('enough')
  expect(told).toEqual(['first'])
  expect(sequence.length).toBe(20)
  expect(engine.stats()).toMatchObject({ prefilling: 0, decoding: 0 })
})

test('a past that nobody said how to run again is not given up', async () => {
  const n = await tokensIn(0.4, 'fp16')
  await using engine = createEngine({ model: model(), kvMemory: 2 ** 20 })
  const waiting = engine.createSequence({ policy: 'fp16' })
  await waiting.prefill(ids(n, 1))
  const other = engine.createSequence({ policy: 'fp16' })
  const running = other.generate(ids(n, 3), options)
  await running.next()
  const large = idsOf(engine, ids(Math.floor(1.7 * n), 4), 12, { policy: 'fp16' })
  const answer = idsOf(waiting, ids(40, 2), 12)
  await Promise.resolve()
  await running.return()
  other.dispose()
  await expect(large).rejects.toMatchObject({ code: 'ERR_ZC_OUT_OF_MEMORY' })
  expect(await answer).toHaveLength(12)
  expect(waiting.length).toBeGreaterThanOrEqual(n + 40)
})

test.each(policies)(
  'requests over beginnings of their own are all answered: %j',
  async (policy) => {
    const n = await tokensIn(0.4, policy)
    const all = async (kvMemory: number) => {
      await using engine = createEngine({ model: model(), kvMemory, prefixMemory: 2 ** 19 })
      const answers = [1, 2, 3, 4].map((seed) => {
        const prompt = ids(n + 60, seed)
        return collect(engine.generate(prompt, { ...options, policy, prefixTokens: n }))
      })
      return (await Promise.all(answers)).map((answer) => answer.ids)
    }
    expect(await all(2 ** 20)).toEqual(await all(2 ** 26))
  },
)
