/**
 * Random calls on sequences of models whose layers differ in what they keep, some of which find no memory, against
 * sequences that had the same turns alone.
 *
 * `ZC_RANDOM_RUNS=300` makes the run long, `ZIPCACHE_TEST_SEED` another one.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { PagePool, TableArena } from '../../lib/cache/index'
import {
  createEngine,
  type Engine,
  type PolicySpec,
  type Sequence,
  ZipCacheError,
} from '../../lib/index'
import { randomNumbers } from '../support/random-data'
import { kFixtures } from './model-copies'
import { idsOf, maxDifference, someIds, useModel } from './running'

const nRuns = Number(process.env.ZC_RANDOM_RUNS ?? 12)
const seed = Number(process.env.ZIPCACHE_TEST_SEED ?? 20260301)
const kVocab = 160
const question = someIds(5, kVocab, 99)
const dir = mkdtempSync(join(tmpdir(), 'zipcache-random-'))
afterAll(() => rmSync(dir, { recursive: true }))

/** What a sequence holds: tokens of each prompt, or how many were generated behind those before. */
type Turn =
  | { readonly ids: readonly number[] }
  | { readonly generated: readonly number[]; readonly isRun: boolean }

interface Subject {
  readonly sequence: Sequence
  readonly turns: Turn[]
}

const op = fc.record({
  kind: fc.constantFrom(
    'prefill',
    'generate',
    'leave',
    'stop',
    'abort',
    'abort answer',
    'fork',
    'save',
    'dispose',
    'create',
    'beside',
  ),
  /** Of which sequence, modulo how many there are. */
  which: fc.nat(20),
  n: fc.integer({ min: 1, max: 30 }),
  seed: fc.nat(1000),
  delay: fc.nat(12),
})
type Op = typeof op extends fc.Arbitrary<infer T> ? T : never

/** The prompt of a call. */
const promptOf = ({ n, seed }: Op) => someIds(n * (seed % 7 === 0 ? 8 : 1), kVocab, seed)

const isFull = (error: unknown) =>
  ['ERR_ZC_OUT_OF_MEMORY', 'ERR_ZC_BUSY'].includes((error as { code?: string }).code ?? '')

async function after(n: number): Promise<void> {
  for (let i = 0; i < n; i++) await new Promise((resolve) => setImmediate(resolve))
}

class World {
  readonly subjects: Subject[] = []
  nSaved = 0

  constructor(
    readonly engine: Engine,
    readonly policy: PolicySpec,
  ) {}

  /** What an answer has left, whose first token came behind `before` tokens. */
  noteAnswer({ sequence, turns }: Subject, before: number): void {
    const generated = sequence.tokens.slice(before)
    const isRun = sequence.length === sequence.tokens.length
    if (generated.length > 0) turns.push({ generated, isRun })
  }

  async apply(call: Op, subject: Subject | undefined): Promise<void> {
    const { kind, n, seed, delay } = call
    const { engine, policy, subjects } = this
    if (kind === 'create' || !subject) {
      subjects.push({ sequence: engine.createSequence({ policy }), turns: [] })
      return
    }
    const { sequence, turns } = subject
    const ids = promptOf(call)
    const before = sequence.tokens.length
    const options = { maxTokens: n, ignoreEos: true }
    if (kind === 'prefill') {
      await sequence.prefill(ids)
      turns.push({ ids })
    } else if (kind === 'generate') {
      await idsOf(sequence, ids, n)
      turns.push({ ids })
      this.noteAnswer(subject, before + ids.length)
    } else if (kind === 'leave') {
      let left = n
      for await (const _ of sequence.generate(ids, { ...options, maxTokens: n + 20 })) {
        if (--left === 0) break
      }
      turns.push({ ids })
      this.noteAnswer(subject, before + ids.length)
    } else if (kind === 'stop') {
      const stopTokens = someIds(20, kVocab, seed + 1)
      await idsOf(sequence, ids, n, { stopTokens })
      turns.push({ ids })
      this.noteAnswer(subject, before + ids.length)
    } else if (kind === 'abort') {
      const controller = new AbortController()
      const running = sequence.prefill(ids, { signal: controller.signal })
      const ended = running.then(
        () => turns.push({ ids }),
        (error) => {
          if (!controller.signal.aborted) throw error
        },
      )
      await Promise.all([ended, after(delay).then(() => controller.abort())])
    } else if (kind === 'abort answer') {
      const controller = new AbortController()
      const running = idsOf(sequence, ids, n, { signal: controller.signal })
      const aborting = after(delay).then(() => controller.abort())
      try {
        await running
      } catch (error) {
        if (!controller.signal.aborted) throw error
      } finally {
        await aborting
      }
      if (sequence.tokens.length > before) {
        turns.push({ ids })
        this.noteAnswer(subject, before + ids.length)
      }
    } else if (kind === 'beside') {
      // A fork of the prompt's end while its answer comes.
      let fork: Sequence | null = null
      const place = {
        nBehind: seed % 2 === 0 ? 0 : Math.floor(ids.length / 2),
        reached: (there: Pick<Sequence, 'fork'>) => {
          try {
            fork = there.fork()
          } catch (error) {
            if (!isFull(error)) throw error
          }
        },
      }
      const done: Turn[] = [{ ids: ids.slice(0, ids.length - place.nBehind) }]
      try {
        for await (const _ of sequence.generate(ids, options, { places: [place] }));
      } finally {
        if (fork) subjects.push({ sequence: fork, turns: [...turns, ...done] })
      }
      turns.push(...done)
      if (place.nBehind > 0) turns.push({ ids: ids.slice(ids.length - place.nBehind) })
      this.noteAnswer(subject, before + ids.length)
    } else if (kind === 'fork') {
      subjects.push({ sequence: sequence.fork(), turns: [...turns] })
    } else if (kind === 'save') {
      const file = join(dir, `${this.nSaved++}.zc`)
      await sequence.save(file)
      const restored = await engine.restore(file)
      rmSync(file)
      subjects.push({ sequence: restored, turns: [...turns] })
    } else {
      subjects.splice(subjects.indexOf(subject), 1)
      sequence.dispose()
    }
  }
}

/** A sequence that had the same turns in an engine of its own; its answers are checked as they come. */
async function replay(
  engine: Engine,
  policy: PolicySpec,
  turns: readonly Turn[],
): Promise<Sequence | null> {
  const sequence = engine.createSequence({ policy })
  for (const [i, turn] of turns.entries()) {
    const next = turns[i + 1]
    if ('ids' in turn) {
      if (next && 'generated' in next) {
        const { generated, isRun } = next
        const n = generated.length
        const ids = turn.ids as number[]
        if (!isRun) expect(await idsOf(sequence, ids, n)).toEqual(generated)
        else {
          // It was run before what came behind it was refused: a stop token, or an abort.
          const fork = sequence.fork()
          const [stop] = (await idsOf(fork, ids, n + 1)).slice(n)
          fork.dispose()
          if (generated.includes(stop as number)) return null
          expect(await idsOf(sequence, ids, n + 1, { stopTokens: [stop as number] })).toEqual(
            generated,
          )
          expect(sequence.length).toBe(sequence.tokens.length)
        }
      } else await sequence.prefill(turn.ids as number[])
    }
  }
  return sequence
}

/** Whether sequences of a policy can be saved: not where rows are kept, nor where heads differ in their tokens. */
const saves = (policy: PolicySpec) =>
  policy !== 'kivi2' && (policy as { saliencyRatio?: unknown }).saliencyRatio !== 'auto'

/** Has a share of what is taken of the cache fail, until the test ends or `mockRestore`. */
function failing(share: number) {
  const next = randomNumbers(1)
  const spies = [
    [PagePool.prototype, 'allocateMany'],
    [TableArena.prototype, 'allocate'],
  ].map(([owner, name]) => {
    const methods = owner as unknown as Record<string, (...args: unknown[]) => unknown>
    const actual = methods[name as string] as (...args: unknown[]) => unknown
    return jest.spyOn(methods, name as string).mockImplementation(function (
      this: unknown,
      ...args
    ) {
      if (next() < share) throw new ZipCacheError('ERR_ZC_OUT_OF_MEMORY', 'no memory this time')
      return actual.apply(this, args)
    })
  })
  return () => {
    for (const spy of spies) spy.mockRestore()
  }
}

afterEach(() => jest.restoreAllMocks())

/** Makes calls at a time; a call on a sequence that another one uses is left out. */
async function runBatch(world: World, batch: readonly Op[]): Promise<void> {
  const busy = new Set<Subject>()
  const calls = batch.map(async (one) => {
    const { kind, which } = one
    if (kind === 'save' && !saves(world.policy)) return
    const subject = world.subjects[which % Math.max(1, world.subjects.length)]
    if (subject && kind !== 'create') {
      if (busy.has(subject) || !subject.sequence.isUsable) return
      busy.add(subject)
    }
    const before = subject?.sequence.tokens.length ?? 0
    try {
      await world.apply(one, subject)
    } catch (error) {
      if (!isFull(error)) throw error
      if (!subject || subject.sequence.tokens.length === before) return
      // Its answer ended early; which of several turns have come nobody says.
      if (kind === 'beside') {
        world.subjects.splice(world.subjects.indexOf(subject), 1)
        subject.sequence.dispose()
        return
      }
      const ids = promptOf(one)
      subject.turns.push({ ids })
      world.noteAnswer(subject, before + ids.length)
    }
  })
  await Promise.all(calls)
}

/** A sequence says next what one says that had the same turns. */
async function check(
  { sequence, turns }: Subject,
  alone: Engine,
  policy: PolicySpec,
  tolerance: number,
) {
  try {
    if (!sequence.isUsable) return // a window could not be compressed
    const expected = await replay(alone, policy, turns)
    if (!expected) return
    expect(sequence.tokens).toEqual(expected.tokens)
    const own = await sequence.logits(question)
    expect(maxDifference(own, await expected.logits(question))).toBeLessThan(tolerance)
    expected.dispose()
  } finally {
    sequence.dispose()
  }
}

const heads = { name: 'zipcache', window: 12, saliencyRatio: 'auto' } as const

describe.each<[string, readonly [PolicySpec, number][]]>([
  [
    'qwen3.5',
    [
      ['full', 1e-3],
      [{ name: 'zipcache', window: 12 }, 0.05],
      ['kivi2', 0.05],
    ],
  ],
  [
    'gemma4',
    [
      ['full', 1e-3],
      ['fp16', 0.05],
      [{ name: 'zipcache', window: 12 }, 0.05],
      [heads, 0.05],
      [{ ...heads, auto: { budgetBytes: 30_000 } }, 0.05],
    ],
  ],
  [
    'gemma4-e',
    [
      ['full', 1e-3],
      [{ name: 'zipcache', window: 12 }, 0.05],
      [{ ...heads, auto: { budgetBytes: 30_000 } }, 0.05],
    ],
  ],
  ['gemma4-moe', [[{ name: 'zipcache', window: 12 }, 0.05]]],
])('%s', (name, policies) => {
  const model = useModel(join(kFixtures, name))

  test.each(policies)(
    'each goes on as if it were alone: %j',
    async (policy, tolerance) => {
      const scenario = fc.record({
        batches: fc.array(fc.array(op, { minLength: 1, maxLength: 4 }), {
          minLength: 3,
          maxLength: 9,
        }),
        nBytes: fc.constantFrom(1 << 20, 1 << 25),
        share: fc.constantFrom(0, 0.02),
      })
      await fc.assert(
        fc.asyncProperty(scenario, async ({ batches, nBytes, share }) => {
          const engine = createEngine({ model: model(), kvMemory: nBytes })
          const alone = createEngine({ model: model(), kvMemory: 1 << 26 })
          const restore = failing(share)
          try {
            const world = new World(engine, policy)
            for (const batch of batches) await runBatch(world, batch)
            restore()
            for (const subject of world.subjects) await check(subject, alone, policy, tolerance)
            expect(engine.kvMemory.used).toBe(0)
          } finally {
            restore()
            await engine.dispose()
            await alone.dispose()
            expect(engine.kvMemory.used).toBe(0)
          }
        }),
        { numRuns: nRuns, seed },
      )
    },
    600_000,
  )
})
