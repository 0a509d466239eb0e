import { dominatorsOf, pairOf } from '../../lib/eval/front'
import type { EvalPair, EvalRow } from '../../lib/eval/rows'

const row = (
  policy: string,
  bytes: number,
  value: number,
  more: Partial<EvalRow> = {},
): EvalRow => ({
  ...{ task: 'line-retrieval', facts: { lines: 9 }, policy, spec: 'fp16', questions: 100 },
  ...{ measure: 'hits', value, low: value - 5, high: value + 5, values: {}, tokens: 100 },
  ...{ ratio: 1, paperRatio: null, bytes, peakBytes: bytes, attention: 'packed' },
  ...more,
})
const pair = (a: string, b: string, p: number): EvalPair => ({
  ...{ task: 'line-retrieval', facts: { lines: 9 }, a, b },
  ...{ questions: 100, wins: 9, losses: 1, p },
})

const [small, large, good, other] = [
  row('small', 100, 50),
  row('large', 300, 90),
  row('good', 200, 90),
  row('other', 90, 99, { facts: { lines: 8 } }),
]
const rows = [small, large, good, other]
const pairs = [
  pair('small', 'good', 0.01),
  pair('large', 'good', 0.04),
  pair('small', 'large', 0.001),
]

test('a row is beaten by better ones in no more bytes, beyond chance', () => {
  const best = row('best', 200, 95)
  const all = [...rows, best]
  const more = [...pairs, pair('best', 'good', 0.2), pair('large', 'best', 0.04)]
  expect(dominatorsOf(large, all, more)).toEqual([best])
  // Better, but perhaps by chance.
  expect(dominatorsOf(good, all, more)).toEqual([])
  // Better, but larger.
  expect(dominatorsOf(small, all, more)).toEqual([])
})

test('equal bytes are no more bytes; an equal value is not better', () => {
  const same = row('same', 300, 95)
  expect(dominatorsOf(large, [...rows, same], [pair('same', 'large', 0.01)])).toEqual([same])
  expect(dominatorsOf(large, rows, pairs)).toEqual([])
})

test('of losses the smaller is better', () => {
  const loss = { measure: 'loss' } as const
  const [worse, better] = [row('worse', 2, 9, loss), row('better', 1, 8, loss)]
  expect(dominatorsOf(worse, [worse, better], [pair('worse', 'better', 0)])).toEqual([better])
  expect(dominatorsOf(better, [worse, better], [pair('worse', 'better', 0)])).toEqual([])
})

test('a pair is found in either order, at its own task', () => {
  expect(pairOf(good, small, pairs)).toBe(pairs[0])
  expect(pairOf(small, good, pairs)).toBe(pairs[0])
  expect(pairOf(small, other, [pair('small', 'other', 0)])).toBe(undefined)
})
