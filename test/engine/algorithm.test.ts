/**
 * What the engine stores is what the paper's steps make of the very Q, K and V that it had: the ops are listened to, and
 * each step is done again by lib/reference.
 */
import { join } from 'node:path'
import type { PolicySpec } from '../../lib/index'
import { convert, exportSegment, type Tensor } from '../../lib/ops/index'
import type { ProbeAttentionArgs } from '../../lib/ops/probe-attention'
import type { PackSegmentsArgs } from '../../lib/ops/segment'
import { resolvePolicy } from '../../lib/policy/index'
import { deriveSeed, toSeed } from '../../lib/random'
import {
  packSegment,
  probeAttention,
  type SegmentFormat,
  selectSalient,
} from '../../lib/reference/index'
import { expectClose, expectIdentical } from '../support/compare'
import { tolerance } from '../support/tolerance'
import { kFixtures } from './model-copies'
import { idsOf, someIds, useModel } from './running'

const mockListeners: {
  packSegments?: (args: PackSegmentsArgs) => void
  probeAttention?: (args: ProbeAttentionArgs) => void
} = {}

jest.mock('../../lib/ops/segment', () => {
  const actual = jest.requireActual('../../lib/ops/segment')
  const heard = (args: PackSegmentsArgs) => {
    actual.packSegments(args)
    mockListeners.packSegments?.(args)
  }
  return { ...actual, packSegments: heard }
})
jest.mock('../../lib/ops/probe-attention', () => {
  const actual = jest.requireActual('../../lib/ops/probe-attention')
  const heard = (args: ProbeAttentionArgs) => {
    actual.probeAttention(args)
    mockListeners.probeAttention?.(args)
  }
  return { ...actual, probeAttention: heard }
})

/** Elements as numbers, as they are now: ops enqueued later do not show. */
async function snapshot(x: Tensor): Promise<Float32Array | Int32Array> {
  if (x.dtype === 'f32' || x.dtype === 'i32') return (x as Tensor<'f32' | 'i32'>).read()
  const copy = x.device.tensor('f32', x.shape)
  convert({ x, out: copy })
  const values = copy.read()
  copy.dispose()
  return values
}

/**
 * Of rows (n, n_layers * n_kv_heads, …) those of one layer, counted from 0: a window's layers are compressed together, and
 * told here one by one.
 */
async function ofLayer(
  x: Promise<ArrayLike<number>>,
  layer: number,
  nLayers: number,
  width: number,
): Promise<ArrayLike<number>> {
  return Array.from(await x).filter((_, i) => Math.floor(i / width) % nLayers === layer)
}

/** One of several equal parts, of what is (n_layers, …). */
async function partOf(
  x: Promise<ArrayLike<number>>,
  layer: number,
  nLayers: number,
): Promise<ArrayLike<number>> {
  const all = Array.from(await x)
  const size = all.length / nLayers
  return all.slice(layer * size, (layer + 1) * size)
}

/** One class of a call of packSegments, of one layer; `table` stays readable. */
interface Packed {
  k: Promise<ArrayLike<number>>
  v: Promise<ArrayLike<number>>
  /** (n_kv_heads, n_tokens) */
  rows: Promise<ArrayLike<number>>
  nTokens: number
  layer: number
  segment: number
  pool: Tensor
  table: Tensor
}

/** One layer of a call of probeAttention. */
type Probed = Record<
  'q' | 'lse' | 'k' | 'rows' | 'positions' | 'scores',
  Promise<ArrayLike<number>>
> & { nTokens: number }

const packed: Packed[] = []
const probed: Probed[] = []

let nKvHeadsOfLayer = 0

beforeEach(() => {
  mockListeners.packSegments = ({ k, v, pool, table, layer, classes }) => {
    const nLayers = (k.shape[1] as number) / nKvHeadsOfLayer
    const width = nKvHeadsOfLayer * (k.shape[2] as number)
    const rows = { k: snapshot(k), v: snapshot(v) }
    const ids = classes.map((own) => snapshot(own.ids))
    for (let i = 0; i < nLayers; i++) {
      for (const [index, own] of classes.entries()) {
        packed.push({
          k: ofLayer(rows.k, i, nLayers, width),
          v: ofLayer(rows.v, i, nLayers, width),
          rows: partOf(ids[index], i, nLayers),
          nTokens: own.ids.shape[1],
          layer: layer + i,
          segment: own.segment,
          pool,
          table: table.view(table.shape),
        })
      }
    }
  }
  mockListeners.probeAttention = ({ q, lse, k, rows, positions, scores }) => {
    const nLayers = (k.shape[1] as number) / nKvHeadsOfLayer
    const width = nKvHeadsOfLayer * (k.shape[2] as number)
    const all = { q: snapshot(q), lse: snapshot(lse), k: snapshot(k), scores: snapshot(scores) }
    const chosen = { rows: snapshot(rows), positions: snapshot(positions) }
    for (let i = 0; i < nLayers; i++) {
      probed.push({
        q: partOf(all.q, i, nLayers),
        lse: partOf(all.lse, i, nLayers),
        k: ofLayer(all.k, i, nLayers, width),
        scores: partOf(all.scores, i, nLayers),
        ...chosen,
        nTokens: k.shape[0],
      })
    }
  }
})
afterEach(() => {
  for (const { table } of packed.splice(0)) table.dispose()
  probed.length = 0
})

const WINDOW = 20
const zip = { name: 'zipcache', window: WINDOW, probes: { recent: 0.1, random: 0.2 } } as const
const policies: [string, PolicySpec][] = [
  ['zipcache', zip],
  [
    'K 8/3, V 4/2, searched ranges',
    {
      ...zip,
      saliencyRatio: 0.3,
      keyBits: { high: 8, low: 3 },
      valueBits: { high: 4, low: 2 },
      keyRange: { norm: 4 },
      valueRange: { norm: 2 },
    },
  ],
  ['accumulated attention', { ...zip, metric: 'accumulated' }],
  ['the newest tokens', { ...zip, metric: 'locality' }],
  ["the authors' code", { name: 'zipcache-official', window: WINDOW }],
  ['all rows', { name: 'mikv', window: WINDOW }],
  ['uniform3', { name: 'uniform', bits: 3, window: WINDOW }],
]

describe.each(['llama', 'qwen3'])('every step of %s', (fixture) => {
  const model = useModel(join(kFixtures, fixture))
  beforeAll(() => {
    nKvHeadsOfLayer = model().config.nKvHeads
  })
  const SEED = 11
  const nPrompts = [37, 6, 30]

  /** A prompt, one that stays in the tail, one that takes the tail along, then two windows of decoding. */
  async function converse(policy: PolicySpec) {
    const sequence = model().createSequence({ policy, seed: SEED })
    const ids = someIds(73, model().config.vocabSize)
    await sequence.prefill(ids.slice(0, 37))
    await sequence.prefill(ids.slice(37, 43))
    await sequence.prefill(ids.slice(43))
    await idsOf(sequence, null, 2 * WINDOW + 2)
    return sequence
  }

  /** Tokens of each compression, and where they start. */
  const groups = [
    { nTokens: 37, start: 0 },
    { nTokens: 36, start: 37 },
    { nTokens: WINDOW, start: 73 },
    { nTokens: WINDOW, start: 73 + WINDOW },
  ]

  async function exported({ pool, layer, segment, nTokens }: Packed, table: Tensor) {
    const { device, config } = model()
    const { nKvHeads, headDim } = config
    const out = {
      kCodes: device.tensor('u8', [nKvHeads, nTokens, headDim]),
      vCodes: device.tensor('u8', [nKvHeads, nTokens, headDim]),
      kParams: device.tensor('f32', [nKvHeads, 2, headDim]),
      vParams: device.tensor('f32', [nKvHeads, 2, nTokens]),
      vChannel: device.tensor('f32', [nKvHeads, headDim]),
      positions: device.tensor('i32', [nKvHeads, nTokens]),
    }
    exportSegment({ pool, table, layer, segment, ...out })
    const values = Object.entries(out).map(async ([name, tensor]) => {
      const numbers: ArrayLike<number> = await tensor.read()
      tensor.dispose()
      return [name, numbers] as const
    })
    return Object.fromEntries(await Promise.all(values)) as Record<keyof typeof out, number[]>
  }

  describe.each(policies)('%s', (_, policy) => {
    const { compression } = resolvePolicy(policy)
    const { high, low, metric, windowMetric, nSalient, promptProbes, windowProbes } = compression!
    const isMixed = typeof policy === 'object' && policy.name !== 'uniform'
    const looks = isMixed && metric !== 'locality'

    test('saliency: rows that the policy drew, scored as in Eq. 8', async () => {
      const sequence = await converse(policy)
      const { nLayers, nHeads, nKvHeads, headDim } = model().config
      expect(probed).toHaveLength(looks ? groups.length * nLayers : 0)
      for (const [index, call] of probed.entries()) {
        const group = Math.floor(index / nLayers)
        const { nTokens } = groups[group]
        const seed = deriveSeed(toSeed(SEED), group)
        const isWindow = group >= 2
        // the second group: a tail of 6 before a prompt of 30
        const nTail = isWindow ? 0 : nTokens - nPrompts[group * 2]
        const drawn = isWindow
          ? windowProbes(seed)
          : promptProbes(nTokens - nTail, seed, index % nLayers)
        // Probe rows are kept in slots of their own.
        const rows = await call.rows
        expect(new Set(Array.from(rows)).size).toBe(drawn.length)
        expect(Array.from(await call.positions)).toEqual([...drawn].map((row) => nTail + row))
        expect(call.nTokens).toBe(nTokens)

        const expected = probeAttention({
          q: await call.q,
          lse: await call.lse,
          k: await call.k,
          rows,
          positions: await call.positions,
          nHeads,
          nKvHeads,
          headDim,
          kvLen: nTokens,
          scale: 1 / Math.sqrt(headDim),
          normalization:
            (isWindow ? windowMetric : metric) === 'normalized' ? 'normalized' : 'accumulated',
        })
        expectClose(await call.scores, expected, {
          name: `scores of group ${group}`,
          shape: [nKvHeads, nTokens],
          tolerance: tolerance.probeScores,
        })
      }
      sequence.dispose()
    })

    test('split: the top r of each KV head, by those scores', async () => {
      const sequence = await converse(policy)
      const { nLayers, nKvHeads } = model().config
      const perGroup = isMixed ? 2 * nLayers : nLayers
      expect(packed).toHaveLength(groups.length * perGroup)
      for (const [group, { nTokens }] of groups.entries()) {
        for (let layer = 0; layer < nLayers; layer++) {
          const calls = packed.filter(
            (call, i) => Math.floor(i / perGroup) === group && call.layer === layer,
          )
          const all = Array.from({ length: nKvHeads * nTokens }, (_, i) => i % nTokens)
          const sums = looks
            ? await probed[group * nLayers + layer].scores
            : Float32Array.from(all, (row) => (metric === 'locality' ? row : 0))
          const isCausal = (group < 2 ? metric : windowMetric) === 'causal'
          const scores = Float64Array.from(sums, (sum, i) =>
            isCausal ? sum / (nTokens - (i % nTokens)) : sum,
          )
          const count = nSalient(nTokens)
          const split = selectSalient({ scores, nHeads: nKvHeads, n: nTokens, count })
          const expected = [split.salient, split.regular].filter(({ length }) => length > 0)
          const found = await Promise.all(calls.map(({ rows }) => rows))
          expect(found.map((rows) => Array.from(rows))).toEqual(
            expected.map((rows) => Array.from(rows)),
          )
        }
      }
      sequence.dispose()
    })

    test('codes, scales and channels: bit for bit the reference packing', async () => {
      const sequence = await converse(policy)
      const { nKvHeads, headDim, nLayers } = model().config
      const newest = packed.at(-1)!.table
      for (const [index, call] of packed.entries()) {
        const isHigh = !isMixed || index % 2 === 0
        const { keyBits, valueBits, keyRange, valueRange } = isHigh ? high : low
        const rows = await call.rows
        const expected = packSegment({
          k: await call.k,
          v: await call.v,
          rows,
          nKvHeads,
          headDim,
          keyFormat: `u${keyBits}` as SegmentFormat,
          valueFormat: `u${valueBits}` as SegmentFormat,
          keyRange,
          valueRange,
        }) as unknown as Record<string, number[]>
        const actual = await exported(call, newest)
        const name = (what: string) => `${what} of segment ${call.segment}, layer ${call.layer}`
        const same = (what: keyof typeof actual, reference: ArrayLike<number>, shape: number[]) =>
          expectIdentical(actual[what], reference, { name: name(what), shape })
        const interleaved = (scale: number[], zero: number[], width: number) =>
          Array.from({ length: nKvHeads }, (_, h) => [
            ...scale.slice(h * width, (h + 1) * width),
            ...zero.slice(h * width, (h + 1) * width),
          ]).flat()
        const { nTokens } = call
        const { kScale, kZero, vScale, vZero } = expected
        same('kCodes', expected.kCodes, [nKvHeads, nTokens, headDim])
        same('vCodes', expected.vCodes, [nKvHeads, nTokens, headDim])
        same('kParams', interleaved(kScale, kZero, headDim), [nKvHeads, 2, headDim])
        same('vParams', interleaved(vScale, vZero, nTokens), [nKvHeads, 2, nTokens])
        same('vChannel', expected.vChannel, [nKvHeads, headDim])
        const { start } = groups[Math.floor(index / ((isMixed ? 2 : 1) * nLayers))]
        same(
          'positions',
          Array.from(rows, (row) => start + row),
          [nKvHeads, nTokens],
        )
      }
      sequence.dispose()
    })
  })

  test('what is stored is never quantized again', async () => {
    const sequence = model().createSequence({ policy: zip, seed: SEED })
    const ids = someIds(200, model().config.vocabSize)
    const before: { call: Packed; content: unknown }[] = []
    const turns = [
      ids.slice(0, 37),
      ids.slice(37, 43),
      ids.slice(43, 90),
      null,
      null,
      ids.slice(90),
    ]
    for (const turn of turns) {
      const first = packed.length
      if (turn) await sequence.prefill(turn)
      else await idsOf(sequence, null, WINDOW + 3)
      await idsOf(sequence, null, 2) // a step: the page table is written when one needs it
      const { table } = packed.at(-1)!
      for (const { call, content } of before) expect(await exported(call, table)).toEqual(content)
      for (const call of packed.slice(first)) {
        before.push({ call, content: await exported(call, table) })
      }
    }
    expect(sequence.segments).toHaveLength(before.length / model().config.nLayers)
    expect(sequence.segments.length).toBeGreaterThanOrEqual(5 * 2)
    sequence.dispose()
  })
})
