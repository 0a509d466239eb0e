import type { ErrorCode } from '../../lib/errors.js'
import { embedding } from '../../lib/ops/index.js'
import { type FloatDtype, embedding as reference } from '../../lib/reference/index.js'
import { describeBackends } from '../support/backends.js'
import { expectIdentical } from '../support/compare.js'
import { type DeviceTensors, floatDtypes } from '../support/device-tensors.js'
import { expectRefused, expectRejected } from '../support/errors.js'
import { normals, randomNumbers, storeAs } from '../support/random-data.js'

describeBackends('embedding', (backend) => {
  async function expectReference(
    vocabSize: number,
    width: number,
    n: number,
    dtype: FloatDtype,
    scale?: number,
  ) {
    const { tensors } = backend
    const weight = storeAs(dtype, normals(width, vocabSize * width))
    const next = randomNumbers(n)
    const ids = Array.from({ length: n }, () => Math.floor(next() * vocabSize))
    if (n > 1) ids.splice(0, 2, vocabSize - 1, 0)
    const out = tensors.output('f32', [n, width])
    const rows = tensors.input(dtype, weight.stored as Uint16Array, [vocabSize, width])
    embedding({ ids: tensors.i32(ids), weight: rows, out, ...(scale ? { scale } : {}) })
    const expected = reference({ ids, weight: weight.values, width, ...(scale ? { scale } : {}) })
    expectIdentical(await tensors.values(out), expected, { name: 'out', shape: [n, width] })
  }

  test.each(floatDtypes)('copies rows of %s exactly', async (dtype) => {
    for (const width of [0, 1, 7, 8, 16, 17, 127]) {
      for (const n of [0, 1, 16, 33]) await expectReference(101, width, n, dtype)
    }
    await expectReference(1, 5, 3, dtype)
  })

  test.each(floatDtypes)('scales rows of %s', async (dtype) => {
    for (const width of [1, 8, 127]) await expectReference(101, width, 9, dtype, 0.5)
  })

  test.each(floatDtypes)('looks up some columns of %s', async (dtype) => {
    const { tensors } = backend
    const ids = [4, 0, 10, 4]
    for (const [stride, width, column] of [
      [64, 16, 32],
      [64, 16, 3],
      [40, 40, 0],
      [33, 5, 28],
      [9, 0, 9],
    ] as const) {
      const weight = storeAs(dtype, normals(stride, 11 * stride))
      const rows = tensors.input(dtype, weight.stored as Uint16Array, [11, stride])
      const out = tensors.output('f32', [4, width])
      embedding({ ids: tensors.i32(ids), weight: rows, out, scale: 0.5, column })
      const own = { width, stride, column, scale: 0.5 }
      const expected = reference({ ids, weight: weight.values, ...own })
      expectIdentical(await tensors.values(out), expected, { name: 'out', shape: [4, width] })
    }
  })

  test.each([-1, Number.NaN])('refuses column %d', (column) => {
    const { tensors } = backend
    const out = tensors.output('f32', [1, 4])
    const args = { ids: tensors.i32([0]), weight: tensors.output('f32', [3, 11]), out, column }
    expectRefused(() => embedding(args), { code: 'ERR_ZC_ARGUMENT', argument: 'column' })
  })

  test.each([8, 11])('refuses column %i of 11 where 4 are wanted', (column) => {
    const { tensors } = backend
    const out = tensors.output('f32', [1, 4])
    const args = { ids: tensors.i32([0]), weight: tensors.output('f32', [3, 11]), out, column }
    const fault = { code: 'ERR_ZC_ARGUMENT', op: 'embedding', argument: 'column' } as const
    expectRefused(() => embedding(args), fault)
  })

  test.each([0, -1, Number.NaN])('refuses a scale of %f', (scale) => {
    const { tensors } = backend
    const out = tensors.output('f32', [1, 4])
    const args = { ids: tensors.i32([0]), weight: tensors.output('f32', [11, 4]), out, scale }
    const fault = { code: 'ERR_ZC_ARGUMENT', op: 'embedding', argument: 'scale' } as const
    expectRefused(() => embedding(args), fault)
  })

  test.each([-1, 11, 2 ** 31 - 1, -(2 ** 31)])('id %i of 11, at the next sync', async (id) => {
    const { tensors, device } = backend
    const out = tensors.output('f32', [3, 4])
    const weight = tensors.f32(normals(1, 44), [11, 4])
    embedding({ ids: tensors.i32([0, 10, id]), weight, out })
    const fault = { code: 'ERR_ZC_ARGUMENT', op: 'embedding', message: /^ids: / } as const
    await expectRejected(device.sync(), fault)
  })

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['float ids', (t) => ({ ids: t.output('f32', [3]) }), 'ERR_ZC_DTYPE', 'ids'],
    ['ids of two axes', (t) => ({ ids: t.output('i32', [1, 3]) }), 'ERR_ZC_SHAPE', 'ids'],
    ['integer weights', (t) => ({ weight: t.output('i32', [11, 4]) }), 'ERR_ZC_DTYPE', 'weight'],
    ['weights of one axis', (t) => ({ weight: t.output('f32', [44]) }), 'ERR_ZC_SHAPE', 'weight'],
    ['f16 out', (t) => ({ out: t.output('f16', [3, 4]) }), 'ERR_ZC_DTYPE', 'out'],
    ['another out', (t) => ({ out: t.output('f32', [3, 5]) }), 'ERR_ZC_SHAPE', 'out'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const args = {
      ids: tensors.output('i32', [3]),
      weight: tensors.output('f32', [11, 4]),
      out: tensors.output('f32', [3, 4]),
    }
    const refuse = () => embedding({ ...args, ...fault(tensors) })
    expectRefused(refuse, { code, op: 'embedding', argument })
  })
})
