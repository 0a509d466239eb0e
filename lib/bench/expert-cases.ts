import { expertLinear, routeExperts, type Tensor } from '../ops/index.js'
import { toSeed, uniform } from '../random.js'
import { linear as referenceLinear } from '../reference/index.js'
import { type BenchTensors, inTurn, valuesOf } from './bench-tensors.js'
import { checkClose, kTolerance } from './check.js'
import { nameOf, type OpCase } from './op-case.js'

/** Of Qwen3-30B-A3B: a layer's experts, those of a row, their width, and the stream's. */
const kExperts = 128
const kChosen = 8
const kWidth = 768
const kStream = 2048

/** Products of rows by the experts that a router chose: of one row, of a batch, of a slice of a prompt. */
export const expertCases: readonly OpCase[] = [expertCase(1), expertCase(16), expertCase(512, true)]

/** Columns of the result that are computed again, of the first row's first expert. */
const kCheckedColumns = 40

function expertCase(m: number, full = false): OpCase {
  const shape = `m=${m} k=${kStream} n=${kWidth} experts=${kChosen}/${kExperts}`
  const own = { op: 'expertLinear', shape, dtype: 'bf16', group: `experts m=${m}`, full }
  return {
    ...own,
    async prepare(tensors) {
      // Larger than a processor's caches, and other experts with every call.
      const weight = tensors.normal('bf16', [kExperts, kWidth, kStream], {
        deviation: 1 / Math.sqrt(kStream),
      })
      const routes = Array.from({ length: kExperts / kChosen }, (_, i) => routeOf(tensors, m, i))
      const x = tensors.normal('f32', [m, kStream], { seed: 2 })
      const out = tensors.output('f32', [m * kChosen, kWidth])
      const next = inTurn(routes)
      const chosen = await valuesOf((routes[0] as Route).experts)
      const nChosen = new Set(chosen).size
      return {
        bytes: 2 * nChosen * kWidth * kStream + 4 * m * (kStream + kChosen * kWidth),
        flops: 2 * m * kChosen * kWidth * kStream,
        run: () => expertLinear({ x, weight, ...next(), out }),
        async check() {
          const shape = [kCheckedColumns, kStream]
          const columns = tensors.view(weight, shape, (chosen[0] as number) * kWidth * kStream)
          const [xs, w, ys] = await Promise.all([x, columns, out].map(valuesOf))
          const one = {
            x: xs.subarray(0, kStream),
            weight: w,
            m: 1,
            n: kCheckedColumns,
            k: kStream,
          }
          checkClose(ys.subarray(0, kCheckedColumns), referenceLinear(one), {
            name: `${nameOf(own)}: pair 0`,
            tolerance: kTolerance.f32Linear,
          })
        },
      }
    },
  }
}

interface Route {
  readonly experts: Tensor<'i32'>
  readonly pairs: Tensor<'i32'>
  readonly offsets: Tensor<'i32'>
}

function routeOf(tensors: BenchTensors, m: number, i: number): Route {
  const seed = toSeed(i)
  const logits = tensors.f32(
    Float32Array.from({ length: m * kExperts }, (_, at) => uniform(seed, at)),
    [m, kExperts],
  )
  const route = {
    weights: tensors.output('f32', [m, kChosen]),
    experts: tensors.output('i32', [m, kChosen]),
    pairs: tensors.output('i32', [m * kChosen]),
    offsets: tensors.output('i32', [kExperts + 1]),
  }
  routeExperts({ logits, ...route })
  return route
}
