/** Every op once, at a size that takes no time, held to lib/reference. */
import { type BenchTensors, valuesOf } from '../bench/bench-tensors.js'
import { checkClose, kTolerance } from '../bench/check.js'
import { firstHead, PackedKv } from '../bench/packed-kv.js'
import * as ops from '../ops/index.js'
import { multiplyAdd, readStream } from '../ops/roofline.js'
import { toSeed, uniform } from '../random.js'
import * as reference from '../reference/index.js'

/** Runs an op and rejects with `ERR_ZC_INTERNAL` if its result is not the reference's. */
export type OpCheck = (tensors: BenchTensors) => Promise<void>

const kHeads = { nHeads: 4, nKvHeads: 2, headDim: 64 }
/** Tokens of a prompt: more than two pages, and a part of one. */
const kTokens = 37
const kTailTokens = 5
const kScale = 1 / Math.sqrt(kHeads.headDim)

/** By the op's name. */
export const OP_CHECKS: Readonly<Record<string, OpCheck>> = {
  linear: async (tensors) => {
    const [m, n, k] = [3, 33, 64]
    const x = tensors.normal('f32', [m, k], { seed: 2 })
    const weight = tensors.normal('f16', [n, k], { deviation: 0.25 })
    const out = tensors.output('f32', [m, n])
    ops.linear({ x, weight, out })
    const [xs, weights, actual] = await valuesOfAll(x, weight, out)
    const expected = reference.linear({ x: xs, weight: weights, m, n, k })
    checkClose(actual, expected, { name: 'out', tolerance: kTolerance.f32Linear, rowLength: n })
  },

  groupedLinear: async (tensors) => {
    const [m, k] = [3, 64]
    const x = tensors.normal('bf16', [m, k], { seed: 2 })
    const products = [33, 16, 7].map((n, i) => ({
      weight: tensors.normal('bf16', [n, k], { deviation: 0.25, seed: 3 + i }),
      out: tensors.output('f32', [m, n]),
    }))
    ops.groupedLinear({ x, products })
    for (const [i, { weight, out }] of products.entries()) {
      const [xs, weights, actual] = await valuesOfAll(x, weight, out)
      const n = weight.shape[0] as number
      const expected = reference.linear({ x: xs, weight: weights, m, n, k })
      const name = `products[${i}].out`
      checkClose(actual, expected, { name, tolerance: kTolerance.f32Linear, rowLength: n })
    }
  },

  // With weights of 8 bits.
  quantizeWeight: async (tensors) => {
    const [m, n, k] = [3, 33, 80]
    const x = tensors.normal('bf16', [m, k], { seed: 2 })
    const stored = tensors.normal('f16', [n, k], { deviation: 0.25 })
    const weight = tensors.output('i8', [n, k])
    const scales = tensors.output('f32', [n])
    const out = tensors.output('f32', [m, n])
    ops.quantizeWeight({ x: stored, out: weight, scales })
    ops.linear({ x, weight, scales, out })
    const [xs, weights, codes, ss, actual] = await valuesOfAll(x, stored, weight, scales, out)
    const quantized = reference.quantizeWeight({ x: weights, n, k })
    exactly('codes', codes, quantized.codes)
    exactly('scales', ss, quantized.scales)
    const expected = reference.linear({ x: xs, weight: codes, scales: ss, m, n, k })
    checkClose(actual, expected, { name: 'out', tolerance: kTolerance.i8Linear, rowLength: n })
  },

  routeExperts: async (tensors) => {
    const [n, nExperts, nChosen] = [5, 12, 3]
    const shape = { n, nExperts, nChosen }
    const scoring = { scores: 'sigmoid', normalized: true, scale: 2.5 } as const
    const correction = tensors.normal('f32', [nExperts], { seed: 6 })
    const expertScales = tensors.normal('f32', [nExperts], { seed: 7 })
    for (const isCorrected of [false, true]) {
      const extras = { ...scoring, correction, expertScales }
      const routed = routing(tensors, shape, isCorrected ? extras : {})
      const { logits, weights, experts, pairs, offsets } = routed
      const actual = await valuesOfAll(logits, weights, experts, pairs, offsets)
      const [corrections, scales] = await valuesOfAll(correction, expertScales)
      const own = { ...scoring, correction: corrections, expertScales: scales }
      const expected = reference.routeExperts({
        ...{ logits: actual[0], nExperts, nChosen, ...(isCorrected ? own : {}) },
      })
      const within = { tolerance: kTolerance.f32Activation, rowLength: nChosen }
      checkClose(actual[1], expected.weights, { name: 'weights', ...within })
      exactly('experts', actual[2], expected.experts)
      exactly('pairs', actual[3], expected.pairs)
      exactly('offsets', actual[4], expected.offsets)
    }
  },

  expertLinear: async (tensors) => {
    const [m, n, k, nExperts] = [5, 33, 64, 4]
    const { experts, pairs, offsets } = routing(tensors, { n: m, nExperts, nChosen: 2 })
    const x = tensors.normal('bf16', [m, k], { seed: 2 })
    const weight = tensors.normal('bf16', [nExperts, n, k], { deviation: 0.25 })
    const bias = tensors.normal('bf16', [nExperts, n], { seed: 3 })
    const out = tensors.output('f32', [2 * m, n])
    ops.expertLinear({ x, weight, bias, pairs, offsets, out })
    const [xs, ws, bs, chosen, actual] = await valuesOfAll(x, weight, bias, experts, out)
    const values = { x: xs, weight: ws, bias: bs, experts: chosen }
    const expected = reference.expertLinear({ ...values, m, n, k })
    checkClose(actual, expected, { name: 'out', tolerance: kTolerance.f32Linear, rowLength: n })
  },

  addExperts: async (tensors) => {
    const [n, nChosen, width] = [3, 2, 40]
    const x = tensors.normal('f32', [n * nChosen, width])
    const weights = tensors.normal('f32', [n, nChosen], { seed: 2 })
    const out = tensors.normal('f32', [n, width], { seed: 3 })
    for (const accumulate of [false, true]) {
      const before = accumulate ? await valuesOf(out) : undefined
      ops.addExperts({ x, weights, out, accumulate })
      const [xs, ws, actual] = await valuesOfAll(x, weights, out)
      const expected = reference.addExperts({ x: xs, weights: ws, before, nChosen })
      checkClose(actual, expected, { name: 'out', tolerance: kTolerance.f32Norm, rowLength: width })
    }
  },

  embedding: async (tensors) => {
    const weight = tensors.normal('f32', [9, 8])
    const ids = [8, 0, 3]
    const out = tensors.output('f32', [3, 8])
    ops.embedding({ ids: tensors.i32(ids), weight, out })
    const [weights, actual] = await valuesOfAll(weight, out)
    exactly('out', actual, reference.embedding({ ids, weight: weights, width: 8 }))
    const some = tensors.output('f32', [3, 3])
    ops.embedding({ ids: tensors.i32(ids), weight, out: some, column: 4 })
    const columns = { width: 3, column: 4, stride: 8 }
    exactly('out', await valuesOf(some), reference.embedding({ ids, weight: weights, ...columns }))
  },

  gatherRows: async (tensors) => {
    const x = tensors.normal('f16', [9, 8])
    const rows = [7, 7, 1]
    const out = tensors.output('f16', [3, 8])
    ops.gatherRows({ x, rows: tensors.i32(rows), out })
    const [xs, actual] = await valuesOfAll(x, out)
    exactly('out', actual, reference.gatherRows({ x: xs, rows, width: 8 }))
  },

  convert: async (tensors) => {
    const x = tensors.normal('f32', [1, 100])
    const out = tensors.output('f16', [1, 100])
    ops.convert({ x, out })
    const [xs, actual] = await valuesOfAll(x, out)
    exactly('out', actual, reference.convert({ x: xs, dtype: 'f16' }))
  },

  countNonFinite: async (tensors) => {
    const x = tensors.f32([0, NaN, 1, Infinity, -Infinity, 5])
    const count = tensors.output('i32', [1])
    ops.countNonFinite({ x, count })
    exactly('count', await valuesOf(count), [3])
  },

  rmsNorm: async (tensors) => {
    const [width, eps] = [96, 1e-5]
    const x = tensors.normal('f32', [3, width])
    const weight = tensors.normal('f32', [width], { seed: 2 })
    const out = tensors.output('f32', [3, width])
    const within = { name: 'out', tolerance: kTolerance.f32Norm, rowLength: width }
    ops.rmsNorm({ x, weight, out, eps })
    const [xs, weights, normed] = await valuesOfAll(x, weight, out)
    const first = reference.rmsNorm({ x: xs, weight: weights, width, eps })
    checkClose(normed, first, within)
    // Without a weight, added to that, and scaled.
    const scale = 0.75
    ops.rmsNorm({ x, out, eps, accumulate: true, scale })
    const sum = reference.rmsNorm({ x: xs, width, eps, before: normed, scale })
    checkClose(await valuesOf(out), sum, within)
  },

  ropeTable: async (tensors) => {
    const { cos, sin, expected } = ropeTables(tensors)
    const [actualCos, actualSin] = await valuesOfAll(cos, sin)
    // The angle is a product in float32.
    const within = { tolerance: 1e-4, floor: 1 }
    checkClose(actualCos, expected.cos, { name: 'cos', ...within })
    checkClose(actualSin, expected.sin, { name: 'sin', ...within })
  },

  rope: async (tensors) => {
    const { headDim, nHeads } = kHeads
    const { cos, sin } = ropeTables(tensors)
    const x = tensors.normal('f32', [kPositions.length, nHeads, headDim])
    const out = tensors.output('f32', [kPositions.length, nHeads, headDim])
    ops.rope({ x, cos, sin, out })
    const [xs, cosines, sines, actual] = await valuesOfAll(x, cos, sin, out)
    const expected = reference.rope({ x: xs, cos: cosines, sin: sines, nHeads, headDim })
    checkClose(actual, expected, {
      name: 'out',
      tolerance: kTolerance.f32Rope,
      rowLength: headDim,
    })
  },

  siluGate: (tensors) => checkGate(tensors, ops.siluGate, reference.siluGate),
  geluGate: (tensors) => checkGate(tensors, ops.geluGate, reference.geluGate),
  clampedSwiglu: (tensors) => {
    const own = { alpha: 1.702, limit: 1.5 }
    return checkGate(
      tensors,
      (args) => ops.clampedSwiglu({ ...args, ...own }),
      (args) => reference.clampedSwiglu({ ...args, ...own }),
    )
  },

  sigmoidGate: async (tensors) => {
    const gate = tensors.normal('f32', [2, 50])
    const x = tensors.normal('f32', [2, 50], { seed: 2 })
    const out = tensors.output('f32', [2, 50])
    ops.sigmoidGate({ gate, x, out })
    const [gates, xs, actual] = await valuesOfAll(gate, x, out)
    const within = { name: 'out', tolerance: kTolerance.f32Activation }
    checkClose(actual, reference.sigmoidGate({ gate: gates, x: xs }), within)
  },

  softCap: async (tensors) => {
    const x = tensors.normal('f32', [2, 50], { deviation: 4 })
    const out = tensors.output('f32', [2, 50])
    ops.softCap({ x, cap: 3, out })
    const [xs, actual] = await valuesOfAll(x, out)
    const within = { name: 'out', tolerance: kTolerance.f32Activation }
    checkClose(actual, reference.softCap({ x: xs, cap: 3 }), within)
  },

  causalConv: async (tensors) => {
    const [channels, width] = [48, 4]
    const x = tensors.normal('f32', [kStateRows, channels])
    const weight = tensors.normal('f32', [channels, width], { seed: 2 })
    const bias = tensors.normal('f32', [channels], { seed: 3 })
    const out = tensors.output('f32', [kStateRows, channels])
    const kept = (width - 1) * channels
    const { before, paged, after } = await statePages(tensors, kept, 2)
    ops.causalConv({ x, weight, bias, out, ...paged, nHeads: 1 })
    const [xs, weights, biases, actual] = await valuesOfAll(x, weight, bias, out)
    const options = { x: xs, weight: weights, bias: biases, channels, width }
    const expected = reference.causalConv({ ...options, before: before.subarray(0, kept) })
    const { causalConv: tolerance } = kTolerance
    checkClose(actual, expected.out, { name: 'out', tolerance, rowLength: channels })
    exactly('pool', await after(), [...expected.last, ...before.subarray(kept)])
  },

  gatedDelta: async (tensors) => {
    const [nKeyHeads, nHeads, keyDim, valueDim] = [1, 2, 32, 16]
    const rows = kStateRows
    const qkv = tensors.normal('f32', [rows, 2 * nKeyHeads * keyDim + nHeads * valueDim])
    const decay = tensors.normal('f32', [rows, nHeads], { seed: 2 })
    const beta = tensors.normal('f32', [rows, nHeads], { seed: 3 })
    const decayLog = tensors.normal('f32', [nHeads], { seed: 4 })
    const decayBias = tensors.normal('f32', [nHeads], { seed: 5 })
    const out = tensors.output('f32', [rows, nHeads, valueDim])
    const headFloats = keyDim * valueDim
    const { before, paged, after } = await statePages(tensors, headFloats, 1 + nHeads)
    ops.gatedDelta({ qkv, decay, beta, decayLog, decayBias, out, ...paged, nKeyHeads })
    const inputs = await valuesOfAll(qkv, decay, beta, decayLog, decayBias, out)
    const [qkvs, decays, betas, logs, biases, actual] = inputs
    const expected = reference.gatedDelta({
      ...{ qkv: qkvs, decay: decays, beta: betas, decayLog: logs, decayBias: biases },
      ...{ nKeyHeads, nHeads, keyDim, valueDim, state: before.subarray(headFloats) },
    })
    const { gatedDelta: tolerance } = kTolerance
    checkClose(actual, expected.out, { name: 'out', tolerance, rowLength: valueDim, floor: 0.01 })
    const pages = (await after()).subarray(headFloats)
    checkClose(pages, expected.state, { name: 'pool', tolerance, rowLength: headFloats })
  },

  selectiveScan: async (tensors) => {
    const [nGroups, nHeads, stateDim, headDim] = [1, 2, 32, 16]
    const rows = kStateRows
    const xbc = tensors.normal('f32', [rows, nHeads * headDim + 2 * nGroups * stateDim])
    const step = tensors.normal('f32', [rows, nHeads], { seed: 2 })
    const stepBias = tensors.normal('f32', [nHeads], { seed: 3 })
    const decayLog = tensors.normal('f32', [nHeads], { seed: 4 })
    const skip = tensors.normal('f32', [nHeads], { seed: 5 })
    const out = tensors.output('f32', [rows, nHeads, headDim])
    const headFloats = stateDim * headDim
    const { before, paged, after } = await statePages(tensors, headFloats, 1 + nHeads)
    ops.selectiveScan({ xbc, step, stepBias, decayLog, skip, out, ...paged, nGroups })
    const inputs = await valuesOfAll(xbc, step, stepBias, decayLog, skip, out)
    const [xbcs, steps, biases, logs, skips, actual] = inputs
    const expected = reference.selectiveScan({
      ...{ xbc: xbcs, step: steps, stepBias: biases, decayLog: logs, skip: skips },
      ...{ nGroups, nHeads, stateDim, headDim, state: before.subarray(headFloats) },
    })
    const { selectiveScan: tolerance } = kTolerance
    checkClose(actual, expected.out, { name: 'out', tolerance, rowLength: headDim, floor: 0.25 })
    const pages = (await after()).subarray(headFloats)
    checkClose(pages, expected.state, { name: 'pool', tolerance, rowLength: headFloats })
  },

  flashAttention: async (tensors) => {
    const { q, k, v, out, lse } = promptAttention(tensors)
    const [qs, ks, vs, outs, lses] = await valuesOfAll(q, k, v, out, lse)
    const lengths = { cuSeqlensQ: [0, kTokens], cuSeqlensK: [0, kTokens] }
    const expected = reference.flashAttention({
      ...{ q: qs, k: ks, v: vs, ...lengths, ...kHeads, scale: kScale, causal: true },
    })
    checkAttention(outs, lses, expected, kTolerance.f16Attention)
  },

  probeAttention: async (tensors) => {
    const { q, k, lse } = promptAttention(tensors)
    const rows = [5, 20, kTokens - 1]
    const ids = tensors.i32(rows)
    const scores = tensors.output('f32', [kHeads.nKvHeads, kTokens])
    ops.probeAttention({ q, lse, k, rows: ids, positions: ids, scores, scale: kScale })
    const [qs, lses, ks, actual] = await valuesOfAll(q, lse, k, scores)
    const seen = { rows, positions: rows, kvLen: kTokens, scale: kScale, ...kHeads }
    const expected = reference.probeAttention({
      ...{ q: qs, lse: lses, k: ks, ...seen, normalization: 'normalized' },
    })
    const { probeScores: tolerance } = kTolerance
    checkClose(actual, expected, { name: 'scores', tolerance, rowLength: kTokens })
  },

  mergeAttention: async (tensors) => {
    const { nHeads, headDim } = kHeads
    const [outA, outB] = [1, 2].map((seed) =>
      tensors.normal('f32', [3, nHeads, headDim], { seed }),
    ) as [ops.Tensor, ops.Tensor]
    const lseA = tensors.normal('f32', [3, nHeads], { seed: 3 })
    const lseB = tensors.normal('f32', [3, nHeads], { seed: 4 })
    const out = tensors.output('f32', [3, nHeads, headDim])
    const lse = tensors.output('f32', [3, nHeads])
    ops.mergeAttention({ outA, lseA, outB, lseB, out, lse })
    const [a, la, b, lb, outs, lses] = await valuesOfAll(outA, lseA, outB, lseB, out, lse)
    const expected = reference.mergeAttention({ outA: a, lseA: la, outB: b, lseB: lb, headDim })
    checkAttention(outs, lses, expected, kTolerance.f32Attention)
  },

  attentionSinks: async (tensors) => {
    const { nHeads, headDim } = kHeads
    const out = tensors.normal('f32', [3, nHeads, headDim], { seed: 1 })
    const lse = tensors.normal('f32', [3, nHeads], { seed: 2 })
    const sinks = tensors.normal('f32', [nHeads], { seed: 3 })
    const [before, lseBefore, logits] = await valuesOfAll(out, lse, sinks)
    ops.attentionSinks({ out, lse, sinks })
    const [outs, lses] = await valuesOfAll(out, lse)
    const given = { out: before, lse: lseBefore, sinks: logits, headDim }
    checkAttention(outs, lses, reference.attentionSinks(given), kTolerance.f32Attention)
  },

  selectSalient: async (tensors) => {
    const [nHeads, n, count] = [2, 61, 23]
    const scores = tensors.normal('f32', [nHeads, n])
    const salient = tensors.output('i32', [nHeads, count])
    const regular = tensors.output('i32', [nHeads, n - count])
    ops.selectSalient({ scores, salient, regular })
    const [values, ids, others] = await valuesOfAll(scores, salient, regular)
    const expected = reference.selectSalient({ scores: values, nHeads, n, count })
    exactly('salient', ids, expected.salient)
    exactly('regular', others, expected.regular)
  },

  quantize: async (tensors) => {
    const { tensors: made, expected } = await quantized(tensors)
    const [codes, scale, zero, channel] = await valuesOfAll(...made)
    exactly('codes', codes, expected.codes)
    exactly('scale', scale, expected.scale)
    exactly('zero', zero, expected.zero)
    exactly('channel', channel, expected.channel)
  },

  dequantize: async (tensors) => {
    const { tensors: made, expected, options } = await quantized(tensors)
    const [codes, scale, zero, channel] = made
    const out = tensors.output('f32', [options.rows, options.channels])
    ops.dequantize({ ...{ codes, scale, zero, channel, out }, scheme: 'cst', bits: options.bits })
    const restored = reference.dequantize({ ...expected, ...options })
    checkClose(await valuesOf(out), restored, { name: 'out', tolerance: 1e-6 })
  },

  restoreOutliers: async (tensors) => {
    const [channels, perLine] = [300, 2]
    const out = tensors.normal('f32', [3, channels])
    const values = tensors.normal('f16', [3, perLine], { seed: 2 })
    const places = [0, 299, 256, 1, 7, 8]
    const bytes = Uint8Array.from(places.flatMap((place) => [place % 256, place >> 8]))
    const [before, valuesOut] = await valuesOfAll(out, values)
    const placed = tensors.output('u8', [3, perLine, 2]).write(bytes)
    ops.restoreOutliers({ values, places: placed, out, scheme: 'tokenwise' })
    const given = { x: before, channels, values: valuesOut, places, perLine }
    const expected = reference.restoreOutliers({ ...given, scheme: 'tokenwise' })
    exactly('out', await valuesOf(out), expected)
  },

  appendKv: async (tensors) => {
    const kv = layer(tensors)
    kv.append()
    await checkTail(kv)
  },

  ropeAppend: async (tensors) => {
    const { nHeads, nKvHeads, headDim } = kHeads
    const kv = layer(tensors)
    const rows = kPositions.length
    const { cos, sin } = ropeTables(tensors)
    const q = tensors.normal('f32', [rows, nHeads, headDim])
    const k = tensors.normal('f32', [rows, nKvHeads, headDim], { seed: 2 })
    const v = tensors.normal('f16', [rows, nKvHeads, headDim], { seed: 3 })
    const qOut = tensors.output('f16', [rows, nHeads, headDim])
    const kOut = tensors.output('f16', [rows, nKvHeads, headDim])
    const paged = { pool: kv.pool, tables: kv.table, starts: tensors.i32([0]), layer: 0 }
    ops.ropeAppend({ q, k, v, cos, sin, qOut, kOut, ...paged, cuSeqlens: tensors.i32([0, rows]) })
    const [qs, ks, cosines, sines] = await valuesOfAll(q, k, cos, sin)
    const angles = { cos: cosines, sin: sines, headDim }
    const turned = [
      ['qOut', qOut, reference.rope({ x: qs, ...angles, nHeads })],
      ['kOut', kOut, reference.rope({ x: ks, ...angles, nHeads: nKvHeads })],
    ] as const
    for (const [name, actual, expected] of turned) {
      const within = { name, tolerance: kTolerance.f16Output, rowLength: headDim }
      checkClose(await valuesOf(actual), expected, within)
    }
    // The tail's newest rows.
    const { k: tailK, v: tailV } = kv.unpackedTail()
    const [tailKs, tailVs, kept, vs] = await valuesOfAll(tailK, tailV, kOut, v)
    exactly('k', tailKs.slice(-kept.length), kept)
    exactly('v', tailVs.slice(-vs.length), vs)
  },

  unpackSegment: async (tensors) => {
    const kv = layer(tensors)
    kv.append()
    await checkTail(kv)
  },

  packSegment: async (tensors) => {
    await checkPacked(packedLayer(tensors))
  },

  packSegments: async (tensors) => {
    const kv = layer(tensors)
    kv.packAll()
    await checkPacked(kv)
  },

  exportSegment: async (tensors) => {
    const kv = packedLayer(tensors)
    const { positions } = await kv.exported(0)
    const [segment] = kv.segments
    exactly(
      'positions',
      positions as ArrayLike<number>,
      segment?.ids.subarray(0, segment.nTokens) ?? [],
    )
  },

  importSegment: async (tensors) => {
    const kv = packedLayer(tensors)
    const other = tensors.output('u8', kv.pool.shape)
    for (const index of kv.segments.keys()) {
      const content = exportAll(tensors, kv, index, kv.pool)
      ops.importSegment({ ...content, pool: other, table: kv.table, layer: 0, segment: index + 1 })
      const again = exportAll(tensors, kv, index, other)
      for (const name of Object.keys(content) as (keyof typeof content)[]) {
        const [before, after] = await valuesOfAll(content[name], again[name])
        exactly(name, after, before)
      }
    }
  },

  mixedAttention: async (tensors) => {
    const { nHeads, nKvHeads, headDim } = kHeads
    const kv = packedLayer(tensors)
    kv.append()
    const q = tensors.normal('f16', [1, nHeads, headDim], { deviation: 0.25, seed: 6 })
    const out = tensors.output('f16', [1, nHeads, headDim])
    const lse = tensors.output('f32', [1, nHeads])
    kv.attention(q, out, lse)(kv.pool)
    const exported = await Promise.all(kv.segments.map((_, index) => kv.exported(index)))
    const [k, v] = await Promise.all([firstHead(kv.tailK), firstHead(kv.tailV)])
    const segments = [{ nTokens: kTailTokens, k, v }, ...exported]
    const [qs, outs, lses] = await valuesOfAll(q, out, lse)
    const group = nHeads / nKvHeads
    const expected = reference.mixedAttention({
      q: qs.subarray(0, group * headDim),
      segments: segments.map((one) => ({ ...one, positions: undefined }) as reference.Segment),
      ...{ nHeads: group, nKvHeads: 1, headDim, scale: kScale },
    })
    const own = [outs.subarray(0, group * headDim), lses.subarray(0, group)] as const
    checkAttention(...own, expected, kTolerance.mixedAttention)
  },

  setTailLengths: async (tensors) => {
    const kv = layer(tensors)
    const before = await valuesOf(kv.table)
    const lengths = tensors.i32([kTailTokens - 2])
    ops.setTailLengths({ tables: kv.table, starts: tensors.i32([0]), lengths })
    const after = await valuesOf(kv.table)
    exactly('tables', after, [kTailTokens - 2, ...before.subarray(1)])
  },

  copyPages: async (tensors) => {
    const [unit, pageBytes] = [64, 256]
    const bytes = Uint8Array.from({ length: 16 * unit }, (_, i) => i % 251)
    const pool = tensors.output('u8', [bytes.length]).write(bytes)
    ops.copyPages({ pool, from: tensors.i32([1]), to: tensors.i32([9]), pageBytes })
    const expected = bytes.slice()
    expected.copyWithin(9 * unit, unit, unit + pageBytes)
    exactly('pool', await pool.read(), expected)
  },

  storeProbes: async (tensors) => {
    const { nHeads, headDim } = kHeads
    const q = tensors.normal('f32', [3, nHeads, headDim])
    const lse = tensors.normal('f32', [3, nHeads], { seed: 2 })
    const probeQ = tensors.output('f32', [2, nHeads, headDim])
    const probeLse = tensors.output('f32', [2, nHeads])
    // Row 0 is no probe.
    ops.storeProbes({ q, lse, slots: tensors.i32([-1, 1, 0]), probeQ, probeLse })
    const [qs, lses, keptQ, keptLse] = await valuesOfAll(q, lse, probeQ, probeLse)
    const width = nHeads * headDim
    exactly('probeQ', keptQ, [...qs.subarray(2 * width), ...qs.subarray(width, 2 * width)])
    exactly('probeLse', keptLse, [
      ...lses.subarray(2 * nHeads),
      ...lses.subarray(nHeads, 2 * nHeads),
    ])
  },

  sample: async (tensors) => {
    const vocabSize = 100
    const chosen = { temperature: 0.8, topK: 0, topP: 0.9, minP: 0, repetitionPenalty: 1 }
    const seed = toSeed(1)
    const packed = ops.packSampleParams({ ...chosen, seed, step: 0 })
    const logits = tensors.normal('f32', [1, vocabSize])
    const ids = tensors.output('i32', [1])
    const logprobs = tensors.output('f32', [1])
    ops.sample({
      ...{ logits, ids, logprobs, params: tensors.f32(packed, [1, ops.SAMPLE_PARAMS]) },
      seen: tensors.output('u8', [1, vocabSize]),
      contexts: tensors.i32([-1]),
    })
    const [values, id, logprob] = await valuesOfAll(logits, ids, logprobs)
    const expected = reference.sample({ logits: values, params: chosen, u: uniform(seed, 0) })
    exactly('ids', id, [expected.id])
    const { logprob: tolerance } = kTolerance
    checkClose(logprob, [expected.logprob], { name: 'logprobs', tolerance, floor: 1 })
  },

  feedTokens: async (tensors) => {
    const [sampled, source, given] = [
      [11, 12],
      [1, -1, 0],
      [1, 2, 3],
    ].map((x) => tensors.i32(x))
    const out = tensors.output('i32', [3])
    ops.feedTokens({ sampled, source, given, out } as ops.FeedTokensArgs)
    exactly('out', await out.read(), [12, 2, 11])
  },

  readStream: async (tensors) => {
    const x = Int32Array.from({ length: 1000 }, (_, i) => Math.imul(i, 0x9e3779b1))
    const out = tensors.output('i32', [3])
    readStream({ x: tensors.i32(x), out })
    exactly('out', await out.read(), reference.readStream({ x, parts: 3 }))
  },

  multiplyAdd: async (tensors) => {
    const x = tensors.normal('f32', [2, 40])
    const out = tensors.output('f32', [2, 40])
    const chain = { factor: 0.5, summand: 0.25, steps: 7 }
    multiplyAdd({ x, out, ...chain })
    const [xs, actual] = await valuesOfAll(x, out)
    const expected = reference.multiplyAdd({ x: xs, ...chain })
    checkClose(actual, expected, { name: 'out', tolerance: kTolerance.multiplyAdd, floor: 1 })
  },
}

const kPositions = [0, 1, 77, 300]
const kStateRows = 5

/** The states of one sequence, one layer: pages of the same size, of a multiple of 16 floats, side by side. */
async function statePages(tensors: BenchTensors, pageFloats: number, nPages: number) {
  const before = tensors.normal('f32', [nPages * pageFloats], { seed: 6 })
  const floats = Float32Array.from(await valuesOf(before))
  const pool = tensors.output('u8', [floats.byteLength]).write(new Uint8Array(floats.buffer))
  const tables = tensors.i32(Array.from({ length: nPages }, (_, i) => (i * pageFloats) / 16))
  const rows = { cuSeqlens: tensors.i32([0, kStateRows]), states: tensors.i32([0]), layer: 0 }
  return {
    before: floats,
    paged: { pool, tables, ...rows },
    after: async () => new Float32Array((await pool.read()).buffer),
  }
}

async function checkGate(
  tensors: BenchTensors,
  op: typeof ops.siluGate,
  expected: typeof reference.siluGate,
): Promise<void> {
  const gate = tensors.normal('f32', [2, 50])
  const up = tensors.normal('f32', [2, 50], { seed: 2 })
  const out = tensors.output('f32', [2, 50])
  op({ gate, up, out })
  const [gates, ups, actual] = await valuesOfAll(gate, up, out)
  const within = { name: 'out', tolerance: kTolerance.f32Activation }
  checkClose(actual, expected({ gate: gates, up: ups }), within)
}

/** Rows routed to experts by random logits. */
function routing(
  tensors: BenchTensors,
  { n, nExperts, nChosen }: { n: number; nExperts: number; nChosen: number },
  scoring: Omit<
    ops.RouteExpertsArgs,
    'logits' | 'weights' | 'experts' | 'pairs' | 'offsets' | 'leastSum'
  > = {},
) {
  const routed = {
    logits: tensors.normal('f32', [n, nExperts], { seed: 5 }),
    weights: tensors.output('f32', [n, nChosen]),
    experts: tensors.output('i32', [n, nChosen]),
    pairs: tensors.output('i32', [n * nChosen]),
    offsets: tensors.output('i32', [nExperts + 1]),
  }
  ops.routeExperts({ ...routed, ...scoring })
  return routed
}

function ropeTables(tensors: BenchTensors) {
  const half = kHeads.headDim / 2
  const invFreq = tensors.f32(Array.from({ length: half }, (_, c) => 10_000 ** (-c / half)))
  const cos = tensors.output('f32', [kPositions.length, half])
  const sin = tensors.output('f32', [kPositions.length, half])
  ops.ropeTable({ positions: tensors.i32(kPositions), invFreq, cos, sin })
  const frequencies = Float32Array.from({ length: half }, (_, c) => 10_000 ** (-c / half))
  const options = { positions: kPositions, invFreq: frequencies, attentionScale: 1 }
  return { cos, sin, expected: reference.ropeTable(options) }
}

function promptAttention(tensors: BenchTensors) {
  const { nHeads, nKvHeads, headDim } = kHeads
  const q = tensors.normal('f16', [kTokens, nHeads, headDim], { deviation: 0.25, seed: 3 })
  const k = tensors.normal('f16', [kTokens, nKvHeads, headDim], { deviation: 0.25, seed: 4 })
  const v = tensors.normal('f16', [kTokens, nKvHeads, headDim], { deviation: 0.25, seed: 5 })
  const out = tensors.output('f16', [kTokens, nHeads, headDim])
  const lse = tensors.output('f32', [kTokens, nHeads])
  const starts = tensors.i32([0, kTokens])
  const lengths = { cuSeqlensQ: starts, cuSeqlensK: starts }
  ops.flashAttention({ q, k, v, out, lse, ...lengths, scale: kScale, causal: true })
  return { q, k, v, out, lse }
}

async function quantized(tensors: BenchTensors) {
  const options = { rows: 7, channels: 40, bits: 3, scheme: 'cst' } as const
  const { rows, channels, bits, scheme } = options
  const x = tensors.normal('f32', [rows, channels])
  const codes = tensors.output('u8', [rows, ops.codeBytesPerRow(channels, bits)])
  const scale = tensors.output('f16', [rows])
  const zero = tensors.output('f16', [rows])
  const channel = tensors.output('f16', [channels])
  ops.quantize({ x, codes, scale, zero, channel, scheme, bits })
  const expected = reference.quantize({ x: await valuesOf(x), ...options })
  return { tensors: [codes, scale, zero, channel] as const, expected, options }
}

/** A cache of one layer whose pages are laid out: two classes, and a tail. */
function layer(tensors: BenchTensors): PackedKv {
  const { nKvHeads, headDim } = kHeads
  return new PackedKv(tensors, {
    ...{ nKvHeads, headDim, tailTokens: kTailTokens, packedTokens: kTokens, dtype: 'f16' },
    classes: [
      { format: 'u4', share: 0.6 },
      { format: 'u2', share: 0.4 },
    ],
  })
}

function packedLayer(tensors: BenchTensors): PackedKv {
  const kv = layer(tensors)
  for (const index of kv.segments.keys()) kv.pack(index)
  return kv
}

async function checkPacked(kv: PackedKv): Promise<void> {
  for (const [index, { format }] of kv.segments.entries()) {
    const actual = await kv.exported(index)
    const [k, v] = await Promise.all([firstHead(kv.k), firstHead(kv.v)])
    const formats = { keyFormat: format, valueFormat: format, nKvHeads: 1 }
    const rows = actual.positions as ArrayLike<number>
    const expected = reference.packSegment({
      ...{ k, v, rows, headDim: kHeads.headDim, ...formats },
    }) as typeof actual
    exactly('kCodes', actual.kCodes, expected.kCodes)
    exactly('vCodes', actual.vCodes, expected.vCodes)
  }
}

async function checkTail(kv: PackedKv): Promise<void> {
  const { k, v } = kv.unpackedTail()
  const [ks, vs, tailK, tailV] = await valuesOfAll(k, v, kv.tailK, kv.tailV)
  exactly('k', ks, tailK)
  exactly('v', vs, tailV)
}

function exportAll(tensors: BenchTensors, kv: PackedKv, index: number, pool: ops.Tensor) {
  const { nKvHeads, headDim } = kHeads
  const n = kv.segments[index]?.nTokens ?? 0
  const out = {
    kCodes: tensors.output('u8', [nKvHeads, n, headDim]),
    vCodes: tensors.output('u8', [nKvHeads, n, headDim]),
    kParams: tensors.output('f32', [nKvHeads, 2, headDim]),
    vParams: tensors.output('f32', [nKvHeads, 2, n]),
    vChannel: tensors.output('f32', [nKvHeads, headDim]),
    positions: tensors.output('i32', [nKvHeads, n]),
  }
  ops.exportSegment({ ...out, pool, table: kv.table, layer: 0, segment: index + 1 })
  return out
}

function checkAttention(
  out: Float64Array,
  lse: Float64Array,
  expected: { out: ArrayLike<number>; lse: ArrayLike<number> },
  tolerance: number,
): void {
  checkClose(out, expected.out, { name: 'out', tolerance, rowLength: kHeads.headDim })
  const within = { tolerance: kTolerance.lse, rowLength: 1, floor: 1 }
  checkClose(lse, expected.lse, { name: 'lse', ...within })
}

function exactly(name: string, actual: ArrayLike<number>, expected: ArrayLike<number>): void {
  checkClose(actual, expected, { name, tolerance: 0 })
}

/** The values of some tensors, in their order. */
async function valuesOfAll<const T extends readonly ops.Tensor[]>(
  ...tensors: T
): Promise<{ [K in keyof T]: Float64Array }> {
  const values = await Promise.all(tensors.map(valuesOf))
  return values as { [K in keyof T]: Float64Array }
}
