/** Aborting, disposing, running out of memory, many callers: what is returned, and what still works. */
import { getEventListeners } from 'node:events'
import { join } from 'node:path'
import { Device, loadModel, type Model, type PolicySpec } from '../../lib/index'
import { expectRefused, expectRejected } from '../support/errors'
import { kFixtures, kTrainedModels, ModelCopies } from './model-copies'
import { collect, idsOf, someIds, useModel } from './running'

const kLlama = join(kFixtures, 'llama')
const copies = new ModelCopies()
afterAll(() => copies.remove())

const disposed = { code: 'ERR_ZC_HANDLE' } as const
const busy = { code: 'ERR_ZC_ARGUMENT', argument: 'sequence', message: /busy/ } as const
const policies: PolicySpec[] = ['full', 'fp16', 'zipcache', 'uniform4']

/** Gives timers and the device's promises a turn. */
const turn = (ms = 0) => new Promise((resolve) => setTimeout(resolve, ms))

/** What a promise rejects with. */
const reasonOf = (promise: Promise<unknown>) =>
  promise.then(
    () => {
      throw new Error('it resolved')
    },
    (reason: unknown) => reason,
  )

/** Memory in use of a model on a device that is the caller's, but for what recorded steps keep. */
function memoryOf(model: Model) {
  const { kvMemory, stepBytes } = model.stats()
  return { caches: kvMemory.used, device: model.device.memory.current - stepBytes }
}

async function settled(model: Model) {
  await model.device.sync()
  return memoryOf(model)
}

describe('aborting', () => {
  // large enough that a prompt takes a while
  const model = useModel(join(kTrainedModels, 'line-retrieval'))
  const prompt = () => someIds(900, model().config.vocabSize)
  const reason = new Error('no longer wanted')

  test.each(policies)('before prefill rejects with the reason: %s', async (policy) => {
    const sequence = model().createSequence({ policy })
    const before = await settled(model())
    const signal = AbortSignal.abort(reason)
    expect(await reasonOf(sequence.prefill(prompt(), { signal }))).toBe(reason)
    expect(await reasonOf(sequence.logits(prompt(), { signal }))).toBe(reason)
    expect(await reasonOf(collect(sequence.generate(prompt(), { signal })))).toBe(reason)
    expect(sequence.length).toBe(0)
    expect(await settled(model())).toEqual(before)
    sequence.dispose()
  })

  test('without a reason of its own rejects with the default one', async () => {
    const signal = AbortSignal.abort()
    expect(await reasonOf(model().logits([5], { signal }))).toBe(signal.reason)
    expect(signal.reason).toMatchObject({ name: 'AbortError' })
  })

  test.each(policies)(
    'during prefill returns its memory, and the sequence goes on: %s',
    async (policy) => {
      const expected = await idsOf(model(), prompt(), 5, { policy })
      const sequence = model().createSequence({ policy })
      const before = await settled(model())
      const table = sequence.bytes.byClass.tables
      const controller = new AbortController()
      const running = reasonOf(sequence.prefill(prompt(), { signal: controller.signal }))
      await turn(5)
      expect(model().device.memory.current).toBeGreaterThan(before.device)
      controller.abort(reason)
      expect(await running).toBe(reason)
      expect([sequence.length, sequence.segments]).toEqual([0, []])
      const after = await settled(model())
      // A page table that has grown stays so.
      expect(after.caches - sequence.bytes.byClass.tables).toBe(before.caches - table)
      expect(after.device).toBe(before.device)
      expect(await idsOf(sequence, prompt(), 5)).toEqual(expected)
      sequence.dispose()
    },
  )

  test.each(policies)('during a later turn leaves the earlier ones: %s', async (policy) => {
    const first = prompt().slice(0, 130)
    const next = prompt().slice(130)
    const run = async (abort: boolean) => {
      const sequence = model().createSequence({ policy })
      await sequence.prefill(first)
      const answer = await idsOf(sequence, null, 4)
      if (abort) {
        const before = await settled(model())
        const state = [sequence.length, sequence.segments, sequence.bytes.byClass.tail]
        const table = sequence.bytes.byClass.tables
        const controller = new AbortController()
        const running = reasonOf(sequence.prefill(next, { signal: controller.signal }))
        await turn(5)
        controller.abort(reason)
        expect(await running).toBe(reason)
        expect([sequence.length, sequence.segments, sequence.bytes.byClass.tail]).toEqual(state)
        const caches = (await settled(model())).caches - sequence.bytes.byClass.tables
        expect(caches).toBe(before.caches - table)
      }
      const all = [...answer, ...(await idsOf(sequence, next, 6))]
      sequence.dispose()
      return all
    }
    expect(await run(true)).toEqual(await run(false))
  })

  test.each(policies)('during decoding, and going on: %s', async (policy) => {
    const ids = prompt().slice(0, 95)
    const expected = await idsOf(model(), ids, 20, { policy })
    const sequence = model().createSequence({ policy })
    const controller = new AbortController()
    const got: number[] = []
    const running = async () => {
      const options = { maxTokens: 20, ignoreEos: true, signal: controller.signal }
      for await (const { id } of sequence.generate(ids, options)) {
        got.push(id)
        if (got.length === 7) controller.abort(reason)
      }
    }
    expect(await reasonOf(running())).toBe(reason)
    expect(got).toEqual(expected.slice(0, 7))
    expect(sequence.finishReason).toBeNull()
    got.push(...(await idsOf(sequence, null, 13)))
    expect(got).toEqual(expected)
    sequence.dispose()
  })

  test('many calls by one signal ends them all, by one listener', async () => {
    const controller = new AbortController()
    const options = { signal: controller.signal, maxTokens: 1000, ignoreEos: true }
    for (let round = 0; round < 2; round++) {
      const sequences = Array.from({ length: 12 }, () => model().createSequence())
      const calls = sequences.map((sequence) =>
        round === 0
          ? sequence.prefill([5, 6], { signal: controller.signal })
          : reasonOf(collect(sequence.generate([5, 6], options))),
      )
      await turn()
      // Node warns of more than ten.
      expect(getEventListeners(controller.signal, 'abort')).toHaveLength(1)
      if (round === 1) controller.abort(reason)
      expect(new Set(await Promise.all(calls))).toEqual(new Set([round === 0 ? undefined : reason]))
      // Node keeps a signal of `AbortSignal.any` for as long as it has one.
      expect(getEventListeners(controller.signal, 'abort')).toHaveLength(0)
      for (const sequence of sequences) sequence.dispose()
    }
  })

  test('between tokens, while nobody asks for one', async () => {
    const sequence = model().createSequence()
    const controller = new AbortController()
    const tokens = sequence.generate([5, 6, 7], { signal: controller.signal, ignoreEos: true })
    await tokens.next()
    controller.abort(reason)
    expect(await reasonOf(tokens.next())).toBe(reason)
    expect((await tokens.next()).done).toBe(true)
    sequence.dispose()
  })

  test('of logits and of model.generate returns everything', async () => {
    const before = await settled(model())
    const controller = new AbortController()
    const logits = reasonOf(model().logits(prompt(), { signal: controller.signal }))
    const tokens = reasonOf(collect(model().generate(prompt(), { signal: controller.signal })))
    await turn(5)
    controller.abort(reason)
    expect([await logits, await tokens]).toEqual([reason, reason])
    expect(await settled(model())).toEqual(before)
  })

  test('of loading', async () => {
    const device = await Device.open('cpu', { threads: 1 })
    const signal = AbortSignal.abort(reason)
    expect(await reasonOf(loadModel(kLlama, { device, signal }))).toBe(reason)
    for (const delay of [0, 1, 3]) {
      const controller = new AbortController()
      const loading = loadModel(kLlama, { device, signal: controller.signal })
      await turn(delay)
      controller.abort(reason)
      // It may have been faster.
      const outcome = await loading.catch((e: unknown) => e)
      if (outcome === reason) continue
      await (outcome as Model).dispose()
    }
    await device.sync()
    expect(device.memory.current).toBe(0)
    await device.dispose()
  })
})

describe('disposing', () => {
  test('of a sequence, twice, returns what it took', async () => {
    const device = await Device.open('cpu', { threads: 2 })
    const model = await loadModel(kLlama, { device })
    const before = await settled(model)
    for (const policy of policies) {
      const sequence = model.createSequence({ policy })
      await idsOf(sequence, someIds(150, 320), 110)
      expect(memoryOf(model).caches).toBeGreaterThan(before.caches)
      sequence.dispose()
      sequence.dispose()
      await sequence.released
      expect(await settled(model)).toEqual(before)
    }
    await model.dispose()
    await model.dispose()
    await device.sync()
    expect(device.memory.current).toBe(0)
    await device.dispose()
  })

  test('of a model disposes of its sequences, and of its own device alone', async () => {
    const device = await Device.open('cpu', { threads: 1 })
    const onShared = await loadModel(kLlama, { device })
    const sequence = onShared.createSequence()
    await sequence.prefill([5, 6, 7])
    await onShared.dispose()
    expectRefused(() => sequence.bytes, disposed)
    expect(device.disposed).toBe(false)
    await device.sync()
    expect(device.memory.current).toBe(0)
    await device.dispose()

    const alone = await loadModel(kLlama)
    await alone.dispose()
    expect(alone.device.disposed).toBe(true)
  })

  test('by leaving a block', async () => {
    const model = await loadModel(kLlama)
    const { used } = model.kvMemory
    const sequence = model.createSequence()
    await sequence.prefill(someIds(20, 320))
    sequence[Symbol.dispose]()
    expect(model.kvMemory.used).toBe(used)
    await model[Symbol.asyncDispose]()
    expectRefused(() => model.createSequence(), disposed)
  })

  test('what is gone says so', async () => {
    const model = await loadModel(kLlama)
    const sequence = model.createSequence()
    await sequence.prefill([5, 6])
    sequence.dispose()
    await expectRejected(sequence.prefill([5]), disposed)
    await expectRejected(sequence.logits([5]), disposed)
    await expectRejected(collect(sequence.generate([5])), disposed)
    await expectRejected(collect(sequence.generate(null)), disposed)
    expectRefused(() => sequence.bytes, disposed)
    await model.dispose()
    expectRefused(() => model.createSequence(), disposed)
    expectRefused(() => model.estimate({ tokens: 5 }), disposed)
    await expectRejected(collect(model.generate([5])), disposed)
    await expectRejected(model.logits([5]), disposed)
  })

  test('of a sequence between two tokens ends its generation', async () => {
    const model = await loadModel(kLlama)
    const before = await settled(model)
    const sequence = model.createSequence()
    const tokens = sequence.generate(someIds(120, 320), { ignoreEos: true })
    await tokens.next()
    await tokens.next()
    sequence.dispose()
    await expectRejected(tokens.next(), disposed)
    expect(await settled(model)).toEqual(before)
    await model.dispose()
  })

  test('of a sequence during a step ends its generation', async () => {
    const model = await loadModel(kLlama)
    const before = await settled(model)
    const sequence = model.createSequence()
    const tokens = sequence.generate([5, 6, 7], { ignoreEos: true })
    await tokens.next()
    const next = tokens.next()
    sequence.dispose()
    await expectRejected(next, disposed)
    await sequence.released
    expect(await settled(model)).toEqual(before)
    await model.dispose()
  })

  test('of a sequence during its prefill harms no other that gets its pages', async () => {
    const model = await loadModel(join(kTrainedModels, 'line-retrieval'))
    const ids = someIds(900, model.config.vocabSize)
    const own = ids.toReversed()
    const expected = await idsOf(model, own, 8)
    for (const delay of [0, 3, 10, 20]) {
      const before = await settled(model)
      const victim = model.createSequence()
      const running = expectRejected(victim.prefill(ids), disposed)
      await turn(delay)
      victim.dispose()
      expect(await idsOf(model, own, 8)).toEqual(expected)
      await running
      await victim.released
      expect(await settled(model)).toEqual(before)
    }
    await model.dispose()
  })

  test('of a model during prefill and decoding', async () => {
    const model = await loadModel(join(kTrainedModels, 'line-retrieval'))
    const prefilling = model.createSequence()
    const decoding = model.createSequence()
    const prefill = expectRejected(prefilling.prefill(someIds(900, 192)), disposed)
    const decode = expectRejected(
      collect(decoding.generate([5, 6, 7], { maxTokens: 5000, ignoreEos: true })),
      disposed,
    )
    await turn(10)
    await model.dispose()
    await prefill
    await decode
  })
})

describe('many callers', () => {
  const model = useModel(kLlama)
  const zip: PolicySpec = { name: 'zipcache', window: 12 }
  const jobs = [1, 2, 3, 4].map((seed) => ({
    prompt: someIds(7 + 31 * seed, 320, seed),
    options: { policy: seed % 2 ? zip : ('fp16' as const), seed, temperature: seed === 4 ? 1 : 0 },
  }))
  const alone = async () => {
    const results: number[][] = []
    for (const { prompt, options } of jobs) results.push(await idsOf(model(), prompt, 40, options))
    return results
  }

  test('sequences at once give what they give alone', async () => {
    const together = jobs.map(({ prompt, options }) => idsOf(model(), prompt, 40, options))
    expect(await Promise.all(together)).toEqual(await alone())
  })

  test('sequences in turns give what they give alone', async () => {
    const expected = await alone()
    const streams = jobs.map(({ prompt, options }) => {
      const { policy, ...sampling } = options
      const sequence = model().createSequence({ policy, seed: options.seed })
      const settings = { ...sampling, maxTokens: 40, ignoreEos: true }
      return { sequence, tokens: sequence.generate(prompt, settings), ids: [] as number[] }
    })
    for (let step = 0; step < 40; step++) {
      for (const { tokens, ids } of step % 2 ? streams : streams.toReversed()) {
        const { value } = await tokens.next()
        ids.push((value as { id: number }).id)
      }
    }
    expect(streams.map(({ ids }) => ids)).toEqual(expected)
    for (const { sequence } of streams) sequence.dispose()
  })

  test('a second call on one sequence is refused, and the first is not disturbed', async () => {
    const prompt = someIds(150, 320)
    const expected = await idsOf(model(), prompt, 6)
    const sequence = model().createSequence()
    const first = sequence.prefill(prompt)
    await expectRejected(sequence.prefill([5]), busy)
    await expectRejected(sequence.logits([5]), busy)
    await expectRejected(collect(sequence.generate([5])), busy)
    await first

    const tokens = sequence.generate(null, { maxTokens: 6, ignoreEos: true })
    const ids = [(await tokens.next()).value as { id: number }]
    await expectRejected(collect(sequence.generate(null)), busy)
    await expectRejected(sequence.prefill([5]), busy)
    for await (const token of tokens) ids.push(token)
    expect(ids.map(({ id }) => id)).toEqual(expected)
    sequence.dispose()
  })

  test('several models share a device', async () => {
    const device = await Device.open('cpu', { threads: 2 })
    const [a, b] = await Promise.all([loadModel(kLlama, { device }), loadModel(kLlama, { device })])
    const [first, second] = await Promise.all([
      idsOf(a, jobs[0].prompt, 20, jobs[0].options),
      idsOf(b, jobs[0].prompt, 20, jobs[0].options),
    ])
    expect(first).toEqual(second)
    await a.dispose()
    expect(await idsOf(b, jobs[0].prompt, 20, jobs[0].options)).toEqual(first)
    await b.dispose()
    await device.dispose()
  })
})

describe('bad prompts', () => {
  const model = useModel(kLlama)
  const fault = { code: 'ERR_ZC_ARGUMENT', argument: 'prompt' } as const

  test.each<[string, unknown]>([
    ['none', []],
    ['an empty typed array', new Int32Array(0)],
    ['a negative id', [5, -1]],
    ['an id past the vocabulary', [320]],
    ['a fraction', [1.5]],
    ['NaN', [Number.NaN]],
    ['infinity', [Number.POSITIVE_INFINITY]],
    ['a numeral', ['5']],
    ['a bigint', [5n]],
    ['undefined', [undefined]],
    ['a hole', new Array(3)],
    ['a number', 5],
    ['an object', {}],
    ['undefined itself', undefined],
    ['a length that is none', { length: 'many' }],
    ['an absurd length', { length: 2 ** 40 }],
    ['the bytes of a text', Buffer.from('line')],
  ])('%s: refused, and the sequence goes on', async (_, prompt) => {
    const sequence = model().createSequence()
    const before = await settled(model())
    await expectRejected(sequence.prefill(prompt as number[]), fault)
    await expectRejected(sequence.logits(prompt as number[]), fault)
    await expectRejected(collect(sequence.generate(prompt as number[])), fault)
    await expectRejected(model().logits(prompt as number[]), fault)
    expect(sequence.length).toBe(0)
    expect(await settled(model())).toEqual(before)
    await sequence.prefill([5, 6])
    sequence.dispose()
  })

  test('nothing to go on from', async () => {
    await expectRejected(collect(model().createSequence().generate(null)), fault)
  })

  test('a text without a tokenizer', async () => {
    expect(model().tokenizer).toBeNull()
    const message = /tokenizer/
    await expectRejected(model().logits('hello'), { ...fault, message })
    await expectRejected(collect(model().generate([5], { stop: 'x' })), {
      code: 'ERR_ZC_ARGUMENT',
      argument: 'stop',
      message,
    })
  })

  test('past the context', async () => {
    const sequence = model().createSequence()
    const before = await settled(model())
    await expectRejected(sequence.prefill(new Int32Array(4097).fill(5)), {
      code: 'ERR_ZC_CONTEXT_LENGTH',
      argument: 'prompt',
      message: /4097.*4096/,
    })
    expect(await settled(model())).toEqual(before)
    await sequence.prefill([5])
    sequence.dispose()
  })

  test.each([1.5, Number.NaN, '1'])('a seed of %p', (seed) => {
    expectRefused(() => model().createSequence({ seed: seed as number }), {
      code: 'ERR_ZC_ARGUMENT',
      argument: 'seed',
    })
  })

  test('a policy that does not exist', async () => {
    const used = model().kvMemory.used
    const unknown = { code: 'ERR_ZC_ARGUMENT', argument: 'policy' } as const
    expectRefused(() => model().createSequence({ policy: 'unheard of' }), unknown)
    await expectRejected(collect(model().generate([5], { policy: 'unheard of' })), unknown)
    await expectRejected(model().logits([5], { policy: 'uniform7' }), { code: 'ERR_ZC_ARGUMENT' })
    expect(model().kvMemory.used).toBe(used)
  })
})

describe('too little memory for caches', () => {
  const outOfMemory = { code: 'ERR_ZC_OUT_OF_MEMORY', argument: 'kvMemory' } as const
  const kMinimum = 1 << 20
  const model = useModel(kLlama, { kvMemory: kMinimum })
  const roomy = useModel(kLlama)

  test('is told, and what fits still runs', async () => {
    expect(model().kvMemory).toEqual({ used: 0, capacity: kMinimum })
    const prompt = someIds(2000, 320)
    for (const policy of ['full', 'fp16'] as const) {
      const sequence = model().createSequence({ policy })
      await expectRejected(sequence.prefill(prompt), outOfMemory)
      expect([sequence.length, model().kvMemory.used]).toEqual([0, sequence.bytes.byClass.tables])
      await sequence.prefill(prompt.slice(0, 500))
      expect(sequence.length).toBe(500)
      sequence.dispose()
    }
    expect(model().kvMemory.used).toBe(0)
  })

  test('holds a compressed prompt that it could not hold in 16 bits', async () => {
    const sequence = model().createSequence({ policy: 'uniform2' })
    await sequence.prefill(someIds(2000, 320))
    expect(sequence.length).toBe(2000)
    sequence.dispose()
  })

  test.each<PolicySpec>(['fp16', { name: 'zipcache', window: 64 }])(
    'in the middle of decoding: another sequence gone, it goes on as if nothing had been: %j',
    async (policy) => {
      const start = someIds(30, 320)
      const model = await loadModel(kLlama, { kvMemory: 2 * kMinimum })
      const hog = model.createSequence({ policy: 'fp16' })
      await hog.prefill(someIds(2560, 320))
      const sequence = model.createSequence({ policy })
      const ids: number[] = []
      const running = async () => {
        const options = { maxTokens: 600, ignoreEos: true }
        for await (const { id } of sequence.generate(start, options)) ids.push(id)
      }
      await expectRejected(running(), outOfMemory)
      expect(ids.length).toBeGreaterThan(5)
      const { used } = model.kvMemory
      await expectRejected(idsOf(sequence, null, 5), outOfMemory)
      expect(model.kvMemory.used).toBe(used)
      hog.dispose()
      ids.push(...(await idsOf(sequence, null, 450 - ids.length)))
      expect(ids).toEqual(await idsOf(roomy(), start, 450, { policy }))
      sequence.dispose()
      expect(model.kvMemory.used).toBe(0)
      await model.dispose()
    },
  )
})
