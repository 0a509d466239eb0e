import { restoreOutliers } from '../../lib/ops/index.js'
import { restoreOutliers as reference } from '../../lib/reference/index.js'
import { describeBackends } from '../support/backends.js'
import { expectIdentical } from '../support/compare.js'
import { floatDtypes } from '../support/device-tensors.js'
import { expectRefused, expectRejected } from '../support/errors.js'
import { normals, storeAs } from '../support/random-data.js'

const schemes = ['channelwise', 'tokenwise'] as const

/** The low byte first. */
const bytesOf = (places: readonly number[]) =>
  Uint8Array.from(places.flatMap((place) => [place & 255, place >> 8]))

describeBackends('restoreOutliers', (backend) => {
  const cases = schemes.flatMap((scheme) => floatDtypes.map((dtype) => ({ scheme, dtype })))

  test.each(cases)('$scheme, over $dtype, bit for bit', async ({ scheme, dtype }) => {
    const { tensors } = backend
    for (const [rows, channels, perLine] of [
      [1, 1, 1],
      [7, 5, 2],
      [300, 129, 3],
      [17, 67, 17],
      [3, 4, 0],
      [0, 64, 0],
    ]) {
      const isByChannel = scheme === 'channelwise'
      const [lines, length] = isByChannel ? [channels, rows] : [rows, channels]
      // Distinct places of every line, the last one among them.
      const places = Array.from({ length: lines }, (_, line) =>
        Array.from({ length: perLine }, (_, i) => length - 1 - ((i * 11 + line) % length)),
      )
      if (places.some((own) => new Set(own).size < perLine)) throw new Error('a place comes twice')
      const x = storeAs(dtype, normals(1, rows * channels))
      const stored = storeAs('f16', normals(2, lines * perLine))
      const out = tensors.input(dtype, x.stored, [rows, channels])
      const values = tensors.input('f16', stored.stored as Uint16Array, [lines, perLine])
      const indices = tensors.input('u8', bytesOf(places.flat()), [lines, perLine, 2])
      restoreOutliers({ values, places: indices, out, scheme })
      const given = { x: x.values, channels, values: stored.values, perLine, scheme }
      const expected = reference({ ...given, places: places.flat() })
      // bfloat16 rounds what float16 holds.
      const rounded = storeAs(dtype, expected).values
      expectIdentical(await tensors.values(out), rounded, { name: 'out', shape: [rows, channels] })
    }
  })

  test('places beyond a byte', async () => {
    const { tensors } = backend
    const places = [255, 256, 65_534]
    const out = tensors.f32(new Float32Array(65_535), [65_535, 1])
    const values = tensors.input('f16', storeAs('f16', [1, 2, 3]).stored as Uint16Array, [1, 3])
    const indices = tensors.input('u8', bytesOf(places), [1, 3, 2])
    restoreOutliers({ values, places: indices, out, scheme: 'channelwise' })
    const actual = await tensors.values(out)
    expect(places.map((place) => actual[place])).toEqual([1, 2, 3])
    expect(actual.filter((x) => x !== 0)).toHaveLength(3)
  })

  test.each(schemes)(
    '%s reports a place that there is none of, at the next sync',
    async (scheme) => {
      const { tensors, device } = backend
      const out = tensors.f32(normals(1, 9), [3, 3])
      const values = tensors.input('f16', new Uint16Array(3), [3, 1])
      const places = tensors.input('u8', bytesOf([0, 3, 1]), [3, 1, 2])
      restoreOutliers({ values, places, out, scheme })
      const fault = {
        code: 'ERR_ZC_ARGUMENT',
        op: 'restoreOutliers',
        message: /^places: 3/,
      } as const
      await expectRejected(device.sync(), fault)
    },
  )

  test('refuses other dtypes and shapes', () => {
    const { tensors } = backend
    const output = tensors.output.bind(tensors)
    const out = output('f32', [5, 3])
    const values = output('f16', [3, 2])
    const places = output('u8', [3, 2, 2])
    const refuse = (change: object) => () =>
      restoreOutliers({ values, places, out, scheme: 'channelwise', ...change })
    const dtype = { code: 'ERR_ZC_DTYPE', op: 'restoreOutliers' } as const
    const shape = { code: 'ERR_ZC_SHAPE', op: 'restoreOutliers' } as const
    expectRefused(refuse({ out: output('i32', [5, 3]) }), { ...dtype, argument: 'out' })
    expectRefused(refuse({ out: output('f32', [15]) }), { ...shape, argument: 'out' })
    expectRefused(refuse({ values: output('f32', [3, 2]) }), { ...dtype, argument: 'values' })
    expectRefused(refuse({ scheme: 'tokenwise' }), { ...shape, argument: 'values' })
    expectRefused(refuse({ places: output('i32', [3, 2, 2]) }), { ...dtype, argument: 'places' })
    expectRefused(refuse({ places: output('u8', [3, 2]) }), { ...shape, argument: 'places' })
  })
})
