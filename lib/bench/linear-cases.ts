import { DTYPE_BYTES } from '../ops/dtype.js'
import { linear, quantizeWeight, type Tensor } from '../ops/index.js'
import { type FloatDtype, linear as referenceLinear } from '../reference/index.js'
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
  linearCase({ m, ...kSmallHead }, 'i8', m > 16),
  linearCase({ m, ...kLargeGate }, 'f16', true),
])

/** Rows and columns of the result that are computed again. */
const kCheckedRows = 2
const kCheckedColumns = 40

function linearCase(
  { m, n, k }: { m: number; n: number; k: number },
  dtype: FloatDtype | 'i8',
  full = false,
): OpCase {
  const own = { op: 'linear', shape: `m=${m} k=${k} n=${n}`, dtype, group: `linear m=${m}`, full }
  return {
    ...own,
    async prepare(tensors) {
      const { weights, scales } = coldWeights(tensors, dtype, n, k)
      const x = tensors.normal('f32', [m, k], { seed: 2 })
      const out = tensors.output('f32', [m, n])
      const weight = inTurn(weights)
      return {
        bytes: n * k * DTYPE_BYTES[dtype] + m * (n + k) * 4,
        flops: 2 * m * n * k,
        run: () => linear({ x, weight: weight(), scales, out }),
        async check() {
          const columns = Math.min(n, kCheckedColumns)
          const lastColumns = tensors.view(weights[0] as typeof x, [columns, k], (n - columns) * k)
          const w = await valuesOf(lastColumns)
          const [xs, ys] = await Promise.all([valuesOf(x), valuesOf(out)])
          const lastScales = scales && (await valuesOf(scales)).subarray(n - columns)
          for (const row of [0, m - 1].slice(0, Math.min(m, kCheckedRows))) {
            const one = {
              ...{ x: xs.subarray(row * k, (row + 1) * k), weight: w, m: 1, n: columns, k },
              ...(lastScales ? { scales: lastScales } : {}),
            }
            const end = (row + 1) * n
            checkClose(ys.subarray(end - columns, end), referenceLinear(one), {
              name: `${nameOf(own)}: row ${row}`,
              tolerance: dtype === 'i8' ? kTolerance.i8Linear : kTolerance.f32Linear,
            })
          }
        },
      }
    },
  }
}

/** A weight as often as it takes to be read from memory; in i8 its scales too, one tensor for all. */
function coldWeights(tensors: BenchTensors, dtype: FloatDtype | 'i8', n: number, k: number) {
  const deviation = 1 / Math.sqrt(k)
  if (dtype !== 'i8') return { weights: tensors.cold(dtype, [n, k], { deviation }) }
  const x = tensors.normal('f32', [n, k], { deviation })
  const scales = tensors.output('f32', [n])
  const weights = Array.from({ length: tensors.copiesOf(n * k) }, (): Tensor => {
    const out = tensors.output('i8', [n, k])
    quantizeWeight({ x, out, scales })
    return out
  })
  return { weights, scales }
}
