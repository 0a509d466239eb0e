import { join } from 'node:path'
import fc from 'fast-check'
import { biasOf, inspectSaliency } from '../../lib/eval/inspect'
import { generateLineRetrieval } from '../../lib/eval/line-retrieval-prompt'
import { kTrainedModels } from '../engine/model-copies'
import { useModel } from '../engine/running'

const model = useModel(join(kTrainedModels, 'line-retrieval'))

const promptOf = (lines: number) =>
  model().tokenizer?.encode(generateLineRetrieval({ lines, seed: 1 }).text, {
    addSpecialTokens: false,
  }) as number[]

describe('bias', () => {
  test.each([
    ['late tokens', [0, 0, 1, 1], 1],
    ['early tokens', [1, 1, 0, 0], -1],
    // Of the pairs (1, 0), (1, 2), (3, 0), (3, 2) three are higher and one is lower.
    ['by hand', [0, 1, 0, 1], 0.5],
    ['all', [1, 1, 1], 0],
    ['none', [0, 0, 0], 0],
    ['halves of all', [0.5, 0.5, 0.5], 0],
  ])('%s', (_, salient, expected) => {
    expect(biasOf(salient, (i) => i)).toBeCloseTo(expected, 12)
  })

  test('ties count for neither', () => {
    expect(biasOf([1, 0, 1, 0], () => 7)).toBe(0)
    expect(biasOf([1, 0, 0], (i) => [1, 1, 0][i] as number)).toBeCloseTo(0.5, 12)
  })

  test('is the difference of the two probabilities, counted pair by pair', () => {
    const token = fc.tuple(fc.boolean(), fc.integer({ min: 0, max: 4 }))
    fc.assert(
      fc.property(fc.array(token, { minLength: 2, maxLength: 30 }), (tokens) => {
        let [higher, lower, pairs] = [0, 0, 0]
        for (const [a, x] of tokens) {
          for (const [b, y] of tokens) {
            if (!a || b) continue
            pairs++
            if (x > y) higher++
            if (x < y) lower++
          }
        }
        const salient = tokens.map(([isSalient]) => Number(isSalient))
        const bias = biasOf(salient, (i) => (tokens[i] as [boolean, number])[1])
        expect(bias).toBeCloseTo(pairs === 0 ? 0 : (higher - lower) / pairs, 10)
      }),
    )
  })
})

describe('a prompt', () => {
  const classes = { number: /< [\d ]+ >/, key: /line \S+ - \S+/, missing: /zebra zebra/ }

  test('shares of positions, kinds and content are those of the salient tokens', async () => {
    const ids = promptOf(30)
    const report = await inspectSaliency({
      model: model(),
      ids,
      policy: 'zipcache',
      bins: 7,
      classes,
    })
    expect(report).toMatchObject({ tokens: ids.length, compressed: ids.length, policy: 'zipcache' })
    const sequence = model().createSequence({ policy: 'zipcache', seed: 0 })
    await sequence.prefill(ids)
    const positions = await sequence.salientTokens()
    sequence.dispose()
    const n = ids.length
    const nSalient = n - Math.floor(0.4 * n + 1e-9)
    for (const [layer, heads] of report.layers.entries()) {
      for (const [head, shares] of heads.entries()) {
        const own = Array.from(positions[layer]?.[head] ?? [])
        expect(own).toHaveLength(nSalient)
        expect(own).toEqual([...own].sort((a, b) => a - b))
        expect(shares.salient).toBeCloseTo(nSalient / n, 12)
        for (const [bin, share] of shares.byPosition.entries()) {
          const inBin = ids.map((_, i) => i).filter((i) => Math.floor((7 * i) / n) === bin)
          expect(share).toBeCloseTo(inBin.filter((i) => own.includes(i)).length / inBin.length, 12)
        }
      }
    }
    // Every token belongs to one kind: their shares add up to that of all.
    const sum = Object.entries(report.tokenClasses).reduce(
      (total, [name, count]) => total + count * (report.all.byTokenClass[name] as number),
      0,
    )
    expect(sum / n).toBeCloseTo(report.all.salient, 12)
    expect(Object.keys(report.tokenClasses).sort()).toEqual(
      ['line break', 'number', 'punctuation', 'special', 'word'].sort(),
    )
    expect(report.tokenClasses.number).toBe(30 * 5)
    expect(report.contentClasses).toEqual({ number: 30 * 7, key: 31 * 4, missing: 0 })
    expect(report.all.byContentClass.missing).toBeUndefined()
    expect(report.text.map(({ text }) => text).join('')).toBe(model().tokenizer?.decode(ids))
    const shares = report.text.reduce((total, { share }) => total + share, 0)
    expect(shares / n).toBeCloseTo(report.all.salient, 12)
  })

  test('a later window counts, the tail does not', async () => {
    const sequence = model().createSequence({ policy: { name: 'zipcache', window: 20 }, seed: 0 })
    await sequence.prefill(promptOf(5))
    const first = sequence.length
    for await (const _ of sequence.generate(null, { maxTokens: 26, ignoreEos: true })) {
      // A window and a part of one.
    }
    const positions = await sequence.salientTokens()
    sequence.dispose()
    for (const own of positions.flat()) {
      expect(own.filter((position) => position >= first)).toHaveLength(12)
      expect(Math.max(...own)).toBeLessThan(first + 20)
    }
  })

  test('heads that differ in how many tokens are salient', async () => {
    const policy = { name: 'zipcache', saliencyRatio: 'auto' } as const
    const ids = promptOf(30)
    const sequence = model().createSequence({ policy, seed: 0 })
    await sequence.prefill(ids)
    const positions = await sequence.salientTokens()
    const [high] = sequence.segments.filter(({ precision }) => precision === 'high')
    sequence.dispose()
    expect(positions.flat().map(({ length }) => length)).toEqual([...(high?.counts ?? [])])
    expect(new Set(positions.flat().map(({ length }) => length)).size).toBeGreaterThan(1)
    for (const own of positions.flat()) {
      expect([...own]).toEqual([...new Set(own)].sort((a, b) => a - b))
      expect(own.at(-1) ?? 0).toBeLessThan(ids.length)
    }
    const report = await inspectSaliency({ model: model(), ids, policy })
    const counted = positions.flat().reduce((sum, { length }) => sum + length, 0)
    expect(report.all.salient).toBeCloseTo(counted / positions.flat().length / ids.length, 12)
  })

  test.each(['fp16', 'uniform4', { name: 'zipcache', saliencyRatio: 0 }] as const)(
    '%j tells no tokens apart',
    async (policy) => {
      await expect(
        inspectSaliency({ model: model(), ids: promptOf(10), policy }),
      ).rejects.toMatchObject({
        code: 'ERR_ZC_ARGUMENT',
        argument: 'policy',
      })
    },
  )

  test('bins out of range are refused', async () => {
    const options = { model: model(), ids: promptOf(10), policy: 'zipcache', bins: 0 }
    await expect(inspectSaliency(options)).rejects.toMatchObject({ argument: 'bins' })
  })
})
