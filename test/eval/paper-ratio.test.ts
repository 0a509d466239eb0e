import { granularityRatio, mixedRatio } from '../../lib/eval/paper-ratio'

/** As the paper prints them. */
const printed = (ratio: number, decimals = 2) => ratio.toFixed(decimals)

test('Table 1: 4 bits, l = 4096', () => {
  const tokens = 4096
  expect(printed(granularityRatio('group', 4, { tokens }), 1)).toBe('3.2')
  expect(printed(granularityRatio('token', 4, { tokens }))).toBe('3.99')
  expect(printed(granularityRatio('channel-token', 4, { tokens }))).toBe('4.00')
  expect(printed(granularityRatio('channel-cst', 4, { tokens }))).toBe('4.00')
})

test.each([
  ['Tables 3 and A, GSM8k', 840, 0.6, '4.98'],
  ['Table 3, LLaMA3-8B', 840, 0.7, '4.69'],
  ['Table 4, HumanEval, Mistral-7B', 120, 0.6, '4.94'],
  ['Table 4, HumanEval, the others', 120, 0.8, '4.39'],
  ['Table B, 200 lines', 3072, 0.8, '4.43'],
])('%s', (_, tokens, r, ratio) => {
  expect(printed(mixedRatio({ r }, { tokens }))).toBe(ratio)
})

test('parameters of one sequence weigh more, and 16 bits of all would be below 1', () => {
  const tokens = 840
  expect(mixedRatio({ r: 0.6 }, { tokens, batch: 1, width: 1024 })).toBeCloseTo(4.894, 3)
  expect(mixedRatio({ r: 0.6, high: 16, low: 16 }, { tokens })).toBeLessThan(1)
})
