import { codedBytes } from '../model/weights.js'
import { DTYPE_BYTES } from '../ops/dtype.js'
import { linear, quantizeWeight, type Tensor, type WeightScales } from '../ops/index.js'
import {
  dequantizeFloat4Weight,
  dequantizeInt4Weight,
  type FloatDtype,
  linear as referenceLinear,
} from '../reference/index.js'
import { type BenchTensors, inTurn, valuesOf } from './bench-tensors.js'
import { checkClose, kTolerance } from './check.js'
import { nameOf, type OpCase } from './op-case.js'

/** (out, in) of products in a layer of a model of 25M parameters, and in one of LLaMA 3 8B. */
const kSmallLayer = { n: 1408, k: 512 }
const kSmallHead = { n: 8192, k: 512 }
const kLargeSquare = { n: 4096, k: 4096 }
const kLargeGate = { n: 14336, k: 4096 }

/** Decoding of one sequence and of a batch, and prefill: x in float32, the weight in its own type. */
export const linearCases: readonly OpCase[] = [1, 4, 16, 512].flatMap((m) => [
  linearCase({ m, ...kSmallLayer }, 'f16'),
  linearCase({ m, ...kSmallHead }, 'f16', m > 16),
  linearCase({ m, ...kSmallHead }, 'bf16', m > 16),
  linearCase({ m, ...kLargeSquare }, 'f16'),
  linearCase({ m, ...kLargeSquare }, 'bf16'),
  linearCase({ m, ...kLargeSquare }, 'f32', true),
  linearCase({ m, ...kLargeSquare }, 'i8'),
  linearCase({ m, ...kLargeSquare }, 'i4'),
  linearCase({ m, ...kLargeSquare }, 'mxfp4'),
  linearCase({ m, ...kSmallHead }, 'i8', m > 16),
  linearCase({ m, ...kSmallHead }, 'i4', m > 16),
  linearCase({ m, ...kLargeGate }, 'f16', true),
])

/** What a weight is made of. */
type WeightType = FloatDtype | 'i8' | 'i4' | 'mxfp4'

/** Elements of a row that share a scale in 4 bits, as in a model. */
const kGroup = 32

/** Rows and columns of the result that are computed again. */
const kCheckedRows = 2
const kCheckedColumns = 40

function linearCase(
  { m, n, k }: { m: number; n: number; k: number },
  dtype: WeightType,
  full = false,
): OpCase {
  const own = { op: 'linear', shape: `m=${m} k=${k} n=${n}`, dtype, group: `linear m=${m}`, full }
  return {
    ...own,
    async prepare(tensors) {
      const { weights, ...params } = coldWeights(tensors, dtype, n, k)
      const x = tensors.normal('f32', [m, k], { seed: 2 })
      const out = tensors.output('f32', [m, n])
      const weight = inTurn(weights)
      return {
        bytes: weightBytes(dtype, n, k) + m * (n + k) * 4,
        flops: 2 * m * n * k,
        run: () => linear({ x, weight: weight(), ...params, out }),
        async check() {
          const columns = Math.min(n, kCheckedColumns)
          const [xs, ys] = await Promise.all([valuesOf(x), valuesOf(out)])
          const w = await lastRows({ weight: weights[0] as Tensor, ...params }, columns, k)
          for (const row of [0, m - 1].slice(0, Math.min(m, kCheckedRows))) {
            const one = {
              ...{ x: xs.subarray(row * k, (row + 1) * k), weight: w, m: 1, n: columns, k },
            }
            const end = (row + 1) * n
            checkClose(ys.subarray(end - columns, end), referenceLinear(one), {
              name: `${nameOf(own)}: row ${row}`,
              tolerance:
                dtype === 'i8' || is4Bits(dtype) ? kTolerance.i8Linear : kTolerance.f32Linear,
            })
          }
        },
      }
    },
  }
}

/** A weight, as `linear` takes it. */
interface Weight {
  weight: Tensor
  scales?: WeightScales
  zeros?: Tensor<'u8'>
}

function is4Bits(dtype: WeightType): dtype is 'i4' | 'mxfp4' {
  return dtype === 'i4' || dtype === 'mxfp4'
}

/** The last rows of a weight as it says them, (count, k). */
async function lastRows({ weight, scales, zeros }: Weight, count: number, k: number) {
  const all = await Promise.all(
    [weight, ...(scales ? [scales] : []), ...(zeros ? [zeros] : [])].map(valuesOf),
  )
  const n = weight.shape[0] as number
  const [w, s, z] = all.map((values) => values.subarray((values.length / n) * (n - count)))
  if (!w) return []
  if (z) return dequantizeInt4Weight({ weight: w, scales: s ?? [], zeros: z }, kGroup)
  if (s && scales?.dtype === 'u8') return dequantizeFloat4Weight({ weight: w, scales: s })
  return s ? w.map((code, i) => code * (s[Math.floor(i / k)] as number)) : w
}

function weightBytes(dtype: WeightType, n: number, k: number): number {
  if (dtype === 'mxfp4') return (n * k) / 2 + (n * k) / kGroup
  return dtype === 'i4' ? codedBytes('int4', [n, k]) : n * k * DTYPE_BYTES[dtype]
}

/** A weight as often as it takes to be read from memory; of codes what goes with them is one for all. */
function coldWeights(tensors: BenchTensors, dtype: WeightType, n: number, k: number) {
  const deviation = 1 / Math.sqrt(k)
  if (dtype === 'mxfp4') {
    // Every code and some exponents are as good as any.
    const codes = Uint8Array.from(
      { length: (n * k) / 2 },
      (_, i) => Math.imul(i, 0x9e3779b1) >>> 24,
    )
    const exponents = Uint8Array.from({ length: (n * k) / kGroup }, (_, i) => 118 + (i % 5))
    const scales = tensors.output('u8', [n, k / kGroup]).write(exponents)
    const weights = tensors.coldBytesOf(codes).map((bytes) => tensors.view(bytes, [n, k / 2]))
    return { weights, scales }
  }
  if (dtype !== 'i8' && dtype !== 'i4') {
    return { weights: tensors.cold(dtype, [n, k], { deviation }) }
  }
  const x = tensors.normal('f32', [n, k], { deviation })
  const params =
    dtype === 'i8'
      ? { scales: tensors.output('f32', [n]) }
      : {
          scales: tensors.output('f16', [n, k / kGroup]),
          zeros: tensors.output('u8', [n, k / kGroup]),
        }
  const bytes = weightBytes(dtype, n, k)
  const weights = Array.from({ length: tensors.copiesOf(bytes) }, (): Tensor => {
    const out = dtype === 'i8' ? tensors.output('i8', [n, k]) : tensors.output('u8', [n, k / 2])
    quantizeWeight({ x, out, ...params })
    return out
  })
  return { weights, ...params }
}
