/** Memory is counted to the byte, and by hand here. */
import { join } from 'node:path'
import { type CacheBytes, POLICY_NAMES, type PolicySpec } from '../../lib/index'
import { kFixtures } from './model-copies'
import { idsOf, someIds, useModel } from './running'

const model = useModel(join(kFixtures, 'llama'))
/** Of the fixture. */
const [nLayers, nKvHeads, nHeads, headDim, hiddenSize] = [3, 2, 4, 32, 128]
const nEntries = nLayers * nKvHeads

const sumOf = (byClass: CacheBytes['byClass']) => Object.values(byClass).reduce((a, b) => a + b)

/** The bytes of a cache of `turns` prompts of so many tokens. */
async function bytesAfter(policy: PolicySpec, ...turns: number[]): Promise<CacheBytes> {
  const sequence = model().createSequence({ policy })
  for (const n of turns) await sequence.prefill(someIds(n, 320))
  const { bytes } = sequence
  sequence.dispose()
  return bytes
}

/** Pages that n tokens of every (layer, KV head) take. */
const pages = (n: number) => nEntries * Math.ceil(n / 16)
/** Bytes of 16 tokens' K and V at so many bits, and V's 16 scales and zeros when they are codes. */
const page = (keyBits: number, valueBits: number) =>
  ((keyBits + valueBits) * 16 * headDim) / 8 + (valueBits <= 8 ? 64 : 0)

describe('by class', () => {
  test.each(POLICY_NAMES)('an empty cache has its table alone: %s', (policy) => {
    const { used } = model().kvMemory
    const sequence = model().createSequence({ policy })
    const fork = sequence.fork()
    const tables = (model().kvMemory.used - used) / 2
    expect(tables).toBeGreaterThan(0)
    for (const { bytes } of [sequence, fork]) {
      expect(bytes).toEqual({
        ...{ resident: tables, peak: tables, fp16: 0, ratio: 0, paperRatio: null },
        byClass: { high: 0, low: 0, tail: 0, params: 0, bitmaps: 0, tables, probes: 0, states: 0 },
      })
    }
    sequence.dispose()
    fork.dispose()
    expect(model().kvMemory.used).toBe(used)
  })

  test.each(POLICY_NAMES)('a prompt that was given up leaves the table: %s', async (policy) => {
    const { used } = model().kvMemory
    const sequence = model().createSequence({ policy })
    const { byClass } = sequence.bytes
    const ending = new AbortController()
    const running = sequence.prefill(someIds(300, 320), { signal: ending.signal })
    setImmediate(() => ending.abort(new Error('given up')))
    await expect(running).rejects.toThrow('given up')
    // which has grown, for some
    expect(sequence.bytes.byClass).toEqual({ ...byClass, tables: model().kvMemory.used - used })
    expect(sequence.bytes).toMatchObject({ fp16: 0, ratio: 0, paperRatio: null })
    sequence.dispose()
  })

  test('zipcache: a prompt of 300', async () => {
    expect((await bytesAfter('zipcache', 300)).byClass).toMatchObject({
      high: pages(180) * page(4, 4),
      low: pages(120) * page(2, 2),
      tail: 0,
      params: nEntries * 2 * 192, // 3 x 32 channels x 2 bytes, for both classes
      bitmaps: nEntries * 64, // 300 bits in a unit of 64 bytes
      probes: 0,
    })
  })

  test('zipcache: a prompt, a window and a part of one', async () => {
    const policy = { name: 'zipcache', window: 40 } as const
    const turns = [200, ...new Array(40).fill(1), 17]
    // 5% of 40 and of 40 again: tokens 38, 39 and two random ones, rows of q and lse in float32
    const { byClass } = await bytesAfter(policy, ...turns)
    expect(byClass).toMatchObject({
      high: (pages(120) + pages(24)) * page(4, 4),
      low: (pages(80) + pages(16)) * page(2, 2),
      tail: pages(17) * page(16, 16),
      params: nEntries * 4 * 192,
      bitmaps: nEntries * 2 * 64,
    })
    const probeRow = nLayers * (nHeads * headDim + nHeads) * 4
    expect(byClass.probes % probeRow).toBe(0)
    expect(byClass.probes).toBeLessThanOrEqual(4 * probeRow)
  })

  test('K and V at bits of their own', async () => {
    const policy: PolicySpec = {
      name: 'zipcache',
      saliencyRatio: 0.2,
      keyBits: { high: 8, low: 3 },
      valueBits: { high: 3, low: 2 },
    }
    expect((await bytesAfter(policy, 160)).byClass).toMatchObject({
      high: pages(32) * Math.ceil(page(8, 3) / 64) * 64,
      low: pages(128) * Math.ceil(page(3, 2) / 64) * 64,
    })
  })

  test('uniform has one class and no bitmap', async () => {
    expect((await bytesAfter('uniform2', 300)).byClass).toMatchObject({
      high: pages(300) * page(2, 2),
      low: 0,
      tail: 0,
      params: nEntries * 192,
      bitmaps: 0,
    })
  })

  test('gear: a prompt of 300, a window and a part of one', async () => {
    const policy = { name: 'gear', window: 40 } as const
    const width = nKvHeads * headDim
    const { byClass } = await bytesAfter(policy, 300, ...new Array(40).fill(1), 17)
    // 1% at either end: 3 of a channel's 300 tokens, none of its 40, and 1 of a token's 64 channels
    const outliers = (n: number, ofChannel: number) => (width * ofChannel + n * 2) * 4
    const factors = (n: number, rank: number) => 2 * (n * nKvHeads + width) * rank * 2
    const params = (n: number) => 4 * (width + n)
    expect(byClass).toMatchObject({
      high: (nLayers * (2 * 340 * width * 4)) / 8,
      low: 0,
      tail: nLayers * 2 * 32 * width * 2, // two blocks of 16 tokens
      params:
        nLayers *
        (params(300) +
          params(40) +
          outliers(300, 6) +
          outliers(40, 0) +
          factors(300, 4) +
          factors(40, 2)),
    })
  })

  test('mikv of its own paper: a prompt of 300, and tokens one by one', async () => {
    const width = nKvHeads * headDim
    // 2 bits, and a scale and zero for each half of a head
    const low = (n: number) => nLayers * 2 * n * (width / 4)
    const params = (n: number) => nLayers * (2 * n * 2 * nKvHeads * 4 + width * 2)
    const high = (n: number) => ({
      high: nLayers * 4 * n * width,
      probes: nLayers * 4 * n * nKvHeads,
    })
    expect((await bytesAfter('mikv-paper', 300)).byClass).toMatchObject({
      ...high(60),
      ...{ low: low(240), params: params(240), tail: 0, bitmaps: 0 },
    })
    // After 20 more, 64 of 320 are to stay: 16 go.
    const later = (n: number) => bytesAfter('mikv-paper', 300, ...new Array(n).fill(1))
    expect((await later(19)).byClass).toMatchObject({ ...high(79), low: low(240) })
    expect((await later(20)).byClass).toMatchObject({
      ...high(64),
      low: low(256),
      params: params(256),
    })
  })

  test.each([
    ['full', 32],
    ['fp16', 16],
  ] as const)('%s is all tail', async (policy, bits) => {
    const { byClass, paperRatio } = await bytesAfter(policy, 300)
    expect(byClass).toMatchObject({ high: 0, low: 0, params: 0, bitmaps: 0, probes: 0 })
    expect(byClass.tail).toBe(pages(300) * page(bits, bits))
    expect(paperRatio).toBeNull()
  })
})

describe('in all', () => {
  const policies: PolicySpec[] = [
    ...POLICY_NAMES,
    { name: 'snapkv', capacity: 100 },
    { name: 'zipcache', window: 1 },
  ]

  test.each(policies)('resident is the sum of all classes: %j', async (policy) => {
    for (const turns of [[1], [5], [300], [300, 30, 1, 1, 200]]) {
      const bytes = await bytesAfter(policy, ...turns)
      const length = turns.reduce((a, b) => a + b)
      expect(bytes.resident).toBe(sumOf(bytes.byClass))
      // K and V of every layer and head, two bytes an element
      expect(bytes.fp16).toBe(2 * length * nEntries * headDim * 2)
      expect(bytes.ratio).toBe(bytes.fp16 / bytes.resident)
      expect(bytes.peak).toBeGreaterThanOrEqual(bytes.resident)
    }
  })

  test('is what the pool handed out, and the table', async () => {
    const { used } = model().kvMemory
    for (const policy of policies) {
      const sequence = model().createSequence({ policy })
      await idsOf(sequence, someIds(130, 320), 30)
      const { resident } = sequence.bytes
      expect(resident).toBe(model().kvMemory.used - used)
      sequence.dispose()
    }
  })

  test('is what the device has handed out, the logits and the pool aside', async () => {
    await model().device.sync()
    const before = model().device.memory.current
    const sequence = model().createSequence({ policy: { name: 'zipcache', window: 30 } })
    await sequence.prefill(someIds(50, 320))
    await sequence.prefill(someIds(12, 320))
    await model().device.sync()
    const { byClass } = sequence.bytes
    const logits = model().device.memory.current - before - byClass.tables - byClass.probes
    // the logits of one row, and what computed them
    expect(logits).toBeGreaterThanOrEqual(320 * 4)
    expect(logits).toBeLessThan(320 * 4 + 2 * hiddenSize * 4 + 64)
    sequence.dispose()
    await model().device.sync()
    expect(model().device.memory.current).toBe(before)
  })

  test('peak has the activations of a prompt, and one layer of its K and V in full', async () => {
    const n = 500
    const { peak, resident } = await bytesAfter('zipcache', n)
    const residual = n * hiddenSize * 4
    const [q, kv] = [n * nHeads * headDim * 4, 2 * n * nKvHeads * headDim * 4]
    expect(peak - resident).toBeGreaterThan(2 * residual + 2 * q + kv)
    // and not that of all layers
    expect(peak - resident).toBeLessThan(20 * residual)
  })

  test('peak has a window twice while it is compressed', async () => {
    const n = 64
    const turns = (last: number) => [...new Array(n - 1 + last).fill(1)]
    const policy = { name: 'zipcache', window: n } as const
    const open = await bytesAfter(policy, ...turns(0))
    const closed = await bytesAfter(policy, ...turns(1))
    expect(closed.resident).toBeLessThan(open.resident)
    const packed = closed.byClass.high + closed.byClass.low
    expect(closed.peak).toBeGreaterThan(open.byClass.tail + packed)
  })

  test('peak does not shrink', async () => {
    const sequence = model().createSequence({ policy: 'fp16' })
    let last = 0
    for (const n of [10, 300, 5, 1]) {
      await sequence.prefill(someIds(n, 320))
      expect(sequence.bytes.peak).toBeGreaterThanOrEqual(last)
      last = sequence.bytes.peak
    }
    sequence.dispose()
  })
})

describe("the paper's ratio", () => {
  /**
   * Bits of a 16-bit cache over those of codes and parameters: each class has a scale and a zero for every channel of K and for
   * every token of V, 16 bits each.
   */
  function paperRatio(
    n: number,
    width: number,
    classes: { share: number; bits: [number, number] }[],
  ) {
    let bits = 0
    for (const {
      share,
      bits: [keyBits, valueBits],
    } of classes) {
      bits += share * n * width * (keyBits + valueBits)
      bits += 2 * width * 16 + 2 * n * 16
    }
    return (2 * n * width * 16) / bits
  }

  test('of the formula written here reproduces the paper: 4.98 at l = 840, r = 60%, hd = 4096', () => {
    const classes = [
      { share: 0.6, bits: [4, 4] as [number, number] },
      { share: 0.4, bits: [2, 2] as [number, number] },
    ]
    // The paper shares channel parameters among 8 sequences: eight times the tokens.
    expect(paperRatio(8 * 840, 4096, classes)).toBeCloseTo(4.98, 2)
  })

  test.each<[PolicySpec, { share: number; bits: [number, number] }[]]>([
    [
      'zipcache',
      [
        { share: 0.6, bits: [4, 4] },
        { share: 0.4, bits: [2, 2] },
      ],
    ],
    [
      { name: 'zipcache', saliencyRatio: 0.2, keyBits: { low: 3 }, valueBits: { high: 8 } },
      [
        { share: 0.2, bits: [4, 8] },
        { share: 0.8, bits: [3, 2] },
      ],
    ],
    ['uniform4', [{ share: 1, bits: [4, 4] }]],
    [{ name: 'uniform', bits: 2, keyBits: 3 }, [{ share: 1, bits: [3, 2] }]],
  ])('%j', async (policy, classes) => {
    for (const n of [100, 300]) {
      const { paperRatio: own, ratio } = await bytesAfter(policy, n)
      expect(own).toBeCloseTo(paperRatio(n, nKvHeads * headDim, classes), 10)
      expect(ratio).toBeLessThan(own!) // which leaves out bitmaps, page holes and tables
    }
  })

  test('counts the tokens of windows that fill their pages', async () => {
    const sequence = model().createSequence({ policy: 'zipcache-plus' })
    await idsOf(sequence, [5, 6, 7], 226)
    expect(sequence.length).toBe(228)
    const classes: { share: number; bits: [number, number] }[] = [
      { share: 16 / 112, bits: [4, 4] },
      { share: 96 / 112, bits: [3, 2] },
    ]
    const expected = paperRatio(228, nKvHeads * headDim, classes)
    expect(sequence.bytes.paperRatio).toBeCloseTo(expected, 10)
    sequence.dispose()
  })
})

test('2,000 decoded tokens leave resident memory flat but for the cache itself', async () => {
  const sequence = model().createSequence()
  const rss: number[] = []
  const cache: number[] = []
  const device: number[] = []
  let n = 0
  for await (const _ of sequence.generate([5, 6, 7], { maxTokens: 2000, ignoreEos: true })) {
    n++
    if (n !== 200 && n !== 2000) continue
    rss.push(process.memoryUsage().rss)
    cache.push(sequence.bytes.resident)
    device.push(
      model().device.memory.current - sequence.bytes.byClass.tables - sequence.bytes.byClass.probes,
    )
  }
  expect(n).toBe(2000)
  // JavaScript's heap breathes by some megabytes; a leak of one small tensor a token would be 60 MB.
  const grown = rss[1] - rss[0] - (cache[1] - cache[0])
  expect(grown).toBeLessThan(24 * 2 ** 20)
  // What the device has handed out beside the cache does not grow at all.
  expect(device[1]).toBeLessThanOrEqual(device[0])
  sequence.dispose()
})
