/** What fails on the device, or is given up, while a prompt runs: the sequence is as before, whenever it was. */
import { join } from 'node:path'
import type { PolicySpec } from '../../lib/index'
import type { Addon } from '../../lib/native/addon'
import { loadAddon } from '../../lib/native/load'
import { expectRejected } from '../support/errors'
import { kFixtures } from './model-copies'
import { idsOf, someIds, useModel } from './running'

type Call = (...args: unknown[]) => unknown

/** Has `instead` take the calls of one of the addon's functions while `body` runs. */
async function intercept(
  name: string,
  instead: (actual: Call, args: unknown[], index: number) => unknown,
  body: () => Promise<unknown>,
): Promise<number> {
  const addon = loadAddon() as unknown as Record<string, Call>
  const actual = addon[name]
  let nCalls = 0
  const spy = jest
    .spyOn(addon, name)
    .mockImplementation((...args) => instead(actual, args, nCalls++))
  try {
    await body()
  } finally {
    spy.mockRestore()
  }
  return nCalls
}

/** Each wait for the device in turn, of as many as `body` takes when all goes well. */
async function eachWait(body: () => Promise<unknown>): Promise<number[]> {
  const nWaits = await intercept('sync', (actual, args) => actual(...args), body)
  expect(nWaits).toBeGreaterThan(3)
  return Array.from({ length: nWaits }, (_, wait) => wait)
}

const model = useModel(join(kFixtures, 'llama'))
const vocabSize = () => model().config.vocabSize
const policies: PolicySpec[] = ['full', 'zipcache', { name: 'kivi', residual: 32 }, 'h2o']

const recurrent = useModel(join(kFixtures, 'qwen3.5'))
const subjects = policies.flatMap((policy) => [
  { name: 'llama', policy, model },
  { name: 'qwen3.5', policy, model: recurrent },
])

describe.each(subjects)('$name, $policy', ({ policy, model }) => {
  const vocabSize = () => model().config.vocabSize
  const first = () => someIds(130, vocabSize(), 1)
  const second = () => someIds(140, vocabSize(), 2)

  /** A sequence with one turn, what it holds, and what it is to go on with. */
  async function begun() {
    const untouched = model().createSequence({ policy })
    await untouched.prefill(first())
    await untouched.prefill(second())
    const expected = await idsOf(untouched, null, 5)
    untouched.dispose()
    const sequence = model().createSequence({ policy })
    await sequence.prefill(first())
    const held = () => [sequence.length, sequence.tokens, sequence.segments]
    return { sequence, expected, held, before: held() }
  }

  test('given up at any wait for the device', async () => {
    const reason = new Error('no longer wanted')
    const { sequence, expected, held, before } = await begun()
    const fork = sequence.fork()
    const waits = await eachWait(() => fork.prefill(second()))
    fork.dispose()
    for (const wait of waits) {
      const controller = new AbortController()
      await intercept(
        'sync',
        (actual, args, index) => {
          if (index === wait) controller.abort(reason)
          return actual(...args)
        },
        () =>
          expect(sequence.prefill(second(), { signal: controller.signal })).rejects.toBe(reason),
      )
      expect(held()).toEqual(before)
    }
    await sequence.prefill(second())
    expect(await idsOf(sequence, null, 5)).toEqual(expected)
    sequence.dispose()
  })

  test('a wait for the device that fails, whichever', async () => {
    const { sequence, expected, held, before } = await begun()
    const fork = sequence.fork()
    const waits = await eachWait(() => fork.prefill(second()))
    fork.dispose()
    for (const wait of waits) {
      const lost = new Error('the device said no')
      await intercept(
        'sync',
        (actual, args, index) => (index === wait ? Promise.reject(lost) : actual(...args)),
        () => expect(sequence.prefill(second())).rejects.toBe(lost),
      )
      expect(held()).toEqual(before)
    }
    await sequence.prefill(second())
    expect(await idsOf(sequence, null, 5)).toEqual(expected)
    sequence.dispose()
  })
})

/** Runs `body` while a call of packSegments fails on the device; how many there were. */
function withDamagedRows(call: number, body: () => Promise<void>): Promise<number> {
  return intercept(
    'packSegments',
    (actual, args, index) => {
      // Rows that no group has, as damaged memory might say.
      if (index === call) {
        const rows = args[6] as Parameters<Addon['writeTensor']>[0]
        loadAddon().writeTensor(rows, Int32Array.of(1 << 20), 0)
      }
      return actual(...args)
    },
    body,
  )
}

test('an op of the last layer that fails on the device', async () => {
  const ids = someIds(130, vocabSize())
  const expected = await idsOf(model(), ids, 5)
  const sequence = model().createSequence()
  const last = model().config.nLayers - 1 // a prompt is packed layer by layer
  await withDamagedRows(last, () =>
    expectRejected(sequence.prefill(ids), { code: 'ERR_ZC_ARGUMENT' }),
  )
  expect([sequence.length, sequence.segments]).toEqual([0, []])
  expect(await idsOf(sequence, ids, 5)).toEqual(expected)
  sequence.dispose()
})

test('a window that fails on the device is told to the run that closes it, and to no other', async () => {
  const { vocabSize } = model().config
  const other = model().createSequence()
  const expected = await idsOf(model(), someIds(130, vocabSize, 2), 130)
  const closing = model().createSequence()
  await closing.prefill(someIds(130, vocabSize, 1))
  await idsOf(closing, null, 60)
  await other.prefill(someIds(130, vocabSize, 2))
  const nCalls = await withDamagedRows(0, async () => {
    const fails = expectRejected(idsOf(closing, null, 130), { code: 'ERR_ZC_ARGUMENT' })
    expect(await idsOf(other, null, 130)).toEqual(expected)
    await fails
  })
  expect(nCalls).toBeGreaterThan(1) // the other's window was closed as well
  await expectRejected(idsOf(closing, null, 1), { code: 'ERR_ZC_HANDLE' })
  for (const sequence of [other, closing]) sequence.dispose()
})

test('scores of a prompt that was given up are told of no other token', async () => {
  const sequence = model().createSequence({ recordSaliency: true })
  const controller = new AbortController()
  const reason = new Error('no longer wanted')
  const ids = someIds(130, vocabSize())
  const running = sequence.prefill(ids, { signal: controller.signal })
  await intercept(
    'probeAttention',
    (actual, args) => {
      actual(...args)
      controller.abort(reason)
    },
    () => expect(running).rejects.toBe(reason),
  )
  await sequence.prefill(ids.slice(0, 5))
  const { scores } = await sequence.tokenMap()
  expect([...scores]).toEqual(new Array(5).fill(Number.NaN))
  sequence.dispose()
})
