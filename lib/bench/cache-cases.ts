import {
  type CodeBits,
  codeBytesPerRow,
  type QuantRange,
  quantize,
  selectSalient,
} from '../ops/index.js'
import {
  convert,
  mixedAttention as referenceMixedAttention,
  packSegment as referencePackSegment,
  quantize as referenceQuantize,
  selectSalient as referenceSelectSalient,
  type Segment,
} from '../reference/index.js'
import { kLargeHeads, kSmallHeads } from './attention-cases.js'
import { inTurn, uniforms, valuesOf } from './bench-tensors.js'
import { checkClose, kTolerance } from './check.js'
import { nameOf, type OpCase } from './op-case.js'
import { type CodeFormat, firstHead, type KvPlan, PackedKv } from './packed-kv.js'

/** Tokens that wait for their window to close: half of one. */
const kTailTokens = 50

/** A cache by the name of what it holds. */
interface Mix extends Pick<KvPlan, 'classes' | 'window'> {
  readonly name: string
}

/** The paper's classes. */
const kPaper: KvPlan['classes'] = [
  { format: 'u4', share: 0.6 },
  { format: 'u2', share: 0.4 },
]

/** 16 bits, one width of codes, and the paper's mix: of a prompt, and of tokens that were decoded. */
const kMixes: readonly Mix[] = [
  { name: 'f16', classes: [] },
  { name: 'u4', classes: [{ format: 'u4', share: 1 }] },
  { name: 'u3', classes: [{ format: 'u3', share: 1 }] },
  { name: 'u2', classes: [{ format: 'u2', share: 1 }] },
  { name: 'u4:60%+u2', classes: kPaper },
  { name: 'u4:60%+u2 by 100', classes: kPaper, window: 100 },
]

/** Choosing, compressing, and attending to what was compressed. */
export const cacheCases: readonly OpCase[] = [
  ...[1024, 4096, 16384].flatMap((n) =>
    [1, 4].flatMap((group) => kMixes.map((mix) => mixedCase(n, group, mix))),
  ),
  selectCase(4096, kSmallHeads.nKvHeads),
  selectCase(16384, kLargeHeads.nKvHeads),
  quantizeCase('channelwise', 4),
  quantizeCase('cst', 4),
  quantizeCase('cst', 2),
  quantizeCase('tokenwise', 4, true),
  ...(['u4', 'u3', 'u2'] as const).map((format) => packCase(4096, format)),
  packCase(4096, 'u3', { norm: 3 }),
  appendCase(1),
  appendCase(512),
]

function mixedCase(n: number, group: number, { name, classes, window }: Mix): OpCase {
  const { nKvHeads, headDim } = kLargeHeads
  const nHeads = nKvHeads * group
  const shape = `n=${n} heads=${nHeads}/${nKvHeads}x${headDim}`
  const own = { op: 'mixedAttention', shape, dtype: name }
  return {
    ...own,
    group: `mixedAttention ${n} ${group}`,
    async prepare(tensors) {
      const tailTokens = classes.length === 0 ? n : kTailTokens
      const packedTokens = n - tailTokens
      const dtype = 'f16'
      const kv = new PackedKv(tensors, {
        ...{ nKvHeads, headDim, tailTokens, packedTokens, classes, window, dtype },
      })
      kv.append()
      for (const index of kv.segments.keys()) kv.pack(index)
      const q = tensors.normal('f16', [1, nHeads, headDim], { deviation: 0.25, seed: 6 })
      const out = tensors.output('f16', [1, nHeads, headDim])
      const lse = tensors.output('f32', [1, nHeads])
      const pool = inTurn(tensors.coldBytesOf(await kv.pool.read()))
      const attend = kv.attention(q, out, lse)
      return {
        bytes: kv.readBytes + 2 * nHeads * headDim * 2,
        flops: 4 * nHeads * headDim * n,
        run: () => attend(pool()),
        async check() {
          const exported = await Promise.all(kv.segments.map((_, index) => kv.exported(index)))
          const [k, v] = await Promise.all([firstHead(kv.tailK), firstHead(kv.tailV)])
          const segments: Segment[] = [{ nTokens: tailTokens, k, v }, ...exported]
          const [qs, outs, lses] = await Promise.all([q, out, lse].map(valuesOf))
          const expected = referenceMixedAttention({
            q: (qs as Float64Array).subarray(0, group * headDim),
            segments: segments.map((segment) => ({ ...segment, positions: undefined }) as Segment),
            nHeads: group,
            nKvHeads: 1,
            headDim,
            scale: 1 / Math.sqrt(headDim),
          })
          const actual = (outs as Float64Array).subarray(0, group * headDim)
          const { mixedAttention: tolerance } = kTolerance
          checkClose(actual, expected.out, { name: nameOf(own), tolerance, rowLength: headDim })
          const lseOf = { tolerance: kTolerance.lse, rowLength: 1, floor: 1 }
          const actualLse = (lses as Float64Array).subarray(0, group)
          checkClose(actualLse, expected.lse, { name: `${nameOf(own)}: lse`, ...lseOf })
        },
      }
    },
  }
}

function selectCase(n: number, nHeads: number): OpCase {
  const count = Math.round(0.6 * n)
  const own = { op: 'selectSalient', shape: `${count} of ${n} heads=${nHeads}`, dtype: 'f32' }
  return {
    ...own,
    group: 'selectSalient',
    async prepare(tensors) {
      const next = uniforms(8)
      // Scores of attention spread over orders of magnitude.
      const values = Float32Array.from({ length: nHeads * n }, () => Math.exp(-12 * next()))
      const scores = tensors.f32(values, [nHeads, n])
      const salient = tensors.output('i32', [nHeads, count])
      const regular = tensors.output('i32', [nHeads, n - count])
      return {
        bytes: 2 * 4 * nHeads * n,
        flops: 0,
        run: () => selectSalient({ scores, salient, regular }),
        async check() {
          const expected = referenceSelectSalient({ scores: values, nHeads, n, count })
          const exact = { name: nameOf(own), tolerance: 0 }
          checkClose(await salient.read(), expected.salient, exact)
          checkClose(await regular.read(), expected.regular, exact)
        },
      }
    },
  }
}

function quantizeCase(
  scheme: 'channelwise' | 'cst' | 'tokenwise',
  bits: CodeBits,
  full = false,
): OpCase {
  const [rows, channels] = [4096, 128]
  const own = { op: 'quantize', shape: `${scheme} ${rows}x${channels}`, dtype: `u${bits}`, full }
  return {
    ...own,
    group: 'quantize',
    async prepare(tensors) {
      const x = tensors.cold('f32', [rows, channels])
      const groups = scheme === 'channelwise' ? channels : rows
      const codes = tensors.output('u8', [rows, codeBytesPerRow(channels, bits)])
      const scale = tensors.output('f16', [groups])
      const zero = tensors.output('f16', [groups])
      const channel = scheme === 'cst' ? { channel: tensors.output('f16', [channels]) } : {}
      const next = inTurn(x)
      const rest = { codes, scale, zero, ...channel, scheme, bits }
      return {
        bytes: rows * channels * 4 + codes.sizeBytes + 2 * scale.sizeBytes,
        flops: 0,
        run: () => quantize({ x: next(), ...rest }),
        async check() {
          const values = await valuesOf(x[0] as (typeof x)[number])
          const expected = referenceQuantize({ x: values, rows, channels, bits, scheme })
          const exact = { name: nameOf(own), tolerance: 0 }
          checkClose(await codes.read(), expected.codes, exact)
          checkClose(await valuesOf(scale), expected.scale, exact)
          checkClose(await valuesOf(zero), expected.zero, exact)
        },
      }
    },
  }
}

function packCase(n: number, format: CodeFormat, keyRange?: QuantRange): OpCase {
  const { nKvHeads, headDim } = kLargeHeads
  const shape = `n=${n} kv=${nKvHeads}x${headDim}${keyRange ? ' search K' : ''}`
  const own = { op: 'packSegment', shape, dtype: format }
  return {
    ...own,
    group: 'packSegment',
    async prepare(tensors) {
      const classes = [{ format, share: 1 }]
      const dtype = 'f16'
      const kv = new PackedKv(tensors, {
        ...{ nKvHeads, headDim, tailTokens: 1, packedTokens: n, classes, dtype },
      })
      return {
        bytes: 2 * n * nKvHeads * headDim * 2 + kv.readBytes,
        flops: 0,
        run: () => kv.pack(0, keyRange),
        async check() {
          const actual = await kv.exported(0)
          const [k, v] = await Promise.all([firstHead(kv.k), firstHead(kv.v)])
          const rows = Int32Array.from({ length: n }, (_, i) => i)
          const formats = { keyFormat: format, valueFormat: format, keyRange }
          const packed = { k, v, rows, nKvHeads: 1, headDim, ...formats }
          const expected = referencePackSegment(packed) as typeof actual
          const exact = { name: nameOf(own), tolerance: 0 }
          checkClose(actual.kCodes, expected.kCodes, exact)
          checkClose(actual.vCodes, expected.vCodes, exact)
        },
      }
    },
  }
}

function appendCase(rows: number): OpCase {
  const { nKvHeads, headDim } = kLargeHeads
  const own = { op: 'appendKv', shape: `rows=${rows} kv=${nKvHeads}x${headDim}`, dtype: 'f16' }
  return {
    ...own,
    group: 'appendKv',
    async prepare(tensors) {
      const sizes = { nKvHeads, headDim, tailTokens: rows, packedTokens: 0 }
      const kv = new PackedKv(tensors, { ...sizes, classes: [], dtype: 'f32' })
      return {
        bytes: 2 * rows * nKvHeads * headDim * (4 + 2),
        flops: 0,
        run: () => kv.append(),
        async check() {
          const [k, v] = await Promise.all([valuesOf(kv.tailK), valuesOf(kv.tailV)])
          const tail = kv.unpackedTail()
          const exact = { name: nameOf(own), tolerance: 0 }
          checkClose(await valuesOf(tail.k), convert({ x: k, dtype: 'f16' }), exact)
          checkClose(await valuesOf(tail.v), convert({ x: v, dtype: 'f16' }), exact)
        },
      }
    },
  }
}
