import type { ErrorCode } from '../../lib/errors.js'
import { clampedSwiglu } from '../../lib/ops/index.js'
import { clampedSwiglu as reference } from '../../lib/reference/index.js'
import { describeBackends } from '../support/backends.js'
import { expectClose, expectIdentical } from '../support/compare.js'
import { type DeviceTensors, floatDtypes } from '../support/device-tensors.js'
import { expectRefused } from '../support/errors.js'
import { type Gate, runGate } from '../support/gates.js'
import { normals } from '../support/random-data.js'
import { tolerance } from '../support/tolerance.js'

interface Clamped extends Gate {
  alpha?: number
  limit?: number
}

const run = (tensors: DeviceTensors, { alpha = 1.702, limit = 7, ...own }: Clamped) =>
  runGate(
    {
      op: (args) => clampedSwiglu({ ...args, alpha, limit }),
      reference: (rows) => reference({ ...rows, alpha, limit }),
    },
    tensors,
    own,
  )

describeBackends('clampedSwiglu', (backend) => {
  async function expectReference(own: Clamped) {
    const { actual, expected, shape } = await run(backend.tensors, own)
    const dtype = own.out ?? own.dtype ?? 'f32'
    const within = { f32: 'f32ClampedSwiglu', f16: 'f16Output', bf16: 'bf16Output' } as const
    // Each element against itself; where a 16-bit float is subnormal, against what it can resolve.
    const floor = dtype === 'f16' ? 2 ** -14 : 2 ** -90
    expectClose(actual, expected, {
      ...{ name: 'out', shape, tolerance: tolerance[within[dtype]], rowLength: 1, floor },
    })
  }

  test.each([1, 3, 7, 8, 9, 15, 16, 17, 64, 127, 1031])('rows of %i', async (width) => {
    for (const rows of [0, 1, 2, 17]) {
      const gate = normals(rows, rows * width).map((x) => 6 * x)
      const up = normals(width, rows * width).map((x) => 6 * x)
      await expectReference({ gate, up, width })
      await expectReference({ gate, up, width, alpha: -0.5, limit: 2.5 })
    }
  })

  const pairs = floatDtypes.flatMap((dtype) => floatDtypes.map((out) => ({ dtype, out })))
  test.each(pairs)('inputs of $dtype, out of $out', async ({ dtype, out }) => {
    const [gate, up] = [1, 2].map((seed) => normals(seed, 5 * 37).map((x) => 5 * x))
    await expectReference({ gate: gate!, up: up!, width: 37, dtype, out })
  })

  test('both are clamped: up on both sides, gate from above alone', async () => {
    const own = { gate: [9, 1e30, 7, -30, 7], up: [7, 9, 1e30, 0, -1e30], width: 5 }
    const { actual } = await run(backend.tensors, { ...own, alpha: 1 })
    const most = 7 / (1 + Math.exp(-7))
    const expected = [8 * most, 8 * most, 8 * most, -30 * Math.exp(-30), -6 * most]
    for (const [i, y] of actual.entries()) {
      expect(Math.abs(y / expected[i]! - 1)).toBeLessThan(1e-6)
    }
    const far = await run(backend.tensors, { gate: [-1e4, -3e38], up: [1, 1], width: 2 })
    for (const y of far.actual) expect(Math.abs(y)).toBeLessThan(1e-35)
  })

  test.each(['gate', 'up'] as const)('NaN of %s stays where it is', async (input) => {
    for (const width of [19, 1]) {
      const own = { gate: normals(1, 19), up: normals(2, 19) }
      own[input][3] = Number.NaN
      own[input][18] = Number.NaN
      const { actual } = await run(backend.tensors, { ...own, width })
      const found = [...actual.keys()].filter((i) => Number.isNaN(actual[i]))
      expect(found).toEqual([3, 18])
    }
  })

  test.each(floatDtypes)('over either input in %s, the same bits', async (dtype) => {
    const own = { gate: normals(1, 3 * 29), up: normals(2, 3 * 29), width: 29, dtype }
    const there = await run(backend.tensors, own)
    for (const into of ['gate', 'up'] as const) {
      const here = await run(backend.tensors, { ...own, into })
      expectIdentical(here.actual, there.actual, { name: `out = ${into}`, shape: here.shape })
    }
  })

  test('an element has the same bits wherever it lies in a row', async () => {
    const own = { gate: normals(1, 60), up: normals(2, 60) }
    const whole = await run(backend.tensors, { ...own, width: 60 })
    for (const width of [1, 3, 5, 12]) {
      const cut = await run(backend.tensors, { ...own, width })
      expectIdentical(cut.actual, whole.actual, { name: 'out', shape: cut.shape })
    }
  })

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['integers', (t) => ({ gate: t.output('i32', [3, 7]) }), 'ERR_ZC_DTYPE', 'gate'],
    ['up of another shape', (t) => ({ up: t.output('f32', [3, 6]) }), 'ERR_ZC_SHAPE', 'up'],
    ['another out', (t) => ({ out: t.output('f32', [7, 3]) }), 'ERR_ZC_SHAPE', 'out'],
    ['an alpha of NaN', () => ({ alpha: Number.NaN }), 'ERR_ZC_ARGUMENT', 'alpha'],
    ['text for alpha', () => ({ alpha: '1' }), 'ERR_ZC_ARGUMENT', 'alpha'],
    ['a limit of 0', () => ({ limit: 0 }), 'ERR_ZC_ARGUMENT', 'limit'],
    ['an infinite limit', () => ({ limit: Infinity }), 'ERR_ZC_ARGUMENT', 'limit'],
    ['no limit', () => ({ limit: undefined }), 'ERR_ZC_ARGUMENT', 'limit'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const args = {
      gate: tensors.output('f32', [3, 7]),
      up: tensors.output('f32', [3, 7]),
      out: tensors.output('f32', [3, 7]),
      ...{ alpha: 1.702, limit: 7 },
    }
    const refuse = () => clampedSwiglu({ ...args, ...fault(tensors) })
    expectRefused(refuse, { code, op: 'clampedSwiglu', argument })
  })
})
