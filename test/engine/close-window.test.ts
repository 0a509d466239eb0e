/** Which layers of a window are compressed together. */
import { closingSlices } from '../../lib/engine/close-window'

type Subject = Parameters<typeof closingSlices>

const llama3 = { nKvHeads: 8, headDim: 128 }
const subject = (slidingWindow: readonly number[], heads = llama3, kind = 'gpu') => {
  const model = { attentionDtype: 'bf16', device: { info: { kind } } } as unknown as Subject[0]
  return [model, { nLayers: slidingWindow.length, slidingWindow, ...heads }] as const
}
const every = (nLayers: number, window = 0) => new Array<number>(nLayers).fill(window)
const slice = (first: number, nLayers: number, slidingWindow = 0) => ({
  ...{ first, nLayers, slidingWindow },
})

test("all of LLaMA3-8B's, whose K and V of 100 tokens are 13 MB", () => {
  expect(closingSlices(...subject(every(32)), 100)).toEqual([slice(0, 32)])
})

test('by halves where they would take more than 16 MiB', () => {
  expect(closingSlices(...subject(every(80)), 100)).toEqual([slice(0, 40), slice(40, 40)])
  expect(closingSlices(...subject(every(41)), 100)).toEqual([slice(0, 21), slice(21, 20)])
})

test('no more than a megabyte of them on a CPU', () => {
  expect(closingSlices(...subject(every(5), llama3, 'cpu'), 100)).toEqual([
    ...[slice(0, 2), slice(2, 2), slice(4, 1)],
  ])
})

test('one by one, at least', () => {
  expect(closingSlices(...subject(every(3)), 100_000)).toEqual([
    slice(0, 1),
    slice(1, 1),
    slice(2, 1),
  ])
  expect(closingSlices(...subject(every(3)), 100, 1)).toHaveLength(3)
  expect(closingSlices(...subject(every(1)), 1)).toEqual([slice(0, 1)])
})

test('apart where probes see different keys', () => {
  expect(closingSlices(...subject([0, 0, 64, 64, 64, 0, 99]), 100)).toEqual([
    ...[slice(0, 2), slice(2, 3, 64), slice(5, 1), slice(6, 1, 99)],
  ])
})

test('together where their sliding windows are no shorter than the window', () => {
  expect(closingSlices(...subject([0, 100, 4096, 128]), 100)).toEqual([slice(0, 4)])
})

test.each([1, 7, 33, 100])('each layer once, with windows of %i tokens', (nTokens) => {
  const windows = [5, 5, 9, 0, 0, 40, 40, 40, 200, 0]
  const slices = closingSlices(...subject(windows, { nKvHeads: 128, headDim: 256 }), nTokens)
  const layers = slices.flatMap(({ first, nLayers }) =>
    Array.from({ length: nLayers }, (_, i) => first + i),
  )
  expect(layers).toEqual([...windows.keys()])
  for (const { first, nLayers, slidingWindow } of slices) {
    expect(nLayers * 2 * nTokens * 128 * 256 * 2).toBeLessThanOrEqual(2 ** 24)
    for (const own of windows.slice(first, first + nLayers)) {
      expect(own > 0 && own < nTokens ? own : 0).toBe(slidingWindow)
    }
  }
})
