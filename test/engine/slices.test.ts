import { sliceRows } from '../../lib/engine/prefill'
import type { ForwardModel } from '../../lib/model/forward'

type Subject = Pick<ForwardModel, 'config' | 'device'>
const subject = (kind: string, config: object) =>
  ({ config, device: { info: { kind } } }) as unknown as Subject

const llama3 = {
  ...{ hiddenSize: 4096, intermediateSize: 14336 },
  ...{ nHeads: 32, nKvHeads: 8, headDim: 128 },
}
const small = {
  ...{ hiddenSize: 64, intermediateSize: 128 },
  ...{ nHeads: 4, nKvHeads: 2, headDim: 16 },
}

// A GPU reads 436 MB of weights for each of LLaMA3-8B's slices: 32 rows would be bound by that.
test.each([
  ['cpu', llama3, 32],
  ['gpu', llama3, 2048],
  ['gpu', small, 2048],
  ['cpu', small, 512],
])('on a %s a slice has its rows', (kind, config, rows) => {
  expect(sliceRows(subject(kind, config))).toBe(rows)
})
