import type { ErrorCode } from '../../lib/errors.js'
import { geluGate, siluGate } from '../../lib/ops/index.js'
import { geluGate as geluReference, siluGate as siluReference } from '../../lib/reference/index.js'
import { describeBackends } from '../support/backends.js'
import { expectClose, expectIdentical } from '../support/compare.js'
import { type DeviceTensors, floatDtypes } from '../support/device-tensors.js'
import { expectRefused } from '../support/errors.js'
import { type Gate, runGate } from '../support/gates.js'
import { normals } from '../support/random-data.js'
import { tolerance } from '../support/tolerance.js'

const gates = { siluGate, geluGate }
const references = { siluGate: siluReference, geluGate: geluReference }
const allowed = {
  siluGate: tolerance.f32Activation,
  geluGate: tolerance.f32Gelu,
  f16: tolerance.f16Output,
  bf16: tolerance.bf16Output,
}

const run = (op: keyof typeof gates, tensors: DeviceTensors, own: Gate) =>
  runGate({ op: gates[op], reference: references[op] }, tensors, own)

describe.each(['siluGate', 'geluGate'] as const)('%s', (op) => {
  describeBackends(op, (backend) => {
    async function expectReference(own: Gate) {
      const { actual, expected, shape } = await run(op, backend.tensors, own)
      const dtype = own.out ?? own.dtype ?? 'f32'
      // Each element against itself; where a 16-bit float is subnormal, against what it can resolve.
      const floor = dtype === 'f16' ? 2 ** -14 : 2 ** (op === 'geluGate' ? -90 : -120)
      expectClose(actual, expected, {
        name: 'out',
        shape,
        tolerance: allowed[dtype === 'f32' ? op : dtype],
        rowLength: 1,
        floor,
      })
    }

    test.each([1, 3, 7, 8, 9, 15, 16, 17, 64, 127, 1031])('rows of %i', async (width) => {
      for (const rows of [0, 1, 2, 17]) {
        const gate = normals(rows, rows * width).map((x) => 4 * x)
        await expectReference({ gate, up: normals(width, rows * width), width })
      }
    })

    const pairs = floatDtypes.flatMap((dtype) => floatDtypes.map((out) => ({ dtype, out })))
    test.each(pairs)('inputs of $dtype, out of $out', async ({ dtype, out }) => {
      const gate = normals(1, 5 * 37).map((x) => 3 * x)
      await expectReference({ gate, up: normals(2, 5 * 37), width: 37, dtype, out })
    })

    test('every order of magnitude', async () => {
      const sizes = Array.from({ length: 70 }, (_, i) => 10 ** (i - 32))
      const gate = [...sizes, ...sizes.map((x) => -x)].filter((x) => x > -80 && x < 1e30)
      await expectReference({ gate, up: gate.map(() => 1), width: gate.length })
    })

    test('inputs so extreme that e^x overflows give what the limit is, and no NaN', async () => {
      const { tensors } = backend
      const gate = [0, -0, 88, 89, 100, 1e4, 3e38, -88, -89, -104, -150, -1e4, -3e38]
      for (const width of [1, gate.length]) {
        const { actual } = await run(op, tensors, { gate, up: gate.map(() => 1), width })
        expect([...actual].map((x) => x + 0)).toEqual([
          ...[0, 0, 88, 89, 100, 1e4, 3e38].map(Math.fround),
          ...gate.slice(7).map(() => expect.any(Number)),
        ])
        for (const y of actual.subarray(7)) expect(Math.abs(y)).toBeLessThan(1e-35)
      }
    })

    test('NaN stays where it is', async () => {
      const gate = normals(1, 19)
      gate[3] = Number.NaN
      gate[18] = Number.NaN
      const { actual } = await run(op, backend.tensors, { gate, up: normals(2, 19), width: 19 })
      const found = [...actual.keys()].filter((i) => Number.isNaN(actual[i]))
      expect(found).toEqual([3, 18])
    })

    test('f16 outputs saturate', async () => {
      const own = { gate: [1e5, 1e5, 300], up: [1, -1, 300], width: 3, out: 'f16' } as const
      const { actual } = await run(op, backend.tensors, own)
      expect([...actual]).toEqual([65504, -65504, 65504])
    })

    test.each(floatDtypes)('over either input in %s, the same bits', async (dtype) => {
      const own = { gate: normals(1, 3 * 29), up: normals(2, 3 * 29), width: 29, dtype }
      const there = await run(op, backend.tensors, own)
      for (const into of ['gate', 'up'] as const) {
        const here = await run(op, backend.tensors, { ...own, into })
        expectIdentical(here.actual, there.actual, { name: `out = ${into}`, shape: here.shape })
      }
    })

    test('an element has the same bits wherever it lies in a row', async () => {
      const own = { gate: normals(1, 60), up: normals(2, 60) }
      const whole = await run(op, backend.tensors, { ...own, width: 60 })
      for (const width of [1, 3, 5, 12]) {
        const cut = await run(op, backend.tensors, { ...own, width })
        expectIdentical(cut.actual, whole.actual, { name: 'out', shape: cut.shape })
      }
    })

    const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
      ['integers', (t) => ({ gate: t.output('i32', [3, 7]) }), 'ERR_ZC_DTYPE', 'gate'],
      ['gate of one axis', (t) => ({ gate: t.output('f32', [21]) }), 'ERR_ZC_SHAPE', 'gate'],
      ['up of another dtype', (t) => ({ up: t.output('f16', [3, 7]) }), 'ERR_ZC_DTYPE', 'up'],
      ['up of another shape', (t) => ({ up: t.output('f32', [3, 6]) }), 'ERR_ZC_SHAPE', 'up'],
      ['another out', (t) => ({ out: t.output('f32', [7, 3]) }), 'ERR_ZC_SHAPE', 'out'],
      ['integers for out', (t) => ({ out: t.output('i32', [3, 7]) }), 'ERR_ZC_DTYPE', 'out'],
    ]
    test.each(refused)('refuses %s', (_, fault, code, argument) => {
      const { tensors } = backend
      const args = {
        gate: tensors.output('f32', [3, 7]),
        up: tensors.output('f32', [3, 7]),
        out: tensors.output('f32', [3, 7]),
      }
      expectRefused(() => gates[op]({ ...args, ...fault(tensors) }), { code, op, argument })
    })
  })
})
