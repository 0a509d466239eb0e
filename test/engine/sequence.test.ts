/** Sequences that fork, and generations that are left and taken up again. */
import { join } from 'node:path'
import {
  createEngine,
  type Engine,
  type GenerateOptions,
  type PolicySpec,
  type Sequence,
} from '../../lib/index'
import { kFixtures } from './model-copies'
import { expectIdle, turns } from './requests'
import { collect, idsOf, someIds, useModel } from './running'

const model = useModel(join(kFixtures, 'llama'))
let engine: Engine
beforeEach(() => {
  engine = createEngine({ model: model(), kvMemory: 1 << 26 })
})
afterEach(async () => {
  await expectIdle(engine)
  await engine.dispose()
})

const window = 18
const policies: PolicySpec[] = [
  'fp16',
  { name: 'zipcache', window },
  { name: 'uniform', bits: 4, window },
]

/** What is sampled depends on all that came before, in the cache and in the context. */
const seed = 5
const sampling: GenerateOptions = { temperature: 1, repetitionPenalty: 1.2, seed }

describe.each(policies)('forks under %j', (policy) => {
  const prompt = someIds(40, 320, 1)
  const next = someIds(200, 320, 2)

  /** A sequence whose tail, where there are windows, holds `nTail` tokens modulo a window. */
  async function open(nTail: number): Promise<Sequence> {
    const sequence = engine.createSequence({ policy, seed })
    await sequence.prefill(prompt) // compressed at once, where anything is
    for (const id of next.slice(0, nTail)) await sequence.prefill([id])
    return sequence
  }

  /** Ways to go on: at once and over the end of a window, after a short turn, after a long one, in steps. */
  const ways: ((sequence: Sequence) => Promise<number[]>)[] = [
    (sequence) => idsOf(sequence, null, window + 3, sampling),
    (sequence) => idsOf(sequence, next.slice(50, 55), window, sampling),
    (sequence) => idsOf(sequence, next.slice(60, 60 + 2 * window), window, sampling),
    async (sequence) => [
      ...(await idsOf(sequence, null, 3, sampling)),
      ...(await idsOf(sequence, [7], window, sampling)),
    ],
  ]

  async function expectedOf(nTail: number): Promise<number[][]> {
    const all: number[][] = []
    for (const way of ways) {
      const sequence = await open(nTail)
      all.push(await way(sequence))
      sequence.dispose()
    }
    return all
  }

  // around pages and around the end of a window
  test.each([0, 1, 15, 16, window - 1, window, window + 1])(
    'with a tail of %i go on as the one they come from, at once and in any way',
    async (nTail) => {
      const expected = await expectedOf(nTail)
      const origin = await open(nTail)
      const child = origin.fork()
      const grandchild = child.fork()
      const sibling = origin.fork()
      const all = [origin, child, grandchild, sibling]
      expect(all.map(({ length }) => length)).toEqual(new Array(4).fill(40 + nTail))
      const results = await Promise.all(all.map((sequence, i) => ways[i](sequence)))
      expect(results).toEqual(expected)
      for (const sequence of all) sequence.dispose()
    },
  )

  test.each([0, 15, window - 1])(
    'with a tail of %i go on when others are gone, one after another',
    async (nTail) => {
      const expected = await expectedOf(nTail)
      for (const first of ['origin', 'fork'] as const) {
        const origin = await open(nTail)
        const fork = origin.fork()
        const [gone, left] = first === 'origin' ? [origin, fork] : [fork, origin]
        const last = left.fork()
        gone.dispose()
        expect(await ways[0](left)).toEqual(expected[0])
        left.dispose()
        expect(await ways[1](last)).toEqual(expected[1])
        last.dispose()
      }
      await expectIdle(engine)
    },
  )

  test('after an answer, with a token that has not been run yet', async () => {
    const run = async (forks: boolean) => {
      const sequence = await open(5)
      const answer = await idsOf(sequence, null, 9, sampling)
      const fork = forks ? sequence.fork() : sequence
      if (forks) sequence.dispose()
      answer.push(...(await idsOf(fork, null, 2 * window, sampling)))
      fork.dispose()
      return answer
    }
    expect(await run(true)).toEqual(await run(false))
  })

  test('at every token of an answer that was left', async () => {
    const whole = await open(11)
    const expected = await idsOf(whole, null, 2 * window, sampling)
    whole.dispose()
    const sequence = await open(11)
    const answer: number[] = []
    for (let at = 0; at < window + 4; at++) {
      for await (const { id } of sequence.generate(null, { ...sampling, ignoreEos: true })) {
        answer.push(id)
        break
      }
      const fork = sequence.fork()
      const rest = await idsOf(fork, null, 6, sampling)
      fork.dispose()
      expect({ at, ids: [...answer, ...rest] }).toEqual({ at, ids: expected.slice(0, at + 7) })
    }
    sequence.dispose()
  })

  test('share what they hold, and return it when the last of them goes', async () => {
    const origin = await open(17)
    const { used } = engine.kvMemory
    const { byClass } = origin.bytes
    const forks = [origin.fork(), origin.fork()]
    expect(engine.kvMemory.used).toBe(used + 2 * byClass.tables)
    origin.dispose()
    forks[0].dispose()
    expect(engine.kvMemory.used).toBe(used)
    expect(forks[1].bytes.byClass).toEqual(byClass)
    forks[1].dispose()
    expect(engine.kvMemory.used).toBe(0)
  })

  test('of an empty sequence', async () => {
    const expected = await idsOf(engine, prompt, window, { policy, ...sampling })
    const origin = engine.createSequence({ policy, seed })
    const fork = origin.fork()
    for (const sequence of [origin, fork]) {
      expect(await idsOf(sequence, prompt, window, sampling)).toEqual(expected)
      sequence.dispose()
    }
  })
})

describe.each([
  'fp16',
  { name: 'zipcache', window: 12 },
  { name: 'zipcache', window: 1 },
  { name: 'uniform', bits: 4, window: 7 },
] as PolicySpec[])('a generation under %j', (policy) => {
  const n = 15 // a window ends among them
  // in the tail at first; compressed at once, where anything is
  describe.each([8, 40])('after a prompt of %i', (promptLength) => {
    const prompt = someIds(promptLength, 320, 4)
    let expected: number[]
    beforeEach(async () => {
      expected = await idsOf(engine, prompt, n, { policy, ...sampling })
    })

    /** Leaves a generation in some way, then takes it up: all tokens, and how many came before. */
    async function resume(leave: (sequence: Sequence) => Promise<number[]>) {
      const sequence = engine.createSequence({ policy, seed })
      const before = await leave(sequence)
      const after = await idsOf(sequence, null, n - before.length, sampling)
      sequence.dispose()
      return [...before, ...after]
    }

    const all = { ...sampling, maxTokens: n, ignoreEos: true }
    const positions = Array.from({ length: n - 1 }, (_, i) => i + 1)

    test('left after any of its tokens goes on as if it had not been', async () => {
      for (const at of positions) {
        const ids = await resume(async (sequence) => {
          const got: number[] = []
          for await (const { id } of sequence.generate(prompt, all)) {
            got.push(id)
            if (got.length === at) break
          }
          return got
        })
        expect({ at, ids }).toEqual({ at, ids: expected })
      }
    })

    test('ended at any of its tokens by maxTokens, likewise', async () => {
      for (const at of positions) {
        const ids = await resume((sequence) => idsOf(sequence, prompt, at, sampling))
        expect({ at, ids }).toEqual({ at, ids: expected })
      }
    })

    test('stopped before any of its tokens, likewise', async () => {
      for (const at of [0, ...positions]) {
        const ids = await resume(async (sequence) => {
          const stop = { ...all, stopTokens: [expected[at]] }
          return (await collect(sequence.generate(prompt, stop))).ids
        })
        expect({ at, ids }).toEqual({ at, ids: expected })
      }
    })

    test('aborted while any of its tokens is awaited, likewise', async () => {
      for (const at of positions) {
        const ids = await resume(async (sequence) => {
          const controller = new AbortController()
          const got: number[] = []
          const tokens = sequence.generate(prompt, { ...all, signal: controller.signal })
          for (let i = 0; i < at; i++) got.push((await tokens.next()).value!.id)
          const last = tokens.next()
          // The step that runs ahead is enqueued, and perhaps the token is there.
          await new Promise((resolve) => setImmediate(resolve))
          controller.abort()
          await last.then(
            ({ value }) => got.push(value!.id),
            (error: unknown) => expect(error).toBe(controller.signal.reason),
          )
          await tokens.return()
          return got
        })
        expect({ at, ids }).toEqual({ at, ids: expected })
      }
    })

    test('aborted while its next token waits for a slow reader, likewise', async () => {
      for (const at of positions) {
        const ids = await resume(async (sequence) => {
          const controller = new AbortController()
          const { signal } = controller
          const got: number[] = []
          const tokens = sequence.generate(prompt, { ...all, signal })
          for (let i = 0; i < at; i++) got.push((await tokens.next()).value!.id)
          await turns(5)
          controller.abort()
          await expect(tokens.next()).rejects.toBe(signal.reason)
          return got
        })
        expect({ at, ids }).toEqual({ at, ids: expected })
      }
    })

    test('left again and again, token by token', async () => {
      const sequence = engine.createSequence({ policy, seed })
      const got: number[] = []
      for (let i = 0; i < n; i++) {
        for await (const { id } of sequence.generate(i === 0 ? prompt : null, all)) {
          got.push(id)
          break
        }
      }
      expect(got).toEqual(expected)
      sequence.dispose()
    })

    test('asked for no tokens, in between', async () => {
      const sequence = engine.createSequence({ policy, seed })
      const got: number[] = []
      for (let i = 0; i < n; i += 3) {
        got.push(...(await idsOf(sequence, i === 0 ? prompt : null, 3, sampling)))
        expect(await idsOf(sequence, null, 0)).toEqual([])
      }
      expect(got).toEqual(expected)
      sequence.dispose()
    })

    test('of as many tokens leaves the next turn the same, however it ended and how fast', async () => {
      const turn = someIds(5, 320, 9)
      const endings: [string, (tokens: ReturnType<Sequence['generate']>) => Promise<unknown>][] = [
        ['left at once', (tokens) => tokens.return()],
        ['left late', (tokens) => turns(20).then(() => tokens.return())],
      ]
      for (const at of [1, 3, 4, 5, 11, 12, 13]) {
        const open = async (limit: number) => {
          const sequence = engine.createSequence({ policy, seed })
          const tokens = sequence.generate(prompt, { ...all, maxTokens: limit })
          for (let i = 0; i < at; i++) await tokens.next()
          return { sequence, tokens }
        }
        const ended = await open(at)
        await ended.tokens.next()
        const nextTurn = await idsOf(ended.sequence, turn, 15, sampling)
        ended.sequence.dispose()
        for (const [ending, leave] of endings) {
          const { sequence, tokens } = await open(n)
          await leave(tokens)
          const ids = await idsOf(sequence, turn, 15, sampling)
          sequence.dispose()
          expect({ at, ending, ids }).toEqual({ at, ending, ids: nextTurn })
        }
      }
    })
  })
})
