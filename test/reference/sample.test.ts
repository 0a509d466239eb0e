import fc from 'fast-check'
import { toSeed, uniform } from '../../lib/random'
import { type SampleParams, sample } from '../../lib/reference'

const plain: SampleParams = { temperature: 1, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1 }
const greedy = { ...plain, temperature: 0 }

/** Logits of tokens with these probabilities. */
const logitsOf = (...probabilities: number[]) => probabilities.map((p) => Math.log(p) + 2)

/** Which token each of some evenly spaced random numbers picks. */
function picks(logits: number[], params: SampleParams, seen?: number[]) {
  return Array.from(
    { length: 20 },
    (_, i) => sample({ logits, params, seen, u: (i + 0.5) / 20 }).id,
  )
}

/** How often each token is picked, of 20. */
function counts(ids: number[], vocabSize: number) {
  return Array.from({ length: vocabSize }, (_, token) => ids.filter((id) => id === token).length)
}

describe('sample, greedy', () => {
  test('takes the highest, the lowest index among equals', () => {
    expect(sample({ logits: [1, 5, 5, 2], params: greedy, u: 0.99 }).id).toBe(1)
  })

  test('reports the log of the softmax', () => {
    const { id, logprob } = sample({ logits: logitsOf(0.2, 0.5, 0.3), params: greedy, u: 0 })
    expect(id).toBe(1)
    expect(logprob).toBeCloseTo(Math.log(0.5), 12)
  })

  test('divides positive and multiplies negative logits of seen tokens', () => {
    const params = { ...greedy, repetitionPenalty: 2 }
    expect(sample({ logits: [4, 3, -1], params, seen: [1, 0, 0], u: 0 }).id).toBe(1)
    expect(sample({ logits: [-2, -3, -9], params, seen: [1, 0, 0], u: 0 }).id).toBe(1)
    const { logprob } = sample({ logits: [4, 1], params, seen: [1, 0], u: 0 }) // [2, 1]
    expect(logprob).toBeCloseTo(-Math.log(1 + Math.exp(-1)), 12)
  })
})

describe('sample, with a temperature', () => {
  test('shares out [0, 1) by probability in the order of the vocabulary', () => {
    expect(picks(logitsOf(0.25, 0.5, 0.25), plain)).toEqual([
      ...[0, 0, 0, 0, 0, 1, 1, 1, 1, 1],
      ...[1, 1, 1, 1, 1, 2, 2, 2, 2, 2],
    ])
    expect(sample({ logits: logitsOf(0.25, 0.5, 0.25), params: plain, u: 0 }).id).toBe(0)
    expect(sample({ logits: logitsOf(0.25, 0.5, 0.25), params: plain, u: 1 - 2 ** -24 }).id).toBe(2)
  })

  test('the temperature divides the logits', () => {
    // probabilities 1/5, 4/5; temperature 2 takes roots: 1/3, 2/3; temperature 1/2 squares: 1/17,
    // 16/17
    const logits = logitsOf(0.2, 0.8)
    const at = (temperature: number, u: number) =>
      sample({ logits, params: { ...plain, temperature }, u })
    expect([at(2, 0.333).id, at(2, 0.334).id]).toEqual([0, 1])
    expect([at(0.5, 0.0588).id, at(0.5, 0.0589).id]).toEqual([0, 1])
    expect(at(2, 0.9).logprob).toBeCloseTo(Math.log(2 / 3), 12)
    expect(at(1e-310, 0.5)).toEqual({ id: 1, logprob: 0 })
  })

  test('top-k keeps k, equal logits by lower index', () => {
    const logits = logitsOf(0.1, 0.3, 0.3, 0.3)
    expect(counts(picks(logits, { ...plain, topK: 2 }), 4)).toEqual([0, 10, 10, 0])
    expect(counts(picks(logits, { ...plain, topK: 1 }), 4)).toEqual([0, 20, 0, 0])
    expect(picks(logits, { ...plain, topK: 99 })).toEqual(picks(logits, plain))
  })

  test('top-p keeps the smallest set that reaches p', () => {
    const logits = [Math.log(1), Math.log(4), Math.log(2), Math.log(1)] // 1/8, 1/2, 1/4, 1/8
    expect(counts(picks(logits, { ...plain, topP: 0.49 }), 4)).toEqual([0, 20, 0, 0])
    expect(counts(picks(logits, { ...plain, topP: 0.74 }), 4)).toEqual([0, 13, 7, 0])
    expect(counts(picks(logits, { ...plain, topP: 0.8 }), 4)).toEqual([3, 11, 6, 0])
    expect(counts(picks(logits, { ...plain, topP: 0 }), 4)).toEqual([0, 20, 0, 0])
    // of the top 2 alone, 1/2 is already 2/3
    expect(counts(picks(logits, { ...plain, topK: 2, topP: 0.6 }), 4)).toEqual([0, 20, 0, 0])
  })

  test('min-p drops what is small beside the highest', () => {
    const logits = [Math.log(1), Math.log(4), Math.log(2), Math.log(1)]
    expect(counts(picks(logits, { ...plain, minP: 0.26 }), 4)).toEqual([0, 13, 7, 0])
    expect(counts(picks(logits, { ...plain, minP: 1 }), 4)).toEqual([0, 20, 0, 0])
  })

  test('the reported probability is that of the whole vocabulary', () => {
    const { logprob } = sample({
      logits: logitsOf(0.2, 0.5, 0.3),
      params: { ...plain, topK: 1 },
      u: 0,
    })
    expect(logprob).toBeCloseTo(Math.log(0.5), 12)
  })

  test('tokens of logit -infinity are never taken', () => {
    const logits = [Number.NEGATIVE_INFINITY, 0, Number.NEGATIVE_INFINITY]
    expect(counts(picks(logits, plain), 3)).toEqual([0, 20, 0])
    expect(sample({ logits, params: plain, u: 0 })).toEqual({ id: 1, logprob: 0 })
  })
})

test('NaN, +infinity or nothing finite gives id -1', () => {
  const nothing = { id: -1, logprob: Number.NaN }
  for (const params of [plain, greedy]) {
    expect(sample({ logits: [0, Number.NaN], params, u: 0 })).toEqual(nothing)
    expect(sample({ logits: [0, Number.POSITIVE_INFINITY], params, u: 0 })).toEqual(nothing)
    expect(sample({ logits: [Number.NEGATIVE_INFINITY], params, u: 0 })).toEqual(nothing)
    expect(sample({ logits: [], params, u: 0 })).toEqual(nothing)
  }
})

test('draws follow the probabilities', () => {
  const logits = logitsOf(0.1, 0.2, 0.3, 0.4)
  const drawn = new Array<number>(4).fill(0)
  for (let step = 0; step < 4000; step++) {
    drawn[sample({ logits, params: plain, u: uniform(toSeed(1), step) }).id]++
  }
  // standard deviation at most 31
  for (const [token, count] of drawn.entries())
    expect(Math.abs(count - 400 * (token + 1))).toBeLessThan(120)
})

test('the choice is always a token the limits allow', () => {
  fc.assert(
    fc.property(
      fc.array(fc.double({ min: -20, max: 20, noNaN: true }), { minLength: 1, maxLength: 30 }),
      fc.record({
        temperature: fc.double({ min: 0.05, max: 5, noNaN: true }),
        topK: fc.nat(10),
        topP: fc.double({ min: 0, max: 1, noNaN: true }),
        minP: fc.double({ min: 0, max: 1, noNaN: true }),
        repetitionPenalty: fc.constant(1),
      }),
      fc.nat(2 ** 24 - 1),
      (logits, params, step) => {
        const { id, logprob } = sample({ logits, params, u: step / 2 ** 24 })
        const better = logits.filter((x) => x > logits[id]).length
        if (params.topK > 0) expect(better).toBeLessThan(params.topK)
        const share = Math.exp((logits[id] - Math.max(...logits)) / params.temperature)
        expect(share).toBeGreaterThanOrEqual(params.minP * (1 - 1e-9))
        expect(logprob).toBeLessThanOrEqual(0)
      },
    ),
    { seed: 7, numRuns: 300 },
  )
})
