/** Requests that begin with the same tokens share a past, if the engine keeps pasts. */
import { join } from 'node:path'
import type { Context } from '../../lib/engine/context'
import { PrefixCache } from '../../lib/engine/prefix-cache'
import { createEngine, type Engine, type EngineOptions, type PolicySpec } from '../../lib/index'
import { expectRejected } from '../support/errors'
import { kFixtures } from './model-copies'
import { collect, idsOf, someIds, useModel } from './running'

const model = useModel(join(kFixtures, 'llama'))
const zip: PolicySpec = { name: 'zipcache', window: 12 }
const policies: PolicySpec[] = ['full', 'fp16', zip, 'uniform4']
const settings = { maxTokens: 20, ignoreEos: true }
const system = someIds(50, 320, 1)
const questions = [2, 3, 4].map((seed) => someIds(9 + seed, 320, seed))

async function withEngine(
  options: Partial<EngineOptions>,
  body: (engine: Engine) => Promise<void>,
): Promise<void> {
  const engine = createEngine({ model: model(), kvMemory: 64 << 20, ...options })
  try {
    await body(engine)
  } finally {
    await engine.dispose()
    expect(engine.kvMemory.used).toBe(0)
  }
}

const answerOf = async (engine: Engine, prompt: number[], options: object) =>
  (await collect(engine.generate(prompt, { ...settings, ...options }))).ids

test.each(policies)('a declared prefix is run once and changes no answer: %j', async (policy) => {
  const options = { policy, prefixTokens: system.length }
  const expected: number[][] = []
  await withEngine({}, async (engine) => {
    for (const question of questions) {
      expected.push(await answerOf(engine, [...system, ...question], options))
    }
    expect(engine.stats()).toMatchObject({ prefixHits: 0, prefixes: { count: 0, bytes: 0 } })
    // The prompt in two turns, that is.
    const sequence = engine.createSequence({ policy })
    await sequence.prefill(system)
    expect(await idsOf(sequence, questions[0] as number[], 20)).toEqual(expected[0])
  })
  await withEngine({ prefixMemory: 32 << 20 }, async (engine) => {
    const answers: number[][] = []
    for (const question of questions) {
      answers.push(await answerOf(engine, [...system, ...question], options))
    }
    expect(answers).toEqual(expected)
    expect(engine.stats()).toMatchObject({
      prefixHits: 2,
      prefixTokens: 2 * system.length,
      promptTokens: system.length + questions.flat().length,
      prefixes: { count: 4 },
    })
    // All at once, the prefix being there already.
    const together = questions.map((question) =>
      answerOf(engine, [...system, ...question, 7], options),
    )
    const alone: number[][] = []
    await withEngine({}, async (other) => {
      for (const question of questions) {
        const prompt = [...system, ...question, 7]
        alone.push(await answerOf(other, prompt, options))
      }
    })
    // What was kept is longer than the declared prefix: the first question's whole conversation
    // begins otherwise, so the prefix is the longest.
    expect(await Promise.all(together)).toEqual(alone)
  })
})

test('the longest past is found: a conversation goes on where it was', async () => {
  await withEngine({ prefixMemory: 32 << 20 }, async (engine) => {
    const answer = await answerOf(engine, system, { policy: zip })
    const next = [...system, ...answer, ...(questions[0] as number[])]
    const continued = await answerOf(engine, next, { policy: zip })
    // The last token of an answer has not been through the model.
    expect(engine.stats()).toMatchObject({
      prefixHits: 1,
      prefixTokens: system.length + answer.length - 1,
    })
    const sequence = engine.createSequence({ policy: zip })
    expect(await idsOf(sequence, system, 20)).toEqual(answer)
    expect(await idsOf(sequence, questions[0] as number[], 20)).toEqual(continued)
    sequence.dispose()
  })
})

test('nothing is shared between policies, seeds, or prompts that differ', async () => {
  await withEngine({ prefixMemory: 32 << 20 }, async (engine) => {
    const prompt = [...system, 5]
    await answerOf(engine, prompt, { policy: zip, prefixTokens: 50 })
    await answerOf(engine, prompt, { policy: 'fp16', prefixTokens: 50 })
    await answerOf(engine, prompt, { policy: zip, seed: 1, prefixTokens: 50 })
    await answerOf(engine, [6, ...system.slice(1), 5], { policy: zip, prefixTokens: 50 })
    await answerOf(engine, system, { policy: zip }) // no more than the past: nothing would be left to run
    expect(engine.stats().prefixHits).toBe(0)
    await answerOf(engine, prompt, { policy: { ...zip }, prefixTokens: 50 })
    expect(engine.stats().prefixHits).toBe(1)
  })
})

test('pasts go when their memory is used up, or needed by requests', async () => {
  const prompts = [11, 12, 13, 14, 15, 16].map((seed) => someIds(300, 320, seed))
  await withEngine({ prefixMemory: 600_000 }, async (engine) => {
    for (const prompt of prompts) await answerOf(engine, prompt, { policy: 'fp16' })
    const { prefixes } = engine.stats()
    expect(prefixes.bytes).toBeLessThanOrEqual(600_000)
    expect(prefixes.count).toBeGreaterThan(0)
    expect(prefixes.count).toBeLessThan(prompts.length)
    expect(engine.kvMemory.used).toBe(prefixes.bytes)
  })
  await withEngine({ kvMemory: 1 << 20, prefixMemory: 1 << 20 }, async (engine) => {
    for (const prompt of prompts) await answerOf(engine, prompt, { policy: 'fp16' })
    const kept = engine.stats().prefixes.count
    expect(kept).toBeGreaterThan(1)
    const sequence = engine.createSequence({ policy: 'fp16' })
    await sequence.prefill(someIds(1000, 320))
    expect(engine.stats().prefixes.count).toBeLessThan(kept)
    sequence.dispose()
  })
})

test('of several pasts the one that was used last stays longest', async () => {
  const options = { policy: 'fp16', maxTokens: 1 } as const
  const prompts = [1, 2, 3].map((seed) => someIds(60, 320, seed))
  const [first, second, third] = prompts as [number[], number[], number[]]
  let prefixMemory = 0
  await withEngine({ prefixMemory: 32 << 20 }, async (engine) => {
    for (const prompt of [first, second]) await answerOf(engine, prompt, options)
    prefixMemory = engine.stats().prefixes.bytes // what two take
  })
  await withEngine({ prefixMemory }, async (engine) => {
    for (const prompt of [first, second]) await answerOf(engine, prompt, options)
    const reuse = async (prompt: number[]) => {
      const before = engine.stats().prefixHits
      const { sequence, isKept } = await engine.openPrefix(prompt, { policy: 'fp16' })
      sequence.dispose()
      expect(engine.stats().prefixHits - before).toBe(isKept ? 1 : 0)
      return isKept
    }
    expect(await reuse(first)).toBe(true)
    await answerOf(engine, third, options)
    expect(engine.stats().prefixes).toEqual({ count: 2, bytes: prefixMemory })
    expect(await reuse(first)).toBe(true)
    expect(await reuse(third)).toBe(true)
    expect(await reuse(second)).toBe(false)
  })
})

test('memory that requests need is taken from the past that was used longest ago', () => {
  const pasts = [[1], [2], [3]].map((tokens) => {
    const past = { tokens, bytes: { resident: 1 }, pending: null, dispose: jest.fn() }
    const context = { ...past, forgetLogits: () => undefined, fork: () => context }
    return context as unknown as Context
  })
  const key = { spec: zip, seed: { lo: 1, hi: 0 }, recordSaliency: false, scope: '' }
  const cache = new PrefixCache(10)
  for (const past of pasts) cache.keep(key, past)
  expect(cache.findExactly(key, [1])).not.toBeNull()
  const gone = () => pasts.map(({ dispose }) => jest.mocked(dispose).mock.calls.length)
  for (const expected of ['010', '011', '111']) {
    expect(cache.evict()).toBe(true)
    expect(gone().join('')).toBe(expected)
  }
  expect(cache.evict()).toBe(false)
})

test('a request that is left or fails keeps what it has run', async () => {
  await withEngine({ prefixMemory: 32 << 20 }, async (engine) => {
    for await (const _ of engine.generate(system, { ...settings, policy: zip })) break
    expect(engine.stats().prefixes.count).toBe(1)
    const signal = AbortSignal.abort()
    await expect(answerOf(engine, [...system, 5], { policy: zip, signal })).rejects.toBe(
      signal.reason,
    )
    expect(await answerOf(engine, [...system, 5], { policy: zip })).toHaveLength(20)
  })
})

test.each([-1, 0.5, 51, Number.NaN])('prefixTokens %p of 51 is refused', async (prefixTokens) => {
  await withEngine({}, async (engine) => {
    await expectRejected(answerOf(engine, [...system, 5], { prefixTokens }), {
      code: 'ERR_ZC_ARGUMENT',
      argument: 'prefixTokens',
    })
    expect(engine.stats().sequences).toBe(0)
  })
})

describe('a prefix that is opened', () => {
  test.each(policies)('is run once, and what follows is the same: %j', async (policy) => {
    await withEngine({ prefixMemory: 32 << 20 }, async (engine) => {
      const answers: number[][] = []
      for (const isKept of [false, true, true]) {
        const opened = await engine.openPrefix(system, { policy })
        expect(opened.isKept).toBe(isKept)
        expect(opened.sequence.tokens).toEqual(system)
        answers.push(await idsOf(opened.sequence, questions[0] as number[], 20))
        opened.sequence.dispose()
      }
      expect(answers[1]).toEqual(answers[0])
      expect(answers[2]).toEqual(answers[0])
      expect(engine.stats()).toMatchObject({ prefixHits: 2, prefixes: { count: 1 } })
      const declared = { policy, prefixTokens: system.length }
      expect(await answerOf(engine, [...system, ...(questions[0] as number[])], declared)).toEqual(
        answers[0],
      )
    })
  })

  test('is itself alone: nothing longer, of another scope, policy or record', async () => {
    await withEngine({ prefixMemory: 32 << 20 }, async (engine) => {
      const isKept = async (ids: number[], options: object) => {
        const opened = await engine.openPrefix(ids, { policy: zip, ...options })
        opened.sequence.dispose()
        return opened.isKept
      }
      expect(await isKept(system, {})).toBe(false)
      expect(await isKept(system.slice(0, 40), {})).toBe(false)
      expect(await isKept([...system, 5], {})).toBe(false)
      for (const other of [
        { scope: 'a' },
        { policy: 'fp16' },
        { seed: 1 },
        { recordSaliency: true },
      ]) {
        expect(await isKept(system, other)).toBe(false)
        expect(await isKept(system, other)).toBe(true)
      }
      const { sequence } = await engine.openPrefix(system, { policy: zip, recordSaliency: true })
      const { scores } = await sequence.tokenMap()
      expect([...scores].every((score) => score > 0)).toBe(true)
      sequence.dispose()
    })
  })

  test('that is aborted or refused leaves nothing', async () => {
    await withEngine({ prefixMemory: 32 << 20 }, async (engine) => {
      const signal = AbortSignal.abort()
      await expect(engine.openPrefix(system, { signal })).rejects.toBe(signal.reason)
      const late = new AbortController()
      const opening = engine.openPrefix(someIds(1500, 320), { signal: late.signal })
      late.abort()
      await expect(opening).rejects.toBe(late.signal.reason)
      await expectRejected(engine.openPrefix([]), { code: 'ERR_ZC_ARGUMENT' })
      expect(engine.stats()).toMatchObject({ sequences: 0, prefixes: { count: 0 } })
    })
  })
})

describe('requests that come at the same time with the same prefix', () => {
  const long = someIds(1500, 320)

  test.each(policies)('run it once, and answer as alone: %j', async (policy) => {
    const options = { policy, prefixTokens: system.length }
    const prompts = questions.map((question) => [...system, ...question])
    const alone: number[][] = []
    await withEngine({}, async (engine) => {
      for (const prompt of prompts) alone.push(await answerOf(engine, prompt, options))
    })
    await withEngine({ prefixMemory: 32 << 20 }, async (engine) => {
      const together = prompts.map((prompt) => answerOf(engine, prompt, options))
      expect(await Promise.all(together)).toEqual(alone)
      expect(engine.stats()).toMatchObject({
        prefixHits: 2,
        promptTokens: system.length + questions.flat().length,
        queued: 0,
        sequences: 0,
      })
    })
  })

  test('share its pages', async () => {
    await withEngine({ prefixMemory: 32 << 20 }, async (engine) => {
      const opening = [1, 2, 3, 4].map(() => engine.openPrefix(long, { policy: zip }))
      await new Promise((resolve) => setImmediate(resolve))
      expect(engine.stats()).toMatchObject({ sequences: 1, queued: 3 })
      const opened = await Promise.all(opening)
      expect(opened.map(({ isKept }) => isKept)).toEqual([false, true, true, true])
      expect(engine.stats()).toMatchObject({ promptTokens: long.length, sequences: 4, queued: 0 })
      expect(engine.kvMemory.used).toBeLessThan(2 * (opened[0]?.sequence.bytes.resident ?? 0))
      for (const { sequence } of opened) sequence.dispose()
    })
  })

  test('find the next who runs it, when the first gives it up', async () => {
    await withEngine({ prefixMemory: 32 << 20 }, async (engine) => {
      const first = new AbortController()
      const { signal } = first
      const opening = [
        engine.openPrefix(long, { policy: zip, signal }),
        engine.openPrefix(long, { policy: zip, signal }),
        engine.openPrefix(long, { policy: zip }),
        engine.openPrefix(long, { policy: zip }),
      ]
      const outcomes = Promise.allSettled(opening)
      await new Promise((resolve) => setImmediate(resolve))
      first.abort()
      const [gone, goneToo, ...others] = await outcomes
      expect([gone, goneToo]).toMatchObject([{ reason: signal.reason }, { reason: signal.reason }])
      expect(others).toMatchObject([{ value: { isKept: false } }, { value: { isKept: true } }])
      expect(engine.stats()).toMatchObject({ promptTokens: long.length, queued: 0 })
      for (const one of others) if (one.status === 'fulfilled') one.value.sequence.dispose()
      expect(engine.stats().sequences).toBe(0)
    })
  })

  test('are told each for itself what is wrong with it', async () => {
    await withEngine({ kvMemory: 1 << 20, prefixMemory: 1 << 20 }, async (engine) => {
      const tooLong = someIds(4000, 320)
      const opening = [1, 2, 3].map(() => engine.openPrefix(tooLong, { policy: 'fp16' }))
      const fault = { code: 'ERR_ZC_OUT_OF_MEMORY' } as const
      await Promise.all(opening.map((one) => expectRejected(one, fault)))
      expect(engine.stats()).toMatchObject({ sequences: 0, queued: 0 })
    })
  })

  test('can be given up while they wait', async () => {
    await withEngine({ prefixMemory: 32 << 20 }, async (engine) => {
      let isThere = false
      const first = engine.openPrefix(long, { policy: zip }).finally(() => {
        isThere = true
      })
      const waiting = new AbortController()
      const other = answerOf(engine, [...long, 5], {
        policy: zip,
        prefixTokens: long.length,
        signal: waiting.signal,
      })
      const unlike = engine.openPrefix(long, { policy: zip, scope: 'another' })
      await new Promise((resolve) => setImmediate(resolve))
      expect(engine.stats()).toMatchObject({ queued: 1, sequences: 2 }) // none for another scope's
      const same = engine.openPrefix(long, { policy: zip, signal: waiting.signal })
      waiting.abort()
      await expect(same).rejects.toBe(waiting.signal.reason)
      await expect(other).rejects.toBe(waiting.signal.reason)
      expect(isThere).toBe(false)
      for (const { sequence } of [await first, await unlike]) sequence.dispose()
      expect(engine.stats()).toMatchObject({ sequences: 0, queued: 0 })
    })
  })

  test('end with the engine', async () => {
    await withEngine({ prefixMemory: 32 << 20 }, async (engine) => {
      const opening = [1, 2, 3].map(() => engine.openPrefix(long, { policy: zip }))
      const outcomes = Promise.allSettled(opening)
      await new Promise((resolve) => setImmediate(resolve))
      await engine.dispose()
      const disposed = { reason: { code: 'ERR_ZC_HANDLE' } }
      expect(await outcomes).toMatchObject([disposed, disposed, disposed])
    })
  })

  test('do not wait in turn for what is too large to be kept', async () => {
    await withEngine({ prefixMemory: 1000 }, async (engine) => {
      const opened = await Promise.all(
        [1, 2, 3].map(() => engine.openPrefix(system, { policy: zip })),
      )
      expect(opened.map(({ isKept }) => isKept)).toEqual([false, false, false])
      for (const { sequence } of opened) sequence.dispose()
    })
  })

  test('wait in no greater number than requests may', async () => {
    await withEngine({ prefixMemory: 32 << 20, maxBatch: 1, maxQueue: 1 }, async (engine) => {
      const opening = [1, 2, 3].map(() => engine.openPrefix(long, { policy: zip }))
      await expectRejected(engine.openPrefix(long, { policy: zip }), {
        code: 'ERR_ZC_BUSY',
        message: /2 requests are waiting/,
      })
      for (const { sequence } of await Promise.all(opening)) sequence.dispose()
    })
  })
})

test('a declared prefix is one turn, whatever shorter pasts are kept', async () => {
  const prompt = [...system, ...(questions[0] as number[])]
  const options = { policy: zip, prefixTokens: system.length }
  await withEngine({ prefixMemory: 32 << 20 }, async (engine) => {
    for (const first of [20, 30]) {
      const { sequence } = await engine.openPrefix(system.slice(0, first), { policy: zip })
      sequence.dispose()
    }
    await answerOf(engine, prompt, options)
    expect(engine.stats()).toMatchObject({ prefixHits: 0, promptTokens: 50 + prompt.length })
  })
})

test('a sequence that is created may ask for memory that others can miss', async () => {
  const idle: { dispose(): void }[] = []
  const reclaim = () => {
    const one = idle.shift()
    one?.dispose()
    return one !== undefined
  }
  await withEngine({ kvMemory: 1 << 20, reclaim }, async (engine) => {
    // Each has a page table, if nothing else.
    for (let i = 0; i < 5000; i++) idle.push(engine.createSequence({ policy: zip }))
    expect(idle.length).toBeLessThan(5000)
    while (reclaim()) {
      // all of them
    }
    expect(engine.stats().sequences).toBe(0)
  })
})
