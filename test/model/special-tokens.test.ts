import { join } from 'node:path'
import { specialTokensOf } from '../../lib/model/special-tokens'
import { loadTokenizer, type ModelTokenizer } from '../../lib/model/tokenizer'
import { kTrainedModels } from '../engine/model-copies'

test('special tokens and punctuation, and nothing else, are found', async () => {
  const tokenizer = (await loadTokenizer(join(kTrainedModels, 'line-retrieval'))) as ModelTokenizer
  const isSpecial = specialTokensOf(tokenizer, 320)()
  expect(isSpecial).toHaveLength(320)
  const idOf = (token: string) => tokenizer.tokenId(token) as number
  for (const token of ['<s>', '\n', ':', '<', '>', '.', ',', '?', '-']) {
    expect([token, isSpecial[idOf(token)]]).toEqual([token, 1])
  }
  for (const token of ['line', 'torpid', 'kid', '5', 'REGISTER_CONTENT', 'the']) {
    expect([token, isSpecial[idOf(token)]]).toEqual([token, 0])
  }
})

test.each([
  [' ', 0],
  ['\n\n', 1],
  [' ,', 1],
  ['"},', 1],
  ['a.', 0],
  ['№', 1],
  ['\uFFFD', 0],
  ['', 0],
])('%j: %i', (text, expected) => {
  const tokenizer = { specialIds: new Set([7]), decode: () => text } as unknown as ModelTokenizer
  expect([...specialTokensOf(tokenizer, 8)()]).toEqual([...new Array<number>(7).fill(expected), 1])
})
