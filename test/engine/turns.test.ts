import { join } from 'node:path'
import { loadModel, type Model, type PolicySpec, type Sequence } from '../../lib/index'
import { sentencePieceTokenizer } from '../model/tokenizer-files'
import { kFixtures, kTrainedModels, ModelCopies } from './model-copies'
import { argmaxRows, expectSame, idsOf, maxDifference, someIds, useModel } from './running'

const copies = new ModelCopies()
afterAll(() => copies.remove())

/** Logits of a conversation, one prompt after another. */
async function logitsOfTurns(
  model: Model,
  policy: PolicySpec,
  turns: readonly number[][],
  seed = 0,
): Promise<Float32Array> {
  const sequence = model.createSequence({ policy, seed })
  const parts: Float32Array[] = []
  for (const turn of turns) parts.push(await sequence.logits(turn))
  sequence.dispose()
  return Float32Array.from(parts.flatMap((part) => [...part]))
}

/** Consecutive pieces of these lengths; the last one takes the rest. */
function cut(ids: number[], lengths: readonly number[]): number[][] {
  let at = 0
  return lengths.map((length, i) => {
    const piece = ids.slice(at, i === lengths.length - 1 ? undefined : at + length)
    at += length
    return piece
  })
}

const tokenwise = (ids: number[]) => ids.map((id) => [id])

describe('a conversation in several turns', () => {
  const model = useModel(join(kFixtures, 'llama'))
  const ids = () => someIds(180, model().config.vocabSize)
  const turnLengths = [
    [90, 90],
    [1, 179],
    [179, 1],
    [3, 60, 2, 100, 15],
    [17, 16, 15, 1, 1, 1, 129],
  ]

  test.each(turnLengths.map((lengths) => [lengths]))(
    'of %j tokens is one prompt under full',
    async (lengths) => {
      const whole = await model().logits(ids(), { policy: 'full' })
      const turns = await logitsOfTurns(model(), 'full', cut(ids(), lengths))
      expect(maxDifference(turns, whole)).toBeLessThan(1e-4)
    },
  )

  test('of single tokens is one prompt under full', async () => {
    const whole = await model().logits(ids(), { policy: 'full' })
    const turns = await logitsOfTurns(model(), 'full', tokenwise(ids()))
    expect(maxDifference(turns, whole)).toBeLessThan(1e-4)
  })

  // float16 rounds K and V by 5e-4 at most, 8 bits by a 510th of a channel's or token's range
  test.each<[string, PolicySpec, number]>([
    ['fp16', 'fp16', 0.01],
    ['uniform8', 'uniform8', 0.1],
    ['uniform8, small windows', { name: 'uniform', bits: 8, window: 13 }, 0.1],
    ['zipcache 8/8', { name: 'zipcache', highBits: 8, lowBits: 8, window: 13 }, 0.1],
  ])('under %s stays close to full', async (_, policy, tolerance) => {
    const whole = await model().logits(ids(), { policy: 'full' })
    for (const lengths of turnLengths) {
      const turns = await logitsOfTurns(model(), policy, cut(ids(), lengths))
      expect(maxDifference(turns, whole)).toBeLessThan(tolerance)
    }
  })

  test('the fewer the bits, the further from full', async () => {
    const whole = await model().logits(ids(), { policy: 'full' })
    const distanceOf = async (policy: PolicySpec) =>
      maxDifference(await logitsOfTurns(model(), policy, cut(ids(), [120, 60])), whole)
    const distances = []
    for (const policy of ['uniform8', 'uniform4', 'uniform3', 'uniform2']) {
      distances.push(await distanceOf(policy))
    }
    expect(distances).toEqual(distances.toSorted((a, b) => a - b))
    expect(distances[3]).toBeGreaterThan(10 * distances[0])
    const zipcache = await distanceOf('zipcache')
    expect(zipcache).toBeLessThan(distances[3])
  })

  test('an answer is part of what the next turn sees', async () => {
    const sequence = model().createSequence({ policy: 'full' })
    const answer = await idsOf(sequence, ids(), 5)
    expect(sequence.length).toBe(180 + 4) // the fifth has not been through the model yet
    const next = await sequence.logits([7, 8])
    expect(sequence.length).toBe(180 + 7)
    const whole = await model().logits([...ids(), ...answer, 7, 8], { policy: 'full' })
    expect(maxDifference(next, whole.subarray(-next.length))).toBeLessThan(1e-4)
    sequence.dispose()
  })

  test('a window larger than everything is fp16', async () => {
    const never: PolicySpec = { name: 'zipcache', window: 65536 }
    const turns = cut(ids(), [60, 100, 20])
    expectSame(
      await logitsOfTurns(model(), never, turns),
      await logitsOfTurns(model(), 'fp16', turns),
    )
    expect(await idsOf(model(), ids(), 30, { policy: never })).toEqual(
      await idsOf(model(), ids(), 30, { policy: 'fp16' }),
    )
  })

  test('the seed of the probes decides what is kept at high precision, and nothing else does', async () => {
    const turns = cut(ids(), [120, 60])
    const first = await logitsOfTurns(model(), 'zipcache', turns, 1)
    expectSame(await logitsOfTurns(model(), 'zipcache', turns, 1), first)
    expect(
      maxDifference(await logitsOfTurns(model(), 'zipcache', turns, 2), first),
    ).toBeGreaterThan(0)
    const uniform = await logitsOfTurns(model(), 'uniform4', turns, 1)
    expectSame(await logitsOfTurns(model(), 'uniform4', turns, 2), uniform)
  })

  test('the number of threads changes nothing', async () => {
    const turns = cut(ids(), [120, 60])
    const policy: PolicySpec = { name: 'zipcache', window: 30 }
    const expected = await logitsOfTurns(model(), policy, turns)
    for (const threads of [1, 3]) {
      const other = await loadModel(join(kFixtures, 'llama'), { threads })
      expectSame(await logitsOfTurns(other, policy, turns), expected)
      await other.dispose()
    }
  })
})

describe('a window', () => {
  const model = useModel(join(kFixtures, 'llama'))
  const ids = () => someIds(120, model().config.vocabSize)

  /** Group starts and sizes: segments of one compression share their start. */
  function groupsOf(sequence: Sequence): [start: number, nTokens: number][] {
    const groups = new Map<number, number>()
    for (const { start, nTokens } of sequence.segments) {
      groups.set(start, (groups.get(start) ?? 0) + nTokens)
    }
    return [...groups]
  }

  async function afterTurns(policy: PolicySpec, lengths: number[]) {
    const sequence = model().createSequence({ policy })
    for (const turn of cut(
      someIds(
        lengths.reduce((a, b) => a + b),
        320,
      ),
      lengths,
    )) {
      await sequence.prefill(turn)
    }
    const groups = groupsOf(sequence)
    const { length } = sequence
    sequence.dispose()
    return { groups, length }
  }

  const w16: PolicySpec = { name: 'zipcache', window: 16 }
  const ones = (n: number) => new Array<number>(n).fill(1)

  test.each<[string, number[], [number, number][]]>([
    ['stays open one token short of it', ones(15), []],
    ['closes at exactly its size', ones(16), [[0, 16]]],
    ['opens again after it', ones(31), [[0, 16]]],
    [
      'closes again and again',
      ones(50),
      [
        [0, 16],
        [16, 16],
        [32, 16],
      ],
    ],
    ['a shorter prompt stays in the tail', [15], []],
    ['a prompt of its size is compressed at once', [16], [[0, 16]]],
    ['so is a longer one, all of it', [100], [[0, 100]]],
    ['a short prompt and decoded tokens close one', [10, ...ones(6)], [[0, 16]]],
    ['two short prompts stay', [10, 5], []],
    ['two short prompts that fill it are compressed together', [10, 6], [[0, 16]]],
    ['the tail is compressed with the next long prompt', [10, ...ones(2), 50], [[0, 62]]],
    [
      'each long prompt is a group of its own',
      [40, 40],
      [
        [0, 40],
        [40, 40],
      ],
    ],
    [
      'windows between prompts',
      [40, ...ones(17), 15],
      [
        [0, 40],
        [40, 16],
        [56, 16],
      ],
    ],
  ])('%s', async (_, lengths, groups) => {
    const after = await afterTurns(w16, lengths)
    expect(after.groups).toEqual(groups)
    expect(after.length).toBe(lengths.reduce((a, b) => a + b))
  })

  test('of one token compresses every token at once', async () => {
    const each: PolicySpec = { name: 'zipcache', window: 1 }
    expect((await afterTurns(each, ones(4))).groups).toEqual([
      [0, 1],
      [1, 1],
      [2, 1],
      [3, 1],
    ])
    expect((await afterTurns(each, [5, 1, 2])).groups).toEqual([
      [0, 5],
      [5, 1],
      [6, 2],
    ])
  })

  test('closes in the middle of a generation', async () => {
    const sequence = model().createSequence({ policy: w16 })
    await idsOf(sequence, ids().slice(0, 10), 30) // 10 + 29 tokens have been through the model
    expect(groupsOf(sequence)).toEqual([
      [0, 16],
      [16, 16],
    ])
    expect(sequence.length).toBe(39)
    sequence.dispose()
  })

  test('has its segments listed with class and formats', async () => {
    const sequence = model().createSequence({
      policy: { name: 'zipcache', window: 20, keyBits: { low: 3 }, valueBits: { high: 8 } },
    })
    await sequence.prefill(ids().slice(0, 30))
    for (const id of ids().slice(0, 20)) await sequence.prefill([id])
    expect(sequence.segments).toEqual([
      { precision: 'high', k: 'u4', v: 'u8', nTokens: 18, start: 0 },
      { precision: 'low', k: 'u3', v: 'u2', nTokens: 12, start: 0 },
      { precision: 'high', k: 'u4', v: 'u8', nTokens: 12, start: 30 },
      { precision: 'low', k: 'u3', v: 'u2', nTokens: 8, start: 30 },
    ])
    sequence.dispose()
  })

  test('of uniform has one segment, and full and fp16 have none', async () => {
    for (const [policy, expected] of [
      ['uniform3', [{ precision: 'high', k: 'u3', v: 'u3', nTokens: 120, start: 0 }]],
      ['full', []],
      ['fp16', []],
    ] as const) {
      const sequence = model().createSequence({ policy })
      await sequence.prefill(ids())
      expect(sequence.segments).toEqual(expected)
      expect(sequence.policy.name).toBe(policy)
      sequence.dispose()
    }
  })
})

describe('a conversation in texts', () => {
  const files = { 'tokenizer.json': JSON.stringify(sentencePieceTokenizer()) }
  const model = useModel(copies.copy(join(kFixtures, 'llama'), { files }))
  const plain = (text: string) => model().tokenizer!.encode(text, { addSpecialTokens: false })

  test.each(['full', 'zipcache', 'h2o'])('begins once, under %s', async (policy) => {
    const sequence = model().createSequence({ policy })
    await sequence.prefill('ab')
    await sequence.prefill('the')
    await sequence.logits('a b')
    const said = [1, ...plain('ab'), ...plain('the'), ...plain('a b')]
    expect(sequence.tokens).toEqual(said)
    const fork = sequence.fork()
    const answer = await idsOf(fork, 'b', 3)
    expect(fork.tokens).toEqual([...said, ...plain('b'), ...answer])
    await fork.prefill('a')
    expect(fork.tokens).toEqual([...said, ...plain('b'), ...answer, ...plain('a')])
    for (const one of [sequence, fork]) one.dispose()
  })
})

describe('a model with a sliding window of 64', () => {
  const dir = copies.copy(join(kFixtures, 'mistral'), { config: { sliding_window: 64 } })
  const model = useModel(dir)
  const unlimited = useModel(join(kFixtures, 'mistral'))
  const ids = () => someIds(200, model().config.vocabSize)
  const width = () => model().config.vocabSize

  test('sees the same whether tokens come together or one by one', async () => {
    const whole = await model().logits(ids(), { policy: 'full' })
    const steps = await logitsOfTurns(model(), 'full', tokenwise(ids()))
    expect(maxDifference(steps, whole)).toBeLessThan(1e-4)
    const turns = await logitsOfTurns(model(), 'full', cut(ids(), [70, 50, 80]))
    expect(maxDifference(turns, whole)).toBeLessThan(1e-4)
  })

  test('sees what a model without one sees for 64 tokens, and then something else', async () => {
    const own = await model().logits(ids(), { policy: 'full' })
    const other = await unlimited().logits(ids(), { policy: 'full' })
    const same = 64 * width()
    expect(maxDifference(own.subarray(0, same), other.subarray(0, same))).toBeLessThan(1e-5)
    expect(maxDifference(own.subarray(same), other.subarray(same))).toBeGreaterThan(0.1)
  })

  test('forgets what has left the window of every layer', async () => {
    // three layers reach 3 x 63 tokens back
    const changed = ids()
    changed[0] = changed[0] === 5 ? 6 : 5
    const own = (await model().logits(ids(), { policy: 'full' })).subarray(190 * width())
    const other = (await model().logits(changed, { policy: 'full' })).subarray(190 * width())
    expect(maxDifference(own, other)).toBe(0)
  })

  test('sees packed tokens by their positions', async () => {
    const whole = await model().logits(ids(), { policy: 'full' })
    const without = await unlimited().logits(ids(), { policy: 'full' })
    for (const policy of [
      { name: 'uniform', bits: 8, window: 20 },
      { name: 'zipcache', highBits: 8, lowBits: 8, window: 20 },
    ] as const) {
      const turns = await logitsOfTurns(model(), policy, [
        ids().slice(0, 100),
        ...tokenwise(ids().slice(100, 150)),
        ids().slice(150),
      ])
      expect(maxDifference(turns, whole)).toBeLessThan(0.1)
      expect(maxDifference(turns, without)).toBeGreaterThan(0.5)
    }
  })

  test('decodes under zipcache as under full, most of the time', async () => {
    const [own, full] = [
      await logitsOfTurns(model(), 'zipcache', cut(ids(), [150, 50])),
      await logitsOfTurns(model(), 'full', cut(ids(), [150, 50])),
    ]
    const [a, b] = [argmaxRows(own, width()), argmaxRows(full, width())]
    expect(a.slice(0, 150)).toEqual(b.slice(0, 150))
    expect(a.filter((id, i) => id === b[i]).length).toBeGreaterThan(170)
  })
})

test.each(['f32', 'bf16'] as const)(
  'a trained model reads in turns what it reads at once, in %s',
  async (dtype) => {
    const model = await loadModel(join(kTrainedModels, 'line-retrieval'), { dtype })
    const ids = someIds(160, model.config.vocabSize)
    const whole = await model.logits(ids, { policy: 'full' })
    const turns = await logitsOfTurns(model, 'full', cut(ids, [30, 100, 30]))
    // In bf16 activations are rounded to bfloat16 and attention to float16: other sums move some by a step.
    expect(maxDifference(turns, whole)).toBeLessThan(dtype === 'f32' ? 2e-4 : 0.2)
    await model.dispose()
  },
)
