/**
 * What a layer asks of a device, when a prompt is compressed and when a token is decoded: on a GPU each op is one kernel or
 * a few, and a copy or a wait between two layers holds up the kernels behind it.
 */
import { join } from 'node:path'
import type { PolicySpec } from '../../lib/index'
import { loadAddon } from '../../lib/native/load'
import { kFixtures } from './model-copies'
import { someIds, useModel } from './running'

/** The addon's functions that were called while `body` ran, in order. */
async function callsDuring(body: () => Promise<unknown>): Promise<string[]> {
  const addon = loadAddon() as unknown as Record<string, (...args: unknown[]) => unknown>
  const calls: string[] = []
  const spies = Object.keys(addon)
    .filter((name) => typeof addon[name] === 'function')
    .map((name) => {
      const actual = addon[name]
      return jest.spyOn(addon, name).mockImplementation((...args) => {
        calls.push(name)
        return actual(...args)
      })
    })
  try {
    await body()
  } finally {
    for (const spy of spies) spy.mockRestore()
  }
  return calls
}

/** What a device does for the cache, copies to and from it included. */
const kOwn = [
  'storeProbes',
  'probeAttention',
  'selectSalient',
  'packSegment',
  'packSegments',
  'gatherRows',
  'convert',
  'writeTensor',
  'readTensor',
]

const model = useModel(join(kFixtures, 'llama'))

const kLooks = ['writeTensor', 'storeProbes', 'probeAttention', 'selectSalient', 'packSegments']
test.each<[string, PolicySpec, string[]]>([
  ['zipcache', 'zipcache', kLooks],
  ['zipcache-plus', 'zipcache-plus', kLooks],
  ['mikv', 'mikv', kLooks],
  ['uniform', { name: 'uniform', bits: 4 }, ['packSegments']],
])('each layer of a prompt of one slice, %s', async (_, policy, expected) => {
  const sequence = model().createSequence({ policy })
  const ids = someIds(130, model().config.vocabSize)
  const calls = await callsDuring(() => sequence.prefill(ids))
  sequence.dispose()
  const own = calls
    .slice(calls.indexOf('ropeTable'), calls.lastIndexOf('packSegments') + 1)
    .filter((name) => kOwn.includes(name))
  expect(own).toEqual(Array.from({ length: model().config.nLayers }, () => expected).flat())
})

const kDecodeLayer = [
  ...['rmsNorm', 'groupedLinear', 'ropeAppend', 'mixedAttention', 'linear'],
  ...['rmsNorm', 'groupedLinear', 'siluGate', 'linear'],
]
test('each layer of a decode step', async () => {
  const sequence = model().createSequence({ policy: 'zipcache' })
  await sequence.prefill(someIds(130, model().config.vocabSize))
  const calls = await callsDuring(async () => {
    for await (const _ of sequence.generate([1], { maxTokens: 3, ignoreEos: true }));
  })
  sequence.dispose()
  const step = calls.slice(calls.indexOf('beginRecording') + 1, calls.indexOf('endRecording'))
  expect(step.filter((name) => name !== 'createTensor')).toEqual([
    ...['feedTokens', 'setTailLengths', 'embedding', 'ropeTable'],
    ...Array.from({ length: model().config.nLayers }, () => kDecodeLayer).flat(),
    ...['storeProbes', 'rmsNorm', 'linear', 'sample'],
  ])
})

// Behind the test of a step, which is recorded once.
test.each<[string, PolicySpec, string[]]>([
  [
    ...(['zipcache', { name: 'zipcache', window: 20 }] as const),
    ['unpackSegment', 'probeAttention', 'selectSalient', 'packSegments'],
  ],
  ['uniform', { name: 'uniform', bits: 4, window: 20 }, ['unpackSegment', 'packSegments']],
])('all layers of a window at once, %s', async (_, policy, expected) => {
  const { vocabSize, nLayers } = model().config
  expect(nLayers).toBeGreaterThan(1)
  const sequence = model().createSequence({ policy })
  await sequence.prefill(someIds(30, vocabSize))
  const calls = await callsDuring(async () => {
    for await (const _ of sequence.generate([1], { maxTokens: 45, ignoreEos: true }));
  })
  expect(sequence.segments.at(-1)?.start).toBe(50) // two windows
  sequence.dispose()
  const own = ['unpackSegment', 'probeAttention', 'selectSalient', 'packSegments']
  expect(calls.filter((name) => own.includes(name))).toEqual([...expected, ...expected])
})
