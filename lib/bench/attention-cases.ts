import { flashAttention, probeAttention, type Tensor } from '../ops/index.js'
import { resolvePolicy } from '../policy/index.js'
import { toSeed } from '../random.js'
import {
  type FloatDtype,
  flashAttention as referenceFlashAttention,
  probeAttention as referenceProbeAttention,
} from '../reference/index.js'
import { type BenchTensors, valuesOf } from './bench-tensors.js'
import { checkClose, kTolerance } from './check.js'
import { nameOf, type OpCase } from './op-case.js'

interface Heads {
  readonly nHeads: number
  readonly nKvHeads: number
  readonly headDim: number
}

/** Heads of a layer of the model of 25M parameters, and of LLaMA 3 8B. */
export const kSmallHeads: Heads = { nHeads: 8, nKvHeads: 2, headDim: 64 }
export const kLargeHeads: Heads = { nHeads: 32, nKvHeads: 8, headDim: 128 }

/** The prompt's own attention, and the scoring of its keys by 10% of its rows. */
export const attentionCases: readonly OpCase[] = [
  flashCase(512, kSmallHeads, 'f32'),
  flashCase(512, kLargeHeads, 'f16'),
  flashCase(4096, kSmallHeads, 'f32'),
  flashCase(4096, kLargeHeads, 'f16', true),
  probeCase(4096, kSmallHeads, 'f32'),
  probeCase(4096, kLargeHeads, 'f16'),
  probeCase(16384, kSmallHeads, 'f32', true),
]

/** Query rows whose result is computed again, as shares of all. */
const kCheckedShares = [0, 0.37, 1]
/** Every so many keys, a score is computed again. */
const kCheckedKeys = 97

function flashCase(n: number, heads: Heads, dtype: FloatDtype, full = false): OpCase {
  const own = { op: 'flashAttention', shape: shapeOf(n, heads), dtype, full }
  return {
    ...own,
    group: `flashAttention ${n}`,
    async prepare(tensors) {
      const { nHeads, nKvHeads, headDim } = heads
      const attention = prompt(tensors, n, heads, dtype)
      const { q, k, v, out, lse } = attention
      return {
        bytes: (2 * nHeads + 2 * nKvHeads) * n * headDim * bytesOf(dtype) + 4 * n * nHeads,
        flops: 4 * nHeads * headDim * ((n * (n + 1)) / 2),
        run: attention.run,
        async check() {
          const [qs, ks, vs, outs, lses] = await Promise.all([q, k, v, out, lse].map(valuesOf))
          const width = nHeads * headDim
          for (const share of kCheckedShares) {
            const row = Math.round((n - 1) * share)
            // A causal row is the last one of a shorter prompt.
            const kvLength = (row + 1) * nKvHeads * headDim
            const expected = referenceFlashAttention({
              q: (qs as Float64Array).subarray(row * width, (row + 1) * width),
              k: (ks as Float64Array).subarray(0, kvLength),
              v: (vs as Float64Array).subarray(0, kvLength),
              cuSeqlensQ: [0, 1],
              cuSeqlensK: [0, row + 1],
              ...heads,
              scale: 1 / Math.sqrt(headDim),
              causal: true,
            })
            const name = `${nameOf(own)}: row ${row}`
            const tolerance = dtype === 'f32' ? kTolerance.f32Attention : kTolerance.f16Attention
            const actual = (outs as Float64Array).subarray(row * width, (row + 1) * width)
            checkClose(actual, expected.out, { name, tolerance, rowLength: headDim })
            const actualLse = (lses as Float64Array).subarray(row * nHeads, (row + 1) * nHeads)
            const lseOf = {
              name: `${name}: lse`,
              tolerance: kTolerance.lse,
              rowLength: 1,
              floor: 1,
            }
            checkClose(actualLse, expected.lse, lseOf)
          }
        },
      }
    },
  }
}

function probeCase(n: number, heads: Heads, dtype: FloatDtype, full = false): OpCase {
  const probes = resolvePolicy('zipcache').compression?.promptProbes(n, toSeed(0), 0)
  const rows = probes ?? new Int32Array(0)
  const shape = `${shapeOf(n, heads)} probes=${rows.length}`
  const own = { op: 'probeAttention', shape, dtype, full }
  return {
    ...own,
    group: 'probeAttention',
    async prepare(tensors) {
      const { nHeads, nKvHeads, headDim } = heads
      const { q, k, lse, run } = prompt(tensors, n, heads, dtype)
      run() // for the LSE
      const ids = tensors.i32(rows)
      const scores = tensors.output('f32', [nKvHeads, n])
      const scale = 1 / Math.sqrt(headDim)
      const pairs = rows.reduce((sum, row) => sum + row + 1, 0)
      return {
        bytes: (rows.length * nHeads + n * nKvHeads) * headDim * bytesOf(dtype) + 4 * nKvHeads * n,
        flops: 2 * nHeads * headDim * pairs,
        run: () => probeAttention({ q, lse, k, rows: ids, positions: ids, scores, scale }),
        async check() {
          const [qs, ks, lses, all] = await Promise.all([q, k, lse, scores].map(valuesOf))
          const keys = Array.from(
            { length: Math.ceil(n / kCheckedKeys) },
            (_, i) => i * kCheckedKeys,
          )
          const width = nKvHeads * headDim
          const some = new Float64Array(keys.length * width)
          for (const [i, key] of keys.entries()) {
            some.set((ks as Float64Array).subarray(key * width, (key + 1) * width), i * width)
          }
          const expected = referenceProbeAttention({
            q: qs as Float64Array,
            lse: lses as Float64Array,
            k: some,
            rows,
            // The last of these keys that a probe sees.
            positions: rows.map((row) => Math.floor(row / kCheckedKeys)),
            ...heads,
            kvLen: keys.length,
            scale,
            normalization: 'normalized',
          })
          const actual = Array.from({ length: nKvHeads }, (_, head) =>
            keys.map((key) => (all as Float64Array)[head * n + key] as number),
          ).flat()
          const { probeScores: tolerance } = kTolerance
          checkClose(actual, expected, { name: nameOf(own), tolerance, rowLength: keys.length })
        },
      }
    },
  }
}

/** A prompt's queries, keys and values, and its attention. */
function prompt(tensors: BenchTensors, n: number, heads: Heads, dtype: FloatDtype) {
  const { nHeads, nKvHeads, headDim } = heads
  const q = tensors.normal(dtype, [n, nHeads, headDim], { deviation: 0.25, seed: 3 })
  const k = tensors.normal(dtype, [n, nKvHeads, headDim], { deviation: 0.25, seed: 4 })
  const v = tensors.normal(dtype, [n, nKvHeads, headDim], { seed: 5 })
  const out: Tensor = tensors.output(dtype, [n, nHeads, headDim])
  const lse: Tensor = tensors.output('f32', [n, nHeads])
  const starts = tensors.i32([0, n])
  const scale = 1 / Math.sqrt(headDim)
  const args = { q, k, v, out, lse, cuSeqlensQ: starts, cuSeqlensK: starts, scale, causal: true }
  return { q, k, v, out, lse, run: () => flashAttention(args) }
}

function shapeOf(n: number, { nHeads, nKvHeads, headDim }: Heads): string {
  return `n=${n} heads=${nHeads}/${nKvHeads}x${headDim}`
}

function bytesOf(dtype: FloatDtype): number {
  return dtype === 'f32' ? 4 : 2
}
