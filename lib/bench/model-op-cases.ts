import { packSampleParams, rmsNorm, rope, SAMPLE_PARAMS, sample, siluGate } from '../ops/index.js'
import { toSeed, uniform } from '../random.js'
import {
  rmsNorm as referenceRmsNorm,
  rope as referenceRope,
  sample as referenceSample,
  siluGate as referenceSiluGate,
} from '../reference/index.js'
import { inTurn, valuesOf } from './bench-tensors.js'
import { checkClose, kTolerance } from './check.js'
import { nameOf, type OpCase } from './op-case.js'

/** Of LLaMA 3 8B: the residual stream, and the MLP. */
const kWidth = 4096
const kMlpWidth = 14336

/** What is between the products of a layer, and the choice of a token. */
export const modelOpCases: readonly OpCase[] = [
  normCase(1),
  normCase(512),
  ropeCase(512),
  siluCase(16),
  siluCase(512, true),
  sampleCase('greedy', 8192),
  sampleCase('greedy', 128256),
  sampleCase('top-p', 8192),
  sampleCase('top-p', 128256),
]

function normCase(rows: number): OpCase {
  const own = { op: 'rmsNorm', shape: `${rows}x${kWidth}`, dtype: 'f32' }
  return {
    ...own,
    group: 'elementwise',
    async prepare(tensors) {
      const x = tensors.cold('f32', [rows, kWidth])
      const weight = tensors.normal('f32', [kWidth], { seed: 2 })
      const out = tensors.output('f32', [rows, kWidth])
      const next = inTurn(x)
      const eps = 1e-5
      return {
        bytes: 4 * kWidth * (2 * rows + 1),
        flops: 4 * rows * kWidth,
        run: () => rmsNorm({ x: next(), weight, out, eps }),
        async check() {
          const [xs, weights] = await Promise.all([x[0] as typeof weight, weight].map(valuesOf))
          const options = { x: xs as Float64Array, weight: weights as Float64Array }
          checkClose(await valuesOf(out), referenceRmsNorm({ ...options, width: kWidth, eps }), {
            name: nameOf(own),
            tolerance: kTolerance.f32Norm,
            rowLength: kWidth,
          })
        },
      }
    },
  }
}

function ropeCase(rows: number): OpCase {
  const [nHeads, headDim] = [32, 128]
  const own = { op: 'rope', shape: `${rows}x${nHeads}x${headDim}`, dtype: 'f32' }
  return {
    ...own,
    group: 'elementwise',
    async prepare(tensors) {
      const x = tensors.cold('f32', [rows, nHeads, headDim])
      const next = inTurn(x)
      const out = tensors.output('f32', [rows, nHeads, headDim])
      const angles = Float32Array.from({ length: (rows * headDim) / 2 }, (_, i) => i % 97)
      const table = [rows, headDim / 2]
      const cos = tensors.f32(angles.map(Math.cos), table)
      const sin = tensors.f32(angles.map(Math.sin), table)
      return {
        bytes: 4 * rows * headDim * (2 * nHeads + 1),
        flops: 3 * rows * nHeads * headDim,
        run: () => rope({ x: next(), cos, sin, out }),
        async check() {
          const [xs, c, s] = await Promise.all([x[0] as typeof cos, cos, sin].map(valuesOf))
          const options = { x: xs as Float64Array, cos: c as Float64Array, sin: s as Float64Array }
          checkClose(await valuesOf(out), referenceRope({ ...options, nHeads, headDim }), {
            name: nameOf(own),
            tolerance: kTolerance.f32Rope,
            rowLength: headDim,
          })
        },
      }
    },
  }
}

function siluCase(rows: number, full = false): OpCase {
  const own = { op: 'siluGate', shape: `${rows}x${kMlpWidth}`, dtype: 'f32', full }
  return {
    ...own,
    group: 'elementwise',
    async prepare(tensors) {
      const gates = tensors.cold('f32', [rows, kMlpWidth])
      const up = tensors.normal('f32', [rows, kMlpWidth], { seed: 2 })
      const gate = inTurn(gates)
      const out = tensors.output('f32', [rows, kMlpWidth])
      return {
        bytes: 3 * 4 * rows * kMlpWidth,
        flops: 4 * rows * kMlpWidth,
        run: () => siluGate({ gate: gate(), up, out }),
        async check() {
          const [gateValues, upValues] = await Promise.all(
            [gates[0] as typeof up, up].map(valuesOf),
          )
          const options = { gate: gateValues as Float64Array, up: upValues as Float64Array }
          checkClose(await valuesOf(out), referenceSiluGate(options), {
            name: nameOf(own),
            tolerance: kTolerance.f32Activation,
            rowLength: kMlpWidth,
          })
        },
      }
    },
  }
}

function sampleCase(kind: 'greedy' | 'top-p', vocabSize: number): OpCase {
  const own = { op: 'sample', shape: `${kind} vocab=${vocabSize}`, dtype: 'f32' }
  const [seed, step] = [toSeed(1), 0]
  const truncation = { topK: 0, topP: kind === 'greedy' ? 1 : 0.9, minP: 0 }
  const temperature = kind === 'greedy' ? 0 : 0.8
  const chosen = { temperature, ...truncation, repetitionPenalty: 1 }
  return {
    ...own,
    group: 'sample',
    async prepare(tensors) {
      const logits = tensors.cold('f32', [1, vocabSize], { deviation: 0.5 })
      const seen = tensors.output('u8', [1, vocabSize]).write(new Uint8Array(vocabSize))
      const contexts = tensors.i32([-1])
      const params = tensors.f32(packSampleParams({ ...chosen, seed, step }), [1, SAMPLE_PARAMS])
      const ids = tensors.output('i32', [1])
      const logprobs = tensors.output('f32', [1])
      const next = inTurn(logits)
      return {
        bytes: 4 * vocabSize,
        flops: 0,
        run: () => sample({ logits: next(), params, seen, contexts, ids, logprobs }),
        async check() {
          const values = await valuesOf(logits[0] as (typeof logits)[number])
          const u = uniform(seed, step)
          const expected = referenceSample({ logits: values, params: chosen, u })
          checkClose(await ids.read(), [expected.id], { name: nameOf(own), tolerance: 0 })
          checkClose(await logprobs.read(), [expected.logprob], {
            name: `${nameOf(own)}: logprob`,
            tolerance: kTolerance.logprob,
            floor: 1,
          })
        },
      }
    },
  }
}
