import type { ErrorCode } from '../../lib/errors.js'
import { sigmoidGate } from '../../lib/ops/index.js'
import { type FloatDtype, sigmoidGate as reference } from '../../lib/reference/index.js'
import { describeBackends } from '../support/backends.js'
import { expectClose, expectIdentical } from '../support/compare.js'
import { type DeviceTensors, floatDtypes } from '../support/device-tensors.js'
import { expectRefused } from '../support/errors.js'
import { normals, storeAs } from '../support/random-data.js'
import { tolerance } from '../support/tolerance.js'

interface Gated {
  gate: ArrayLike<number>
  x: ArrayLike<number>
  width: number
  dtype?: FloatDtype
  /** whether the result overwrites x */
  over?: boolean
}

async function run(tensors: DeviceTensors, own: Gated) {
  const { width, dtype = 'f32' } = own
  const shape = [own.gate.length / width, width]
  const gate = Float32Array.from(own.gate)
  const stored = storeAs(dtype, own.x)
  const x = tensors.input(dtype, stored.stored as Uint16Array, shape)
  const out = own.over ? x : tensors.output(dtype, shape)
  sigmoidGate({ gate: tensors.f32(gate, shape), x, out })
  const expected = reference({ gate, x: stored.values })
  return { actual: await tensors.values(out), expected, shape }
}

const allowed = {
  f32: tolerance.f32Activation,
  f16: tolerance.f16Output,
  bf16: tolerance.bf16Output,
}

describeBackends('sigmoidGate', (backend) => {
  async function expectReference(own: Gated) {
    const { actual, expected, shape } = await run(backend.tensors, own)
    const dtype = own.dtype ?? 'f32'
    // Each element against itself; where a 16-bit float is subnormal, against what it can resolve.
    const floor = dtype === 'f16' ? 2 ** -14 : 2 ** -120
    const within = { tolerance: allowed[dtype], rowLength: 1, floor }
    expectClose(actual, expected, { name: 'out', shape, ...within })
  }

  test.each([1, 3, 7, 8, 9, 15, 16, 17, 64, 127, 1031])('rows of %i', async (width) => {
    for (const rows of [0, 1, 2, 17]) {
      const gate = normals(rows, rows * width).map((x) => 4 * x)
      await expectReference({ gate, x: normals(width, rows * width), width })
    }
  })

  test.each(floatDtypes)('x of %s', async (dtype) => {
    const gate = normals(1, 5 * 37).map((x) => 3 * x)
    await expectReference({ gate, x: normals(2, 5 * 37), width: 37, dtype })
    await expectReference({ gate: gate.subarray(0, 96), x: normals(2, 96), width: 32, dtype })
  })

  test('every order of magnitude', async () => {
    const sizes = Array.from({ length: 70 }, (_, i) => 10 ** (i - 32))
    const gate = [...sizes, ...sizes.map((x) => -x)].filter((x) => x > -80)
    await expectReference({ gate, x: gate.map(() => 1), width: gate.length })
  })

  test('gates so extreme that e^x overflows are open or shut, and no NaN', async () => {
    const gate = [0, -0, 88, 89, 1e4, 3e38, Infinity, -88, -89, -104, -1e4, -3e38, -Infinity]
    for (const width of [1, gate.length]) {
      const { actual } = await run(backend.tensors, { gate, x: gate.map(() => 2), width })
      expect([...actual.subarray(0, 7)]).toEqual([1, 1, 2, 2, 2, 2, 2])
      for (const y of actual.subarray(7)) expect(Math.abs(y)).toBeLessThan(1e-37)
    }
  })

  test.each(['gate', 'x'] as const)('NaN of %s stays where it is', async (input) => {
    const own = { gate: normals(1, 19), x: normals(2, 19) }
    own[input][3] = Number.NaN
    own[input][18] = Number.NaN
    const { actual } = await run(backend.tensors, { ...own, width: 19 })
    expect([...actual.keys()].filter((i) => Number.isNaN(actual[i]))).toEqual([3, 18])
  })

  test.each(floatDtypes)('over x in %s, the same bits', async (dtype) => {
    const own = { gate: normals(1, 3 * 29), x: normals(2, 3 * 29), width: 29, dtype }
    const there = await run(backend.tensors, own)
    const here = await run(backend.tensors, { ...own, over: true })
    expectIdentical(here.actual, there.actual, { name: 'out', shape: here.shape })
  })

  test('an element has the same bits wherever it lies in a row', async () => {
    const own = { gate: normals(1, 60), x: normals(2, 60) }
    const whole = await run(backend.tensors, { ...own, width: 60 })
    for (const width of [1, 3, 5, 12]) {
      const cut = await run(backend.tensors, { ...own, width })
      expectIdentical(cut.actual, whole.actual, { name: 'out', shape: cut.shape })
    }
  })

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['an f16 gate', (t) => ({ gate: t.output('f16', [3, 7]) }), 'ERR_ZC_DTYPE', 'gate'],
    ['a gate of one axis', (t) => ({ gate: t.output('f32', [21]) }), 'ERR_ZC_SHAPE', 'gate'],
    ['integers', (t) => ({ x: t.output('i32', [3, 7]) }), 'ERR_ZC_DTYPE', 'x'],
    ['x of another shape', (t) => ({ x: t.output('f16', [3, 6]) }), 'ERR_ZC_SHAPE', 'x'],
    ['out of another dtype', (t) => ({ out: t.output('f32', [3, 7]) }), 'ERR_ZC_DTYPE', 'out'],
    ['out of another shape', (t) => ({ out: t.output('f16', [7, 3]) }), 'ERR_ZC_SHAPE', 'out'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const args = {
      gate: tensors.output('f32', [3, 7]),
      x: tensors.output('f16', [3, 7]),
      out: tensors.output('f16', [3, 7]),
    }
    const refuse = () => sigmoidGate({ ...args, ...fault(tensors) })
    expectRefused(refuse, { code, op: 'sigmoidGate', argument })
  })
})
