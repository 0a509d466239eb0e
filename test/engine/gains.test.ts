/** What low bits of K do to a head's logits, against numbers made by hand. */
import { keyErrorGains } from '../../lib/engine/gains'
import { Scratch } from '../../lib/model/scratch'
import { Device } from '../../lib/ops/index'

let device: Device
beforeAll(async () => {
  device = await Device.open('cpu', { threads: 1 })
})
afterAll(() => device.dispose())

test('the mean q^2 of a channel times the square of its range, over the channels of a head', async () => {
  // three tokens of two KV heads of two channels; ranges 2 and 0, then 2 and 4
  const keys = [1, 0, -1, 5, 3, 0, 1, 5, 2, 0, 0, 9]
  // two probes of four query heads; mean squares 3.5 and 100, then 1.5 and 1.5
  const queries = [1, 10, 2, 10, 1, 1, 0, 2, 3, 10, 0, 10, 1, 1, 2, 0]
  const scratch = new Scratch(device)
  const of = (values: number[], shape: number[]) =>
    scratch.tensor('f32', shape).write(Float32Array.from(values))
  const rows = scratch.ints(Int32Array.of(0, 1))
  const probes = { q: of(queries, [2, 4, 2]), rows }
  const gains = await keyErrorGains(of(keys, [3, 2, 2]), probes, scratch)
  scratch.dispose()
  expect(Array.from(gains)).toEqual([3.5 * 4 + 100 * 0, 1.5 * 4 + 1.5 * 16])
})
