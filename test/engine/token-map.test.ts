/** How each token is kept, as `Sequence.tokenMap` tells it. */
import { join } from 'node:path'
import { SaliencyRecord } from '../../lib/engine/saliency-record'
import { generateLineRetrieval } from '../../lib/index'
import type { Tensor } from '../../lib/ops/index'
import { useModel } from './running'

const kLineRetrieval = join(__dirname, '..', '..', 'models', 'line-retrieval')
const model = useModel(kLineRetrieval, { threads: 1 })
const { text } = generateLineRetrieval({ lines: 12, seed: 1 })
const nHeads = 6 // 3 layers, 2 KV heads

const mean = (values: ArrayLike<number>) =>
  Array.from(values).reduce((sum, value) => sum + value, 0) / values.length

test('zipcache: a salient token has 4 bits, another 2, one of the tail 16', async () => {
  using sequence = model().createSequence({ policy: 'zipcache', recordSaliency: true })
  await sequence.prefill(text)
  for await (const _ of sequence.generate(null, { maxTokens: 31, ignoreEos: true }));
  const { ids, tailStart, bits, salientShare, scores } = await sequence.tokenMap()
  const nPrompt = tailStart
  expect(ids).toEqual(sequence.tokens.slice(0, sequence.length))
  expect(ids.length).toBe(nPrompt + 30)

  const counts = new Array(nPrompt).fill(0)
  for (const positions of (await sequence.salientTokens()).flat()) {
    for (const position of positions) counts[position]++
  }
  const compressed = { share: salientShare.subarray(0, nPrompt), bits: bits.subarray(0, nPrompt) }
  expect(Array.from(compressed.share)).toEqual(counts.map((n) => Math.fround(n / nHeads)))
  expect(mean(compressed.share)).toBeCloseTo(0.6, 2)
  compressed.bits.forEach((own, i) => {
    expect(own).toBeCloseTo(2 + 2 * (compressed.share[i] as number), 6)
  })
  expect(Array.from(bits.subarray(nPrompt))).toEqual(new Array(30).fill(16))
  expect(Array.from(salientShare.subarray(nPrompt)).every(Number.isNaN)).toBe(true)
  expect(Array.from(scores.subarray(nPrompt)).every(Number.isNaN)).toBe(true)
  expect(Math.min(...scores.subarray(0, nPrompt))).toBeGreaterThanOrEqual(0)
  // What all heads keep scores above what none keeps.
  const scoresOf = (share: number) =>
    Array.from(scores.subarray(0, nPrompt)).filter((_, i) => counts[i] === share * nHeads)
  expect(mean(scoresOf(1))).toBeGreaterThan(mean(scoresOf(0)))
})

test('scores of windows are recorded, also in forks; the tokens are the same without', async () => {
  using sequence = model().createSequence({ policy: 'zipcache', recordSaliency: true })
  using plain = model().createSequence({ policy: 'zipcache' })
  const generated: number[][] = []
  for (const own of [sequence, plain]) {
    const ids: number[] = []
    for await (const { id } of own.generate(text, { maxTokens: 120, ignoreEos: true })) ids.push(id)
    generated.push(ids)
  }
  expect(generated[0]).toEqual(generated[1])
  using fork = sequence.fork()
  const maps = [await sequence.tokenMap(), await fork.tokenMap()]
  expect(maps[0]).toEqual(maps[1])
  const { tailStart, scores } = maps[0]!
  expect(tailStart).toBe(sequence.tokens.length - 20) // a window of 100 was closed
  expect(Array.from(scores.subarray(0, tailStart)).some(Number.isNaN)).toBe(false)
  const { scores: none } = await plain.tokenMap()
  expect(Array.from(none).every(Number.isNaN)).toBe(true)
})

test('scores of compressions that came to nothing, or are under way, are not told', async () => {
  const record = new SaliencyRecord()
  const compress = (start: number, n: number, score: number) => {
    const read = async () => new Float32Array(n).fill(score)
    record.begin(start, n)({ read } as Tensor<'f32'>)
  }
  compress(0, 40, 1) // given up
  compress(0, 20, 2)
  compress(20, 30, 3) // under way
  const told = [...new Array(20).fill(2), ...new Array(5).fill(Number.NaN)]
  expect(Array.from(await record.means(25, 20))).toEqual(told)
})

test('a map can be had in the middle of a generation, whose tokens it does not change', async () => {
  using alone = model().createSequence({ policy: 'zipcache' })
  using watched = model().createSequence({ policy: 'zipcache', recordSaliency: true })
  const expected: number[] = []
  const options = { maxTokens: 110, ignoreEos: true }
  for await (const { id } of alone.generate(text, options)) expected.push(id)
  const ids: number[] = []
  for await (const { id } of watched.generate(text, options)) {
    ids.push(id)
    if (ids.length % 10 !== 1) continue
    const map = await watched.tokenMap()
    const known = [...model().tokenizer!.encode(text), ...ids]
    // One token may have run ahead.
    expect(map.ids.slice(0, known.length)).toEqual(known.slice(0, map.ids.length))
    expect(map.ids.length).toBeGreaterThanOrEqual(known.length - 1)
    expect(map.bits.length).toBe(map.ids.length)
  }
  expect(ids).toEqual(expected)
})

test('one class of tokens has the same bits everywhere; kept rows are not told apart', async () => {
  const bitsOf = async (policy: string) => {
    using sequence = model().createSequence({ policy })
    await sequence.prefill(text)
    const { bits, salientShare } = await sequence.tokenMap()
    expect(Array.from(salientShare).every(Number.isNaN)).toBe(true)
    return new Set(bits)
  }
  expect(await bitsOf('uniform4')).toEqual(new Set([4]))
  expect(await bitsOf('fp16')).toEqual(new Set([16]))
  expect(await bitsOf('full')).toEqual(new Set([32]))
  expect(await bitsOf('h2o')).toEqual(new Set([Number.NaN]))
})

test('where r is chosen head by head, the counts of all heads are the map’s', async () => {
  using sequence = model().createSequence({ policy: { name: 'zipcache', saliencyRatio: 'auto' } })
  await sequence.prefill(text)
  const positions = (await sequence.salientTokens()).flat()
  const { salientShare, tailStart } = await sequence.tokenMap()
  const total = positions.reduce((sum, { length }) => sum + length, 0)
  expect(mean(salientShare.subarray(0, tailStart)) * tailStart * nHeads).toBeCloseTo(total, 3)
})
