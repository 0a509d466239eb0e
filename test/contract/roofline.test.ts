import type { ErrorCode } from '../../lib/errors.js'
import { multiplyAdd, readStream } from '../../lib/ops/roofline.js'
import {
  multiplyAdd as referenceMultiplyAdd,
  readStream as referenceReadStream,
} from '../../lib/reference/index.js'
import { describeBackends } from '../support/backends.js'
import { expectClose, expectIdentical } from '../support/compare.js'
import type { DeviceTensors } from '../support/device-tensors.js'
import { expectRefused } from '../support/errors.js'
import { normals, randomNumbers } from '../support/random-data.js'
import { tolerance } from '../support/tolerance.js'

describe('the reference, by hand', () => {
  test('readStream', () => {
    const x = [1, 2, 4, 8, -1]
    expect([...referenceReadStream({ x, parts: 1 })]).toEqual([~15])
    expect([...referenceReadStream({ x, parts: 2 })]).toEqual([7, ~8])
    expect([...referenceReadStream({ x, parts: 4 })]).toEqual([3, 12, -1, 0])
    expect([...referenceReadStream({ x: [], parts: 3 })]).toEqual([0, 0, 0])
  })

  test('multiplyAdd', () => {
    const from = (steps: number) =>
      referenceMultiplyAdd({ x: [0, 1, -2], factor: 3, summand: 1, steps })
    expect([...from(0)]).toEqual([0, 1, -2])
    expect([...from(1)]).toEqual([1, 4, -5])
    expect([...from(2)]).toEqual([4, 13, -14])
  })
})

describeBackends('readStream', (backend) => {
  test.each([0, 1, 31, 32, 33, 64, 65, 4099])('%i words', async (n) => {
    const next = randomNumbers(n)
    const x = Int32Array.from({ length: n }, () => next() * 2 ** 32)
    for (const parts of [0, 1, 2, 3, 7, n + 2]) {
      const out = backend.tensors.output('i32', [parts])
      readStream({ x: backend.tensors.i32(x), out })
      const expected = referenceReadStream({ x, parts })
      const comparison = { name: 'out', shape: [parts], seed: n }
      expectIdentical(await backend.tensors.read(out), expected, comparison)
    }
  })

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['floats', (t) => ({ x: t.output('f32', [9]) }), 'ERR_ZC_DTYPE', 'x'],
    ['x of two axes', (t) => ({ x: t.output('i32', [3, 3]) }), 'ERR_ZC_SHAPE', 'x'],
    ['float out', (t) => ({ out: t.output('f32', [2]) }), 'ERR_ZC_DTYPE', 'out'],
    ['out of two axes', (t) => ({ out: t.output('i32', [2, 1]) }), 'ERR_ZC_SHAPE', 'out'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const args = { x: tensors.output('i32', [9]), out: tensors.output('i32', [2]) }
    const refuse = () => readStream({ ...args, ...fault(tensors) })
    expectRefused(refuse, { code, op: 'readStream', argument })
  })
})

describeBackends('multiplyAdd', (backend) => {
  test.each([0, 1, 7, 8, 9, 47, 48, 96, 97, 192, 391])('rows of %i', async (width) => {
    for (const [rows, steps] of [
      [0, 1],
      [1, 0],
      [3, 1],
      [2, 13],
    ] as const) {
      const x = normals(width, rows * width)
      const out = backend.tensors.output('f32', [rows, width])
      const scalars = { factor: -0.75, summand: 1.5, steps }
      multiplyAdd({ x: backend.tensors.f32(x, [rows, width]), out, ...scalars })
      const expected = referenceMultiplyAdd({ x, ...scalars })
      const comparison = { name: 'out', shape: [rows, width], seed: width }
      const actual = await backend.tensors.read(out)
      expectClose(actual, expected, { ...comparison, tolerance: tolerance.multiplyAdd })
    }
  })

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['f16', (t) => ({ x: t.output('f16', [3, 3]) }), 'ERR_ZC_DTYPE', 'x'],
    ['x of one axis', (t) => ({ x: t.output('f32', [9]) }), 'ERR_ZC_SHAPE', 'x'],
    ['another out', (t) => ({ out: t.output('f32', [3, 2]) }), 'ERR_ZC_SHAPE', 'out'],
    ['negative steps', () => ({ steps: -1 }), 'ERR_ZC_ARGUMENT', 'steps'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const x = tensors.output('f32', [3, 3])
    const args = { x, out: tensors.output('f32', [3, 3]), factor: 1, summand: 0, steps: 1 }
    const refuse = () => multiplyAdd({ ...args, ...fault(tensors) })
    expectRefused(refuse, { code, op: 'multiplyAdd', argument })
  })
})
