import {
  classification,
  codeSimilarity,
  count,
  questionF1,
  retrieval,
  rougeL,
} from '../../lib/eval/longbench-scores'

test.each([
  [questionF1, 'The cat.', 'a cat', 1],
  [questionF1, 'the big cat sat', 'cat sat down', 2 / 3], // 2 common of 3 and 3
  [questionF1, 'cat cat', 'cat', 2 / 3],
  [questionF1, '', 'cat', 0],
  [rougeL, 'a b c d', 'a c x d', 3 / 4],
  [rougeL, 'd c b a', 'a b c d', 1 / 4],
  [retrieval, 'Paragraph 12', 'Paragraph 12', 1],
  [retrieval, 'Paragraph 1 or 12', 'Paragraph 12', 1 / 2],
  [retrieval, 'none', 'Paragraph 12', 0],
  [count, '5', '5', 1],
  [count, '5 of 15', '5', 1 / 2],
  [codeSimilarity, '\n# now\nabcd\nx', 'abxd', 3 / 4],
  [codeSimilarity, '```', 'a', 0],
] as const)('%p of %j and %j', (score, prediction, truth, expected) => {
  expect(score(prediction, truth)).toBeCloseTo(expected, 12)
})

test('classification', () => {
  const classes = ['Food', 'Food other', 'Date']
  expect(classification('Food', 'Food', classes)).toBe(1)
  // Naming the longer class names the shorter, which does not count against it.
  expect(classification('Food other', 'Food other', classes)).toBe(1)
  expect(classification('Food or Date', 'Food', classes)).toBe(1 / 2)
  expect(classification('Date', 'Food', classes)).toBe(0)
})
