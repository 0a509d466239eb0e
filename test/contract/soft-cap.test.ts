import type { ErrorCode } from '../../lib/errors.js'
import { softCap } from '../../lib/ops/index.js'
import { softCap as reference } from '../../lib/reference/index.js'
import { describeBackends } from '../support/backends.js'
import { expectClose, expectIdentical } from '../support/compare.js'
import type { DeviceTensors } from '../support/device-tensors.js'
import { expectRefused } from '../support/errors.js'
import { normals } from '../support/random-data.js'
import { tolerance } from '../support/tolerance.js'

interface Capped {
  x: ArrayLike<number>
  cap: number
  width: number
  inPlace?: boolean
}

async function run(tensors: DeviceTensors, own: Capped) {
  const values = Float32Array.from(own.x)
  const shape = [values.length / own.width, own.width]
  const x = tensors.f32(values, shape)
  const out = own.inPlace ? x : tensors.output('f32', shape)
  softCap({ x, cap: own.cap, out })
  const expected = reference({ x: values, cap: Math.fround(own.cap) })
  return { actual: await tensors.values(out), expected, shape }
}

describeBackends('softCap', (backend) => {
  async function expectReference(own: Capped) {
    const { actual, expected, shape } = await run(backend.tensors, own)
    // Each element against itself.
    const within = { tolerance: tolerance.f32Activation, rowLength: 1, floor: 2 ** -120 }
    expectClose(actual, expected, { name: 'out', shape, ...within })
  }

  test.each([1, 3, 7, 8, 9, 15, 16, 17, 64, 127, 1031, 70_001])('rows of %i', async (width) => {
    for (const rows of width > 2000 ? [2] : [0, 1, 2, 17]) {
      const x = normals(rows, rows * width).map((value) => 30 * value)
      await expectReference({ x, cap: 30, width })
    }
  })

  test.each([1e-3, 0.5, 15, 30, 50, 1e6])('a cap of %p', async (cap) => {
    const x = normals(1, 5 * 37).map((value) => 2 * cap * value)
    await expectReference({ x, cap, width: 37 })
  })

  test('every order of magnitude, of either sign', async () => {
    const sizes = Array.from({ length: 70 }, (_, i) => 10 ** (i - 34))
    const near = Array.from({ length: 40 }, (_, i) => 30 * (0.5 + i / 160)) // where formulas change
    const x = [...sizes, ...near].flatMap((value) => [value, -value])
    await expectReference({ x, cap: 30, width: x.length })
  })

  test('infinity is the cap, zero and NaN stay', async () => {
    const x = [0, -0, Infinity, -Infinity, Number.NaN, 3e38, -3e38]
    for (const width of [1, x.length]) {
      const { actual } = await run(backend.tensors, { x, cap: 30, width })
      expect([...actual]).toEqual([0, -0, 30, -30, Number.NaN, 30, -30])
    }
  })

  test('never leaves the cap, and rises', async () => {
    const x = Array.from({ length: 4001 }, (_, i) => (i - 2000) / 10)
    const { actual } = await run(backend.tensors, { x, cap: 30, width: x.length })
    for (const [i, y] of actual.entries()) {
      expect(Math.abs(y)).toBeLessThanOrEqual(30)
      // Where one formula ends and the other begins, both are within a rounding or two.
      if (i > 0) expect(y - actual[i - 1]!).toBeGreaterThan(-1e-5)
    }
  })

  test('in place, the same bits', async () => {
    const own = { x: normals(1, 3 * 29).map((value) => 20 * value), cap: 15, width: 29 }
    const there = await run(backend.tensors, own)
    const here = await run(backend.tensors, { ...own, inPlace: true })
    expectIdentical(here.actual, there.actual, { name: 'out', shape: here.shape })
  })

  test('an element has the same bits wherever it lies in a row', async () => {
    const own = { x: normals(1, 60).map((value) => 20 * value), cap: 15 }
    const whole = await run(backend.tensors, { ...own, width: 60 })
    for (const width of [1, 3, 5, 12]) {
      const cut = await run(backend.tensors, { ...own, width })
      expectIdentical(cut.actual, whole.actual, { name: 'out', shape: cut.shape })
    }
  })

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['f16', (t) => ({ x: t.output('f16', [3, 7]) }), 'ERR_ZC_DTYPE', 'x'],
    ['x of one axis', (t) => ({ x: t.output('f32', [21]) }), 'ERR_ZC_SHAPE', 'x'],
    ['out of another dtype', (t) => ({ out: t.output('bf16', [3, 7]) }), 'ERR_ZC_DTYPE', 'out'],
    ['out of another shape', (t) => ({ out: t.output('f32', [7, 3]) }), 'ERR_ZC_SHAPE', 'out'],
    ['a cap of 0', () => ({ cap: 0 }), 'ERR_ZC_ARGUMENT', 'cap'],
    ['one below', () => ({ cap: -30 }), 'ERR_ZC_ARGUMENT', 'cap'],
    ['one of NaN', () => ({ cap: Number.NaN }), 'ERR_ZC_ARGUMENT', 'cap'],
    ['none', () => ({ cap: undefined }), 'ERR_ZC_ARGUMENT', 'cap'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const args = { x: tensors.output('f32', [3, 7]), cap: 30, out: tensors.output('f32', [3, 7]) }
    const refuse = () => softCap({ ...args, ...fault(tensors) })
    expectRefused(refuse, { code, op: 'softCap', argument })
  })
})
