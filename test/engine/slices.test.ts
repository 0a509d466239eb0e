import { sliceRows } from '../../lib/engine/prefill'
import type { ForwardModel } from '../../lib/model/forward'

type Subject = Pick<ForwardModel, 'config' | 'device'>
const subject = (name: string, config: object) =>
  ({ config, device: { info: { name } } }) as unknown as Subject

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
  ['cpu:avx2', llama3, 32],
  ['cuda', llama3, 2048],
  ['cuda:1', llama3, 2048],
  ['cuda-emu', small, 2048],
  ['cpu', small, 512],
])('on %s a slice has its rows', (device, config, rows) => {
  expect(sliceRows(subject(device, config))).toBe(rows)
})
