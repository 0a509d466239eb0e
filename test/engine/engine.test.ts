/** An engine under load: who waits, who is refused, who fails, and what is returned. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import {
  createEngine,
  type Engine,
  type EngineOptions,
  type GenerateOptions,
  loadModel,
  type Model,
  type PolicySpec,
  type Sequence,
  type SequenceOptions,
} from '../../lib/index'
import { expectRefused, expectRejected } from '../support/errors'
import { kFixtures, kTrainedModels, ModelCopies, storedAs, valuesOf } from './model-copies'
import { expectIdle, testPolicies, turns } from './requests'
import { collect, idsOf, someIds, useModel } from './running'

const kLlama = join(kFixtures, 'llama')
const copies = new ModelCopies()
afterAll(() => copies.remove())

const disposed = { code: 'ERR_ZC_HANDLE' } as const
const busy = { code: 'ERR_ZC_BUSY', message: /^engine: \d+ requests are waiting/ } as const
const outOfMemory = { code: 'ERR_ZC_OUT_OF_MEMORY', argument: 'kvMemory' } as const

type Options = GenerateOptions & SequenceOptions
const endless: Options = { maxTokens: 3000, ignoreEos: true, policy: 'fp16' }

const model = useModel(kLlama)

/** An engine for one test, which ends with nothing under way. */
async function withEngine(
  options: Partial<EngineOptions>,
  body: (engine: Engine) => Promise<void>,
): Promise<void> {
  const engine = createEngine({ model: model(), kvMemory: 1 << 26, ...options })
  try {
    await body(engine)
    await expectIdle(engine)
  } finally {
    await engine.dispose()
  }
}

/** A request that generates until it is told to leave. */
async function occupy(engine: Engine, promptSeed = 1) {
  const tokens = engine.generate(someIds(20, 320, promptSeed), endless)
  await tokens.next()
  return tokens
}

/** Waits until a condition holds, for as long as a test may take. */
async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await turns(1)
}

describe('the queue', () => {
  test('refuses what is too much, and goes on', async () => {
    await withEngine({ maxBatch: 1, maxQueue: 2 }, async (engine) => {
      const first = await occupy(engine)
      const sequences = [1, 2, 3].map(() => engine.createSequence({ policy: 'fp16' }))
      const prompts = [1, 2, 3].map((seed) => someIds(10, 320, seed))
      const waiting = [0, 1].map((i) => idsOf(sequences[i], prompts[i], 5))
      await until(() => engine.stats().queued === 2)
      await expectRejected(idsOf(sequences[2], prompts[2], 5), busy)
      await expectRejected(sequences[2].prefill(prompts[2]), busy)
      await expectRejected(sequences[2].logits(prompts[2]), busy)
      await expectRejected(idsOf(engine, prompts[2], 5), busy)
      expect(engine.stats()).toMatchObject({ queued: 2, decoding: 1 })
      await first.return()
      const answers = await Promise.all(waiting)
      answers.push(await idsOf(sequences[2], prompts[2], 5)) // as if it had not been refused
      for (const [i, answer] of answers.entries()) {
        expect(answer).toEqual(await idsOf(model(), prompts[i], 5, { policy: 'fp16' }))
      }
      for (const sequence of sequences) sequence.dispose()
    })
  })

  test('has no place for what was given up', async () => {
    await withEngine({ maxBatch: 1, maxQueue: 2 }, async (engine) => {
      const first = await occupy(engine)
      const controller = new AbortController()
      const patient = idsOf(engine, [5, 6], 3, { policy: 'fp16' })
      const aborted = idsOf(engine, [5, 6], 3, { signal: controller.signal })
      await expectRejected(idsOf(engine, [5, 6], 3), busy)
      controller.abort()
      expect(engine.stats().queued).toBe(1)
      const late = idsOf(engine, [5, 6], 3, { policy: 'fp16' })
      await expect(aborted).rejects.toBe(controller.signal.reason)
      expect(engine.stats().queued).toBe(2)
      await first.return()
      expect(await late).toEqual(await patient)
    })
  })

  test('of no length still serves whoever need not wait', async () => {
    await withEngine({ maxBatch: 2, maxQueue: 0 }, async (engine) => {
      const first = await occupy(engine)
      const second = await occupy(engine)
      await expectRejected(idsOf(engine, [5, 6], 3), busy)
      await first.return()
      await turns(3)
      await idsOf(engine, [5, 6], 3)
      await second.return()
    })
  })

  test('takes as many at once as there are places, whatever can begin at once', async () => {
    await withEngine({ maxBatch: 3, maxQueue: 2, maxPrefills: 3 }, async (engine) => {
      const outcomes = await Promise.allSettled(
        Array.from({ length: 7 }, () => idsOf(engine, [5, 6], 3)),
      )
      expect(outcomes.map(({ status }) => status)).toEqual([
        ...new Array(5).fill('fulfilled'),
        ...new Array(2).fill('rejected'),
      ])
    })
  })

  test('is first in, first out', async () => {
    await withEngine({ maxBatch: 2, maxPrefills: 1 }, async (engine) => {
      const order: number[] = []
      const all = Array.from({ length: 12 }, async (_, i) => {
        const prompt = someIds(i % 3 === 0 ? 400 : 5, 320)
        for await (const _ of engine.generate(prompt, { ...endless, maxTokens: 4 })) {
          if (!order.includes(i)) order.push(i)
        }
      })
      await Promise.all(all)
      expect(order).toEqual([...all.keys()])
    })
  })
})

describe('giving up', () => {
  const large = useModel(join(kTrainedModels, 'line-retrieval'))

  test('while waiting, in a prompt and between tokens frees at once, beside one that goes on', async () => {
    await using engine = createEngine({ model: large(), kvMemory: 1 << 26, maxBatch: 3 })
    const { device } = large()
    const prompt = someIds(1200, 192)
    const expected = await idsOf(large(), prompt.slice(0, 90), 40, { policy: 'zipcache' })
    await expectIdle(engine)
    await idsOf(engine, prompt, 2) // records the steps
    await turns(3)
    await device.sync()
    const atRest = device.memory.current

    const stays = engine.generate(prompt.slice(0, 90), { maxTokens: 40, ignoreEos: true })
    const got = [(await stays.next()).value!.id]
    const controllers = [1, 2, 3].map(() => new AbortController())
    const [ofDecoding, ofPrefill, ofWaiting] = controllers.map(({ signal }) => signal)
    const decoding = engine.generate(prompt.slice(0, 50), { ...endless, signal: ofDecoding })
    await decoding.next()
    const prefilling = idsOf(engine, prompt, 5, { policy: 'fp16', signal: ofPrefill })
    await until(() => engine.stats().prefilling === 1)
    const waiting = idsOf(engine, prompt, 5, { signal: ofWaiting })
    await until(() => engine.stats().queued === 1)
    expect(engine.stats()).toMatchObject({ queued: 1, prefilling: 1, decoding: 2, sequences: 4 })

    for (const controller of controllers.toReversed()) controller.abort()
    await expect(waiting).rejects.toBe(ofWaiting.reason)
    await expect(prefilling).rejects.toBe(ofPrefill.reason)
    await expect(decoding.next()).rejects.toBe(ofDecoding.reason)
    await turns(3)
    expect(engine.stats()).toMatchObject({ queued: 0, prefilling: 0, decoding: 1, sequences: 1 })
    for await (const { id } of stays) got.push(id)
    expect(got).toEqual(expected)
    await expectIdle(engine)
    await device.sync()
    // Steps of two rows were recorded on the way.
    const grown = device.memory.current - atRest
    const steps = engine.stats().stepBytes
    expect(grown).toBeLessThanOrEqual(steps)
    await idsOf(engine, prompt, 2)
    await turns(3)
    await device.sync()
    expect(device.memory.current - atRest).toBe(grown)
  })

  test('of a prompt takes less than a second, though the prompt takes longer', async () => {
    await using engine = createEngine({ model: large(), kvMemory: 1 << 27 })
    const prompt = someIds(8000, 192)
    const controller = new AbortController()
    const running = idsOf(engine, prompt, 5, { signal: controller.signal })
    await until(() => engine.kvMemory.used > 100_000)
    await turns(20)
    const start = performance.now()
    controller.abort()
    await expect(running).rejects.toBe(controller.signal.reason)
    await turns(3)
    expect(engine.kvMemory.used).toBe(0)
    expect(performance.now() - start).toBeLessThan(1000)
  })
})

describe('admission', () => {
  const superblock = 1 << 18

  /** Requests that together take many times the memory. */
  async function expectAllServed(nSuperblocks: number, policies: readonly PolicySpec[]) {
    await withEngine({ kvMemory: nSuperblocks * superblock }, async (engine) => {
      let most = 0
      const answers = await Promise.all(
        Array.from({ length: 24 }, async (_, i) => {
          const prompt = someIds(60 + 17 * i, 320, i + 1)
          const policy = policies[i % policies.length]
          const ids: number[] = []
          const options = { maxTokens: 20 + i, ignoreEos: true, policy }
          for await (const { id } of engine.generate(prompt, options)) {
            ids.push(id)
            most = Math.max(most, engine.stats().decoding)
          }
          return { prompt, policy, ids }
        }),
      )
      expect(most).toBeGreaterThan(1)
      for (const { prompt, policy, ids } of answers.slice(-6)) {
        expect(ids).toEqual(await idsOf(model(), prompt, ids.length, { policy }))
      }
    })
  }

  test.each([
    ['fp16', 4, ['fp16']],
    ['fp16', 7, ['fp16']],
    ['zipcache', 8, ['zipcache']],
    ['uniform4', 5, ['uniform4']],
    // What a window rounds to is none of the classes that a prompt has.
    ['zipcache, few regular', 8, [{ name: 'zipcache', saliencyRatio: 0.995 }]],
    ['zipcache, few salient', 8, [{ name: 'zipcache', saliencyRatio: 0.004 }]],
    ['every policy', 10, testPolicies],
    ['every policy', 14, testPolicies],
  ] as [string, number, PolicySpec[]][])(
    'requests of %s that do not fit into %i superblocks wait, and none fails',
    (_, nSuperblocks, policies) => expectAllServed(nSuperblocks, policies),
  )

  test('requests of which one fits at a time are served one by one', async () => {
    await withEngine({ kvMemory: 4 * superblock }, async (engine) => {
      const prompts = [1, 2, 3, 4].map((seed) => someIds(900, 320, seed))
      const serve = (prompt: number[]) => idsOf(engine, prompt, 20, { policy: 'fp16' })
      for (const ids of await Promise.all(prompts.map(serve))) expect(ids).toHaveLength(20)
    })
  })

  /** 200 probes a window, of 640 that all windows may have together. */
  const observant: PolicySpec = { name: 'zipcache', window: 400, probes: { random: 0.5 } }

  test('requests wait for probe rows, too, and none fails', async () => {
    await withEngine({ kvMemory: 32 * superblock }, async (engine) => {
      const options = { maxTokens: 15, ignoreEos: true, policy: observant }
      const prompts = Array.from({ length: 8 }, (_, i) => someIds(380, 320, i + 1))
      const answers = await Promise.all(prompts.map((ids) => idsOf(engine, ids, 15, options)))
      expect(answers[7]).toEqual(await idsOf(model(), prompts[7], 15, options))
    })
  })

  test('for probe rows, sequences that nobody uses are given up', async () => {
    const idle: Sequence[] = []
    const reclaim = () => {
      const oldest = idle.shift()
      oldest?.dispose()
      return oldest !== undefined
    }
    await withEngine({ kvMemory: 32 * superblock, reclaim }, async (engine) => {
      for (let i = 0; i < 8; i++) {
        const sequence = engine.createSequence({ policy: observant })
        await sequence.prefill(someIds(380, 320, i + 1))
        idle.push(sequence)
      }
      expect(idle.length).toBeGreaterThan(1)
      expect(idle.length).toBeLessThan(8)
      while (reclaim());
    })
  })

  test('who waits for memory begins when a sequence that nobody uses is disposed of', async () => {
    await withEngine({ kvMemory: 4 * superblock }, async (engine) => {
      const idle = engine.createSequence({ policy: 'fp16' })
      await idle.prefill(someIds(800, 320))
      const active = engine.generate([5, 6], { maxTokens: 100, ignoreEos: true, policy: 'fp16' })
      await active.next()
      const waiting = idsOf(engine, someIds(500, 320), 5, { policy: 'fp16' })
      await turns(20)
      expect(engine.stats().queued).toBe(1)
      idle.dispose()
      await waiting // though nobody asks the other for a token
      await active.return()
    })
  })

  test.each<PolicySpec>(['full', 'zipcache'])(
    'the page that each fork copies before it writes is waited for, too: %j',
    async (policy) => {
      await withEngine({ kvMemory: 4 * superblock }, async (engine) => {
        const sequence = engine.createSequence({ policy })
        await sequence.prefill(someIds(20, 320))
        const expected = await idsOf(model(), someIds(20, 320), 12, { policy })
        // Each waits with its first token for as long as others may join.
        const answers = Array.from({ length: 64 }, async () => {
          const fork = sequence.fork()
          const ids: number[] = []
          for await (const { id } of fork.generate(null, { maxTokens: 12, ignoreEos: true })) {
            ids.push(id)
            if (ids.length === 1) await turns(200)
          }
          fork.dispose()
          return ids
        })
        for (const answer of await Promise.all(answers)) expect(answer).toEqual(expected)
        sequence.dispose()
      })
    },
  )

  test('a prompt larger than everything fails, and harms nobody', async () => {
    await withEngine({ kvMemory: 4 * superblock }, async (engine) => {
      const prompt = someIds(150, 320)
      const options = { policy: 'fp16' } as const
      const expected = await idsOf(model(), prompt, 30, options)
      const before = idsOf(engine, prompt, 30, options)
      const tooLarge = [
        idsOf(engine, someIds(4000, 320), 5, options),
        idsOf(engine, someIds(3500, 320), 5, { policy: 'full' }),
      ]
      const after = idsOf(engine, prompt, 30, options)
      for (const each of tooLarge) await expectRejected(each, outOfMemory)
      expect(await before).toEqual(expected)
      expect(await after).toEqual(expected)
    })
  })

  test.each([
    // 256 pages of 4 KiB, 16 tokens of one of 6 (layer, KV head)s
    ['full', 100, 42 * 16],
    [{ name: 'zipcache', window: 16 }, 1000, 2000],
    ['uniform8', 1900, 2000],
  ] as [PolicySpec, number, number][])(
    'an answer that would outgrow everything ends as at the end of the context: %j',
    async (policy, nPrompt, nLeast) => {
      await withEngine({ kvMemory: 4 * superblock }, async (engine) => {
        const prompt = someIds(nPrompt, 320)
        const options = { policy, maxTokens: 1e9, ignoreEos: true }
        const tokens = engine.generate(prompt, options)
        const { ids } = await collect(tokens)
        expect(tokens.finishReason).toBe('length')
        expect(nPrompt + ids.length).toBeGreaterThanOrEqual(nLeast)
        expect(nPrompt + ids.length).toBeLessThan(model().config.maxPositions)
        expect(await idsOf(model(), prompt, 300, { policy })).toEqual(ids.slice(0, 300))
        // Nor does the next turn of a conversation.
        const sequence = engine.createSequence({ policy })
        await sequence.prefill(prompt)
        expect(await idsOf(sequence, null, 1e9)).toEqual(ids)
        sequence.dispose()
      })
    },
  )
})

describe('reclaim', () => {
  const memory = 4 * 256 * 1024
  const large: Options = { policy: 'fp16', maxTokens: 5, ignoreEos: true }

  /** An engine whose memory a sequence holds that nobody uses, and something that runs. */
  async function withFull(
    reclaim: (idle: Sequence) => boolean,
    body: (engine: Engine) => Promise<void>,
  ): Promise<void> {
    let idle: Sequence | undefined
    const options = { kvMemory: memory, reclaim: () => reclaim(idle as Sequence) }
    await withEngine(options, async (engine) => {
      idle = engine.createSequence({ policy: 'fp16' })
      await idle.prefill(someIds(800, 320))
      const active = engine.generate([5, 6], { maxTokens: 100, ignoreEos: true, policy: 'fp16' })
      await active.next()
      await body(engine)
      await active.return()
      idle.dispose()
    })
  }

  test('makes room for a request that waits, and for a sequence that is restored', async () => {
    const file = join(await mkdtemp(join(tmpdir(), 'zipcache-reclaim-')), 'sequence')
    const saved = model().createSequence({ policy: 'fp16' })
    await saved.prefill(someIds(500, 320))
    await saved.save(file)
    const expected = await idsOf(saved, null, 5)
    saved.dispose()
    const release = (idle: Sequence) => {
      const { isUsable } = idle
      idle.dispose()
      return isUsable
    }
    await withFull(release, async (engine) => {
      await idsOf(engine, someIds(500, 320), 5, large)
    })
    await withFull(release, async (engine) => {
      const restored = await engine.restore(file)
      expect(await idsOf(restored, null, 5)).toEqual(expected)
      restored.dispose()
    })
    await rm(dirname(file), { recursive: true })
  })

  test('leaves a sequence that is restored no memory that a request was promised', async () => {
    const file = join(await mkdtemp(join(tmpdir(), 'zipcache-reclaim-')), 'sequence')
    await withEngine({ kvMemory: memory }, async (engine) => {
      const saved = engine.createSequence({ policy: 'fp16' })
      await saved.prefill(someIds(500, 320))
      await saved.save(file)
      saved.dispose()
      const prompt = someIds(5, 320)
      const options: Options = { policy: 'fp16', maxTokens: 1000, ignoreEos: true }
      const tokens = engine.generate(prompt, options)
      await tokens.next()
      const refused = { code: 'ERR_ZC_BUSY', argument: 'kvMemory' } as const
      await expectRejected(engine.restore(file), refused)
      expect((await collect(tokens)).ids).toHaveLength(999)
      const restored = await engine.restore(file)
      expect(restored.length).toBe(500)
      restored.dispose()
    })
    await rm(dirname(file), { recursive: true })
  })

  test('that throws fails the request that waits, and no other', async () => {
    const wrong = new Error('no')
    const throwing = () => {
      throw wrong
    }
    await withFull(throwing, async (engine) => {
      await expect(idsOf(engine, someIds(500, 320), 5, large)).rejects.toBe(wrong)
      const waiting = idsOf(engine, someIds(500, 320), 5, large)
      await expect(waiting).rejects.toBe(wrong)
      await idsOf(engine, someIds(5, 320), 5, large)
    })
  })

  test('that frees nothing, but says that it did, is not asked for ever', async () => {
    let nAsked = 0
    const lying = () => ++nAsked > 0
    await withFull(lying, async (engine) => {
      const controller = new AbortController()
      const waiting = idsOf(engine, someIds(500, 320), 5, { ...large, signal: controller.signal })
      await turns(20)
      expect(engine.stats().queued).toBe(1)
      controller.abort()
      await expect(waiting).rejects.toBe(controller.signal.reason)
    })
    expect(nAsked).toBeLessThan(100)
  })

  test('that is no function is refused, as is a wrong bound, and nothing stays allocated', async () => {
    const { device } = model()
    await device.sync()
    const before = device.memory.current
    for (const wrong of [{ reclaim: 5 as never }, { prefixMemory: -1 }, { maxBatch: 0 }]) {
      expectRefused(() => createEngine({ model: model(), kvMemory: memory, ...wrong }), {
        code: 'ERR_ZC_ARGUMENT',
        argument: Object.keys(wrong)[0] as string,
      })
    }
    await device.sync()
    expect(device.memory.current).toBe(before)
  })
})

describe('stats', () => {
  test('say what is going on, and count', async () => {
    await withEngine({ maxBatch: 2 }, async (engine) => {
      const { capacity } = engine.kvMemory
      expect(engine.stats()).toMatchObject({
        queued: 0,
        prefilling: 0,
        decoding: 0,
        sequences: 0,
        kvMemory: { used: 0, capacity: 1 << 26 },
        promptTokens: 0,
        generatedTokens: 0,
        steps: 0,
        windowsClosed: 0,
      })
      const sequence = engine.createSequence({ policy: { name: 'zipcache', window: 10 } })
      expect(engine.stats()).toMatchObject({ sequences: 1, decoding: 0 })
      await idsOf(sequence, someIds(25, 320), 32) // 25 compressed at once, 31 in 3 windows and 1
      expect(engine.stats()).toMatchObject({
        promptTokens: 25,
        generatedTokens: 32,
        steps: 31,
        windowsClosed: 3,
        kvMemory: { used: sequence.bytes.resident, capacity },
      })
      await sequence.prefill([5, 6]) // and the last token of the answer
      expect(engine.stats()).toMatchObject({ promptTokens: 28, generatedTokens: 32, steps: 31 })
      expect(engine.stats().stepBytes).toBeGreaterThan(0)
      const fork = sequence.fork()
      expect(engine.stats().sequences).toBe(2)
      sequence.dispose()
      fork.dispose()
      expect(engine.stats()).toMatchObject({ sequences: 0, kvMemory: { used: 0, capacity } })
    })
  })

  test('count a step once for all of its rows', async () => {
    await withEngine({}, async (engine) => {
      const all = Array.from({ length: 8 }, (_, i) =>
        idsOf(engine, someIds(5, 320, i + 1), 41, { policy: 'fp16' }),
      )
      await Promise.all(all)
      const { steps, generatedTokens } = engine.stats()
      expect(generatedTokens).toBe(8 * 41)
      expect(steps).toBeGreaterThanOrEqual(40)
      expect(steps).toBeLessThan(2 * 40)
    })
  })
})

describe('disposing of an engine', () => {
  test('with everything in flight rejects it all and returns all memory', async () => {
    const { device } = model()
    await device.sync()
    const before = device.memory.current
    const engine = createEngine({ model: model(), kvMemory: 1 << 24, maxBatch: 4 })
    const decoding = collect(engine.generate([5, 6], endless))
    const kept = engine.createSequence()
    await kept.prefill(someIds(130, 320))
    const running = [
      decoding,
      ...Array.from({ length: 9 }, (_, i) => idsOf(engine, someIds(3000, 320, i + 1), 50)),
      kept.logits(someIds(500, 320)),
    ]
    const outcomes = running.map((each) => expectRejected(each, disposed))
    await turns(4)
    expect(engine.stats()).toMatchObject({ decoding: 1, prefilling: 3, queued: 7 })
    await engine.dispose()
    await Promise.all(outcomes)
    await expectRejected(kept.prefill([5]), disposed)
    await expectRejected(idsOf(engine, [5], 1), disposed)
    expectRefused(() => engine.createSequence(), disposed)
    await device.sync()
    expect(device.memory.current).toBe(before)
    await engine.dispose()
  })

  test('before it did anything, and while a token waits for its reader', async () => {
    await createEngine({ model: model(), kvMemory: 1 << 24 }).dispose()
    const engine = createEngine({ model: model(), kvMemory: 1 << 24 })
    const tokens = await occupy(engine)
    await turns(5)
    await engine.dispose()
    await expectRejected(tokens.next(), disposed)
  })

  test('leaves nothing of it with its model', async () => {
    const make = async () => {
      const engine = createEngine({ model: model(), kvMemory: 1 << 24 })
      await idsOf(engine, [5, 6], 3)
      await engine.dispose()
      return new WeakRef(engine)
    }
    const gone = await make()
    setFlagsFromString('--expose-gc')
    const collectGarbage = runInNewContext('gc') as () => void
    for (let i = 0; i < 20 && gone.deref(); i++) {
      await turns(2) // what an engine waited for last still knows it
      collectGarbage()
    }
    expect(gone.deref()).toBeUndefined()
  })

  test('by leaving its block', async () => {
    let engine: Engine
    {
      await using own = createEngine({ model: model(), kvMemory: 1 << 24 })
      engine = own
      await idsOf(own, [5, 6], 3)
    }
    expectRefused(() => engine.createSequence(), disposed)
  })

  test('with its model, and not without it', async () => {
    const own = await loadModel(kLlama)
    const first = createEngine({ model: own, kvMemory: 1 << 24 })
    const second = createEngine({ model: own, kvMemory: 1 << 24 })
    const expected = await idsOf(own, [5, 6], 20)
    const running = idsOf(second, [5, 6], 20)
    await first.dispose()
    expect(await running).toEqual(expected)
    expect(await idsOf(own, [5, 6], 20)).toEqual(expected)
    const cut = expectRejected(idsOf(second, [5, 6], 2000), disposed)
    await own.dispose()
    await cut
    expectRefused(() => createEngine({ model: own, kvMemory: 1 << 24 }), disposed)
  })
})

describe('engines over one model', () => {
  test('at once give the same tokens, from memory of their own', async () => {
    const engines = [1, 2].map(() => createEngine({ model: model(), kvMemory: 1 << 24 }))
    const prompt = someIds(120, 320)
    const options = { policy: { name: 'zipcache', window: 12 }, temperature: 1 } as const
    const expected = await idsOf(model(), prompt, 40, options)
    const sequence = engines[0].createSequence()
    await sequence.prefill(prompt)
    expect([engines[0].kvMemory.used > 0, engines[1].kvMemory.used]).toEqual([true, 0])
    const all = [0, 1, 0, 1, 0].map((i) => idsOf(engines[i], prompt, 40, options))
    expect(await Promise.all(all)).toEqual(all.map(() => expected))
    sequence.dispose()
    for (const engine of engines) {
      await expectIdle(engine)
      await engine.dispose()
    }
  })
})

describe('options that are refused', () => {
  test('no model', () => {
    for (const options of [undefined, null, {}, { model: 'models/line-retrieval' }]) {
      expectRefused(() => createEngine(options as never), {
        code: 'ERR_ZC_ARGUMENT',
        argument: 'model',
      })
    }
  })

  const bad: [string, unknown][] = [
    ...[0, -1, 1000, Number.NaN, Number.POSITIVE_INFINITY, '1e9', undefined, null].map(
      (value): [string, unknown] => ['kvMemory', value],
    ),
    ...[0, -1, 1.5, 1025, Number.NaN, '4', null].flatMap((value): [string, unknown][] => [
      ['maxBatch', value === null ? {} : value],
      ['maxPrefills', value === null ? [] : value],
    ]),
    ...[-1, 0.5, 1e7, '4'].map((value): [string, unknown] => ['maxQueue', value]),
    ['batchSize', 5],
    ['kvMemory', 2 ** 60],
    ['prefixMemory', 2 ** 24 + 1],
  ]
  test.each(bad)('%s: %p', async (option, value) => {
    const { device } = model()
    await device.sync()
    const before = device.memory.current
    const create = () => createEngine({ model: model(), kvMemory: 1 << 24, [option]: value })
    expectRefused(create, { code: 'ERR_ZC_ARGUMENT', argument: option })
    await device.sync()
    expect(device.memory.current).toBe(before)
  })

  test('of a sequence', async () => {
    await withEngine({}, async (engine) => {
      for (const options of [{ polcy: 'fp16' }, { saliencyRatio: 0.2 }, { maxTokens: 5 }]) {
        const [argument] = Object.keys(options)
        const fault = { code: 'ERR_ZC_ARGUMENT', argument } as const
        expectRefused(() => engine.createSequence(options as Options), fault)
        expectRefused(() => model().createSequence(options as Options), fault)
        await expectRejected(model().logits([5], options as Options), fault)
        expectRefused(() => model().estimate({ tokens: 5, ...options } as never), fault)
        await expectRejected(engine.openPrefix([5], options as Options), fault)
      }
      expect(engine.stats()).toMatchObject({ sequences: 0 })
    })
  })

  test('of a request leave nothing behind', async () => {
    await withEngine({}, async (engine) => {
      const fault = { code: 'ERR_ZC_ARGUMENT' } as const
      await expectRejected(collect(engine.generate([])), { ...fault, argument: 'prompt' })
      await expectRejected(collect(engine.generate([320])), { ...fault, argument: 'prompt' })
      const wrong = { maxTokens: -1 }
      await expectRejected(collect(engine.generate([5], wrong)), {
        ...fault,
        argument: 'maxTokens',
      })
      const unknown = { tokens: 5 } as Options
      await expectRejected(collect(engine.generate([5], unknown)), { ...fault, argument: 'tokens' })
      const misspelt = { polcy: 'fp16', prefixTokens: 1 } as Options
      await expectRejected(collect(engine.generate([5, 6], misspelt)), {
        ...fault,
        argument: 'polcy',
        message: /expected some of maxTokens, .*seed, .*policy, prefixTokens$/,
      })
      const policy = { policy: 'none' }
      await expectRejected(collect(engine.generate([5], policy)), { ...fault, argument: 'policy' })
      const past = { code: 'ERR_ZC_CONTEXT_LENGTH', argument: 'prompt' } as const
      await expectRejected(collect(engine.generate(new Int32Array(4097).fill(5))), past)
    })
  })
})

describe('a sequence whose logits are NaN', () => {
  // Token 7 has something where all others have nothing, and what reads it overflows.
  const dir = copies.copy(kLlama, {
    tensors: (tensors) => {
      const change = (name: string, make: (values: Float64Array) => void) => {
        const tensor = tensors.get(name)!
        const values = valuesOf(tensor)
        make(values)
        const bytes = new Uint8Array(Float32Array.from(values).buffer)
        const wide = { dtype: 'F32', shape: tensor.shape, bytes }
        tensors.set(name, storedAs(wide, 'BF16'))
      }
      change('model.embed_tokens.weight', (values) => {
        for (let id = 0; id < 320; id++) values[id * 128] = id === 7 ? 1 : 0
      })
      change('model.layers.0.input_layernorm.weight', (values) => {
        values[0] = 3e38
      })
      return tensors
    },
  })
  let broken: Model
  beforeAll(async () => {
    broken = await loadModel(dir)
  })
  afterAll(() => broken.dispose())

  test('fails alone, its pages poison nobody, and its neighbours get their tokens', async () => {
    await using engine = createEngine({ model: broken, kvMemory: 1 << 24 })
    const prompts = [1, 2, 3].map((seed) => someIds(90, 320, seed).map((id) => (id === 7 ? 8 : id)))
    for (const policy of ['fp16', 'zipcache', { name: 'zipcache', window: 12 }] as PolicySpec[]) {
      const options = { policy, temperature: 0 }
      const expected: number[][] = []
      for (const prompt of prompts) expected.push(await idsOf(broken, prompt, 12, options))
      expect(expected.flat()).not.toContain(7)
      const fault = { code: 'ERR_ZC_NUMERIC', message: /^logits: / } as const
      const at = [prompts[0].length - 1, 40, 0]
      const all: Promise<unknown>[] = []
      for (const [i, prompt] of prompts.entries()) {
        const poisoned = prompt.with(at[i], 7)
        all.push(expectRejected(idsOf(engine, poisoned, 12, options), fault))
        all.push(idsOf(engine, prompt, 12, options).then((ids) => expect(ids).toEqual(expected[i])))
      }
      await Promise.all(all)
      // Now in the pages that they left.
      for (const [i, prompt] of prompts.entries()) {
        expect(await idsOf(engine, prompt, 12, options)).toEqual(expected[i])
      }
    }
    await expectIdle(engine)
  })

  test('in the middle of an answer fails there, in a batch', async () => {
    await using engine = createEngine({ model: broken, kvMemory: 1 << 24 })
    const prompt = someIds(30, 320).map((id) => (id === 7 ? 8 : id))
    const options = { policy: { name: 'zipcache', window: 12 }, temperature: 0 } as const
    const expected = await idsOf(broken, prompt, 40, options)
    const sequence = engine.createSequence({ policy: options.policy })
    const neighbour = engine.generate(prompt, { ...options, maxTokens: 40, ignoreEos: true })
    const got = [(await neighbour.next()).value!.id]
    expect(await idsOf(sequence, prompt, 5)).toEqual(expected.slice(0, 5))
    const fault = { code: 'ERR_ZC_NUMERIC' } as const
    await expectRejected(idsOf(sequence, [7], 5), fault)
    for await (const { id } of neighbour) got.push(id)
    expect(got).toEqual(expected)
    sequence.dispose()
    await expectIdle(engine)
  })
})
