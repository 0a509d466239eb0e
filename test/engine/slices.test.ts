import { sliceRows } from '../../lib/engine/prefill'
import type { ForwardModel } from '../../lib/model/forward'

type Subject = Pick<ForwardModel, 'config' | 'device'>
const subject = (kind: string, config: object) =>
  ({ config, device: { info: { kind } } }) as unknown as Subject

const llama3 = {
  ...{ hiddenSize: 4096, intermediateSize: 14336, experts: null },
  ...{ nHeads: 32, nKvHeads: 8, headDim: 128 },
}
const small = {
  ...{ hiddenSize: 64, intermediateSize: 128, experts: null },
  ...{ nHeads: 4, nKvHeads: 2, headDim: 16 },
}

const expertsOf = (count: number, perRow: number, intermediateSize: number) => ({
  experts: { count, perRow, intermediateSize, sharedSize: 0, layers: [true] },
})
// 30B-A3B, of which 32 rows would choose two an expert.
const qwen3Moe = {
  ...{ hiddenSize: 2048, intermediateSize: 6144, ...expertsOf(128, 8, 768) },
  ...{ nHeads: 32, nKvHeads: 4, headDim: 128 },
}
const mixtral = { ...llama3, ...expertsOf(8, 2, 14336) }

// A GPU reads 436 MB of weights for each of LLaMA3-8B's slices: 32 rows would be bound by that.
test.each([
  ['cpu', llama3, 32],
  ['gpu', llama3, 2048],
  ['gpu', small, 2048],
  ['cpu', small, 512],
  ['cpu', qwen3Moe, 128],
  ['gpu', qwen3Moe, 2048],
  ['cpu', mixtral, 32],
])('on a %s a slice has its rows', (kind, config, rows) => {
  expect(sliceRows(subject(kind, config))).toBe(rows)
})
