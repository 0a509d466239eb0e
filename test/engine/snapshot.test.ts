/** Saving a sequence and restoring it: the same continuation, and no damaged file gets in. */
import { createHash } from 'node:crypto'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import fc from 'fast-check'
import { joinCodes, splitCodes } from '../../lib/cache/index'
import {
  createEngine,
  type Engine,
  loadModel,
  type PolicySpec,
  type Sequence,
  ZipCacheError,
} from '../../lib/index'
import { loadAddon } from '../../lib/native/load'
import { expectRejected } from '../support/errors'
import { propertyRuns } from '../support/properties'
import { kFixtures, kTrainedModels } from './model-copies'
import { collect, idsOf, someIds, useModel } from './running'

const model = useModel(join(kFixtures, 'llama'))
const other = useModel(join(kFixtures, 'qwen2'))
const other16 = useModel(join(kFixtures, 'llama'), { dtype: 'bf16' })
const windowed = useModel(join(kFixtures, 'gemma3'))
const ofTwoShapes = useModel(join(kFixtures, 'gemma4-e'))
const recurrent = useModel(join(kFixtures, 'qwen3.5'))
const trained = useModel(join(kTrainedModels, 'line-retrieval'))

let folder: string
let engine: Engine
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'zipcache-snapshot-'))
})
beforeEach(() => {
  engine = createEngine({ model: model(), kvMemory: 64 << 20 })
})
afterEach(async () => {
  expect(engine.stats()).toMatchObject({ sequences: 0, kvMemory: { used: 0 } })
  await engine.dispose()
})
afterAll(() => rmSync(folder, { recursive: true }))

const file = () => join(folder, 'sequence')

test('a sequence that cannot be saved for want of memory goes on', async () => {
  const sequence = engine.createSequence()
  await sequence.prefill(someIds(130, model().config.vocabSize))
  const addon = loadAddon()
  const full = new ZipCacheError('ERR_ZC_OUT_OF_MEMORY', 'no tensor was to be had')
  const spy = jest.spyOn(addon, 'createTensor').mockImplementation(() => {
    throw full
  })
  await expect(sequence.save(file())).rejects.toBe(full)
  spy.mockRestore()
  expect(sequence.isUsable).toBe(true)
  expect(readdirSync(folder)).toEqual([])
  await sequence.save(file())
  expect(await idsOf(sequence, null, 3)).toHaveLength(3)
  rmSync(file())
  sequence.dispose()
})
const damaged = { code: 'ERR_ZC_SNAPSHOT', argument: 'path' } as const

const zip: PolicySpec = { name: 'zipcache', window: 12, saliencyRatio: 0.5 }
const policies: PolicySpec[] = [
  'full',
  'fp16',
  zip,
  { name: 'zipcache', window: 12, keyBits: { high: 4, low: 3 }, valueBits: { high: 8, low: 2 } },
  { name: 'zipcache', window: 12, saliencyRatio: 0 },
  { name: 'zipcache', window: 12, saliencyRatio: 1 },
  'uniform3',
]

/** How a sequence may have come to where it is: prompts, and tokens generated after each. */
const pasts: [string, [number, number][]][] = [
  ['empty', []],
  ['a prompt shorter than a window', [[5, 0]]],
  ['a prompt of two windows', [[24, 0]]],
  ['inside a window, a token pending', [[31, 4]]],
  ['a window just closed', [[24, 13]]],
  [
    'several turns',
    [
      [30, 7],
      [20, 30],
      [3, 3],
    ],
  ],
]

async function converse(turns: readonly [number, number][], policy: PolicySpec): Promise<Sequence> {
  const sequence = engine.createSequence({ policy, seed: 3 })
  for (const [turn, [nPrompt, nAnswer]] of turns.entries()) {
    await sequence.prefill(someIds(nPrompt, 320, turn + 1))
    if (nAnswer > 0) await idsOf(sequence, null, nAnswer)
  }
  return sequence
}

describe.each(pasts)('%s', (_, turns) => {
  test.each(policies)('goes on with the same tokens: %j', async (policy) => {
    const sequence = await converse(turns, policy)
    await sequence.save(file())
    const restored = await engine.restore(file())
    expect(restored.length).toBe(sequence.length)
    expect(restored.segments).toEqual(sequence.segments)
    expect({ ...restored.bytes.byClass, tables: 0 }).toEqual({
      ...sequence.bytes.byClass,
      tables: 0,
    })
    const settings = { temperature: 0.8, seed: 9, repetitionPenalty: 1.3 }
    const goOn = async (each: Sequence) => {
      const first = turns.length > 0 ? await idsOf(each, null, 20, settings) : []
      const next = await collect(each.generate(someIds(17, 320, 8), { maxTokens: 15 }))
      return [first, next]
    }
    expect(await goOn(restored)).toEqual(await goOn(sequence))
    // The file of a restored sequence is the same file.
    const again = await engine.restore(file())
    const bytes = readFileSync(file())
    await again.save(file())
    expect(readFileSync(file()).equals(bytes)).toBe(true)
    for (const each of [sequence, restored, again]) each.dispose()
  })
})

test.each([zip, 'fp16', 'full'])('the state of recurrent layers is saved: %j', async (policy) => {
  const engine = createEngine({ model: recurrent(), kvMemory: 64 << 20 })
  const { vocabSize } = recurrent().config
  const sequence = engine.createSequence({ policy, seed: 3 })
  for (const [nPrompt, nAnswer] of [
    [0, 0],
    [30, 0],
    [1, 7],
    [20, 30],
  ] as const) {
    if (nPrompt > 0) await sequence.prefill(someIds(nPrompt, vocabSize))
    if (nAnswer > 0) await idsOf(sequence, null, nAnswer)
    await sequence.save(file())
    const restored = await engine.restore(file())
    expect({ ...restored.bytes.byClass, tables: 0 }).toEqual({
      ...sequence.bytes.byClass,
      tables: 0,
    })
    const fork = sequence.fork()
    const next = someIds(17, vocabSize, 8)
    expect(await idsOf(restored, next, 30)).toEqual(await idsOf(fork, next, 30))
    for (const each of [restored, fork]) each.dispose()
  }
  const bytes = readFileSync(file())
  writeFileSync(file(), bytes.subarray(0, -4096))
  await expectRejected(engine.restore(file()), damaged)
  sequence.dispose()
  expect(engine.stats()).toMatchObject({ sequences: 0, kvMemory: { used: 0 } })
  await engine.dispose()
})

test.each([
  ...([zip, 'fp16', 'full'] as const).map((policy) => ['gemma3', policy, windowed] as const),
  ...([zip, 'fp16', 'full'] as const).map((policy) => ['gemma4-e', policy, ofTwoShapes] as const),
])('what sliding windows hide is given back: %s, %j', async (_, policy, own) => {
  const engine = createEngine({ model: own(), kvMemory: 64 << 20 })
  const sequence = engine.createSequence({ policy, seed: 3 })
  await sequence.prefill(someIds(150, 160, 1))
  await idsOf(sequence, null, 40)
  await sequence.save(file())
  const restored = await engine.restore(file())
  const pagesOf = (each: Sequence) => ({ ...each.bytes.byClass, tables: 0 })
  expect(pagesOf(restored)).toEqual(pagesOf(sequence))
  const bytes = readFileSync(file())
  const fork = restored.fork()
  await fork.save(file())
  expect(readFileSync(file()).equals(bytes)).toBe(true)
  const next = () => someIds(17, 160, 8)
  const answers = []
  for (const each of [sequence, restored, fork]) answers.push(await idsOf(each, next(), 30))
  expect(answers[1]).toEqual(answers[0])
  expect(answers[2]).toEqual(answers[0])
  expect(pagesOf(restored)).toEqual(pagesOf(sequence))
  for (const each of [sequence, restored, fork]) each.dispose()
  expect(engine.stats()).toMatchObject({ sequences: 0, kvMemory: { used: 0 } })
  await engine.dispose()
})

test('the weights are looked at once for a model, and all together', async () => {
  const model = await loadModel(join(kFixtures, 'llama'), { threads: 1, kvMemory: 1 << 20 })
  const reads = jest.spyOn(loadAddon(), 'readTensor')
  const fingerprint = model.fingerprint()
  const { nLayers } = model.config
  expect(reads).toHaveBeenCalledTimes(2 * (3 + 9 * nLayers)) // before the first is awaited
  expect(await model.fingerprint()).toBe(await fingerprint)
  expect(reads).toHaveBeenCalledTimes(2 * (3 + 9 * nLayers))
  reads.mockRestore()
  await model.dispose()
})

test.each([
  ['llama', model, '10618fc721b604ab38b4134d5306eb3c5244c5c7bfcbd82634e61b9342115f53'],
  ['gemma3', windowed, '4e0b6c729738a39c4f34e2e51bdabe8a35b52ef466c8abf5aef8f0f3f4813ec7'],
  ['qwen3.5', recurrent, '1082286b0618177b34cea57718b6602a272f1216edb389b4eee24add60d6edc1'],
])('files of earlier versions are still of their model: %s', async (_, own, fingerprint) => {
  expect(await own().fingerprint()).toBe(fingerprint)
})

test('another process, engine and thread count: a trained model answers from a file', async () => {
  const here = createEngine({ model: trained(), kvMemory: 64 << 20 })
  const there = createEngine({ model: trained(), kvMemory: 64 << 20 })
  const sequence = here.createSequence()
  await sequence.prefill(someIds(700, 192))
  await sequence.save(file())
  const expected = await idsOf(sequence, null, 120)
  await here.dispose()
  const restored = await there.restore(file())
  expect(await idsOf(restored, null, 120)).toEqual(expected)
  await there.dispose()
})

interface Header {
  nTokens: number
  tailTokens: number
  hasLogits: boolean
  groups: [object, ...object[]]
}

describe('a file that cannot be trusted', () => {
  let bytes: Buffer
  beforeAll(async () => {
    const own = createEngine({ model: model(), kvMemory: 64 << 20 })
    const sequence = own.createSequence({ policy: zip })
    await sequence.prefill(someIds(40, 320))
    await idsOf(sequence, null, 5)
    await sequence.save(file())
    bytes = readFileSync(file())
    await own.dispose()
  })

  async function expectRefusedFile(content: Uint8Array, fault: object = {}): Promise<void> {
    const path = join(folder, 'other')
    writeFileSync(path, content)
    await expectRejected(engine.restore(path), { ...damaged, ...fault })
    expect(engine.stats()).toMatchObject({ sequences: 0, kvMemory: { used: 0 } })
  }

  test('any byte flipped', async () => {
    const flip = async (at: number, mask: number) => {
      const copy = Buffer.from(bytes)
      copy[at] ^= mask
      await expectRefusedFile(copy)
    }
    const place = fc.record({
      at: fc.nat({ max: bytes.length - 1 }),
      mask: fc.integer({ min: 1, max: 255 }),
    })
    for (let at = 0; at < 48; at++) await flip(at, 1)
    for (let at = bytes.length - 40; at < bytes.length; at++) await flip(at, 0x80)
    await fc.assert(
      fc.asyncProperty(place, ({ at, mask }) => flip(at, mask)),
      propertyRuns(100),
    )
  })

  test.each([0, 1, 15, 47, 48, 100, 1000])('cut off after %i bytes', async (n) => {
    await expectRefusedFile(bytes.subarray(0, n))
  })

  test('with bytes behind it', async () => {
    await expectRefusedFile(Buffer.concat([bytes, Buffer.alloc(1)]))
  })

  /** The file with another header, or another body, and a checksum that fits. */
  function forge(
    change: (header: Header) => object,
    spoil: (body: Buffer) => unknown = () => {},
  ): Buffer {
    const headerBytes = bytes.readUInt32LE(12)
    const own = JSON.parse(bytes.subarray(16, 16 + headerBytes).toString()) as Header
    const header = { ...own, ...change(own) }
    const body = Buffer.from(bytes.subarray(16 + headerBytes, bytes.length - 32))
    spoil(body)
    const json = Buffer.from(JSON.stringify(header))
    const prefix = Buffer.from(bytes.subarray(0, 16))
    prefix.writeUInt32LE(json.length, 12)
    const all = Buffer.concat([prefix, json, body])
    return Buffer.concat([all, createHash('sha256').update(all).digest()])
  }

  test('but for its header it would be right', async () => {
    const path = join(folder, 'forged')
    writeFileSync(
      path,
      forge(() => ({})),
    )
    const restored = await engine.restore(path)
    expect(restored.length).toBe(44)
    restored.dispose()
  })

  const lies: [string, (header: Header) => object][] = [
    ['another model', () => ({ fingerprint: 'x' })],
    ['no fingerprint', () => ({ fingerprint: undefined })],
    ['more tokens', () => ({ nTokens: 1e9 })],
    ['fewer tokens', ({ nTokens }) => ({ nTokens: nTokens - 1 })],
    ['a longer tail', (h) => ({ tailTokens: h.tailTokens + 10, nTokens: h.nTokens + 10 })],
    ['a pending token out of range', () => ({ pending: 320 })],
    ['a pending text', () => ({ pending: 'a' })],
    ['another seed', () => ({ seed: { lo: -1, hi: 0 } })],
    ['no groups', () => ({ groups: null })],
    ['a group of nothing', ({ groups: [group] }) => ({ groups: [{ ...group, nTokens: 0 }] })],
    ['too many salient', ({ groups: [group] }) => ({ groups: [{ ...group, nSalient: 1000 }] })],
    [
      'other bits',
      ({ groups: [group] }) => ({ groups: [{ ...group, high: { k: 'u8', v: 'u4' } }] }),
    ],
    ['no bits', ({ groups: [group] }) => ({ groups: [{ ...group, low: {} }] })],
    ['floats', ({ groups: [group] }) => ({ groups: [{ ...group, low: { k: 'u2', v: 'f16' } }] })],
    ['logits that are not there', ({ hasLogits }) => ({ hasLogits: !hasLogits })],
    ['an unknown policy', () => ({ policy: 'unheard of' })],
  ]
  test.each(lies)('whose header says %s', async (_, change) => {
    await expectRefusedFile(forge(change))
  })

  test.each([
    ['unheard of', 'names a policy that is none'],
    ['h2o', 'is of a policy whose sequences are not saved'],
  ])('of the policy %s says so', async (policy, message) => {
    const path = join(folder, 'forged')
    writeFileSync(
      path,
      forge(() => ({ policy })),
    )
    await expect(engine.restore(path)).rejects.toThrow(message)
  })

  test.each([
    ['zipcache-plus', 100],
    ['zipcache-plus', undefined],
    ['fp16', 100],
    [{ name: 'zipcache', window: 12 }, 13],
    [{ name: 'zipcache', window: 12 }, null],
  ])(
    'of %j whose windows were of %p tokens, and are of others, says so',
    async (policy, window) => {
      const message = /with windows of (100|13|null) tokens, which are of (112|12|null) now/
      const lie = () => ({ policy, window })
      await expectRefusedFile(forge(lie), { message })
    },
  )

  test('that does not say how long its windows are is of those that were', async () => {
    const path = join(folder, 'older')
    writeFileSync(
      path,
      forge(() => ({ window: undefined })),
    )
    const restored = await engine.restore(path)
    expect(restored.length).toBe(44)
    restored.dispose()
  })

  const faults: [string, (body: Buffer) => unknown][] = [
    ['a token out of range', (body) => body.writeInt32LE(320, 8)],
    ['a bitmap of another count', (body) => body.writeUInt8(body.readUInt8(4 * 44) ^ 1, 4 * 44)],
    ['parameters that are no numbers', (body) => body.fill(0xff, 200)],
  ]
  test.each(faults)('whose body holds %s', async (_, change) => {
    await expectRefusedFile(forge(() => ({}), change))
  })

  test('that is JSON, or empty, or a folder, or nothing', async () => {
    await expectRefusedFile(Buffer.from('{"a": 1}'.repeat(20)))
    await expectRejected(engine.restore(folder), { code: 'ERR_ZC_IO', argument: 'path' })
    await expectRejected(engine.restore(join(folder, 'missing')), { code: 'ERR_ZC_IO' })
  })

  test('of a later version', async () => {
    const copy = Buffer.from(bytes)
    copy.writeUInt32LE(2, 8)
    await expectRefusedFile(copy, { message: /version 2, expected 1/ })
  })

  test.each([
    ['another model', other],
    ['another compute type', other16],
  ])('of %s', async (_, others) => {
    const path = join(folder, 'whole')
    writeFileSync(path, bytes)
    const elsewhere = createEngine({ model: others(), kvMemory: 64 << 20 })
    await expectRejected(elsewhere.restore(path), { ...damaged, message: /another model/ })
    await elsewhere.dispose()
  })
})

test('a URL of a file is a path, and nothing else is', async () => {
  const sequence = await converse([[30, 2]], zip)
  const fault = { code: 'ERR_ZC_ARGUMENT', argument: 'path' } as const
  for (const path of [5, '', 'a\0b', undefined, {}, new URL('http://localhost/sequence')]) {
    await expectRejected(sequence.save(path as string), fault)
    await expectRejected(engine.restore(path as string), fault)
  }
  await sequence.save(pathToFileURL(file()))
  const restored = await engine.restore(pathToFileURL(file()))
  expect(restored.tokens).toEqual(sequence.tokens)
  for (const each of [sequence, restored]) each.dispose()
})

describe('writing', () => {
  test('leaves the old file and nothing else when it fails', async () => {
    const sequence = await converse([[30, 2]], zip)
    const missing = join(folder, 'no', 'such', 'folder')
    await expectRejected(sequence.save(missing), { code: 'ERR_ZC_IO', argument: 'path' })
    const before = readdirSync(folder)
    await expectRejected(sequence.save(folder), { code: 'ERR_ZC_IO', argument: 'path' })
    expect(readdirSync(folder)).toEqual(before)
    await idsOf(sequence, null, 2)
    sequence.dispose()
  })

  test('refuses a sequence that is busy, and lets others run meanwhile', async () => {
    const sequence = await converse([[30, 2]], zip)
    const busy = engine.createSequence({ policy: zip })
    const prefill = busy.prefill(someIds(50, 320))
    await expectRejected(busy.save(file()), { code: 'ERR_ZC_ARGUMENT', argument: 'sequence' })
    const saving = sequence.save(file())
    await expectRejected(sequence.prefill([5]), { code: 'ERR_ZC_ARGUMENT', argument: 'sequence' })
    await Promise.all([prefill, saving])
    busy.dispose()
    sequence.dispose()
    await expectRejected(sequence.save(file()), { code: 'ERR_ZC_HANDLE' })
  })

  test('goes on when the sequence is disposed of meanwhile', async () => {
    const sequence = await converse([[30, 2]], zip)
    const expected = sequence.length
    const saving = sequence.save(file())
    sequence.dispose()
    await saving
    const restored = await engine.restore(file())
    expect(restored.length).toBe(expected)
    restored.dispose()
  })

  test('too little memory to restore leaves nothing behind', async () => {
    const sequence = await converse([[1500, 0]], 'full')
    await sequence.save(file())
    sequence.dispose()
    const small = createEngine({ model: model(), kvMemory: 1 << 20 })
    await expectRejected(small.restore(file()), { code: 'ERR_ZC_OUT_OF_MEMORY' })
    expect(small.kvMemory.used).toBe(0)
    await small.dispose()
  })
})

test('codes as bits, and back', () => {
  expect([...joinCodes(Uint8Array.of(1, 2, 3, 0, 3), 2)]).toEqual([0b00111001, 3])
  expect([...joinCodes(Uint8Array.of(7, 0, 5), 3)]).toEqual([0b01000111, 1])
  const codes = fc
    .constantFrom(2, 3, 4, 8)
    .chain((bits) =>
      fc.tuple(fc.constant(bits), fc.uint8Array({ max: 2 ** bits - 1, maxLength: 70 })),
    )
  fc.assert(
    fc.property(codes, ([bits, values]) => {
      expect(splitCodes(joinCodes(values, bits), values.length, bits)).toEqual(values)
    }),
    propertyRuns(200),
  )
})
