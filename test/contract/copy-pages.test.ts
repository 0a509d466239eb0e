import type { ErrorCode } from '../../lib/errors.js'
import { copyPages } from '../../lib/ops/index.js'
import { describeBackends } from '../support/backends.js'
import { expectIdentical } from '../support/compare.js'
import type { DeviceTensors } from '../support/device-tensors.js'
import { expectRefused, expectRejected } from '../support/errors.js'
import { kvTable } from '../support/packed-cache.js'
import { randomNumbers } from '../support/random-data.js'

const int32Max = 2 ** 31 - 1
const int32Min = -(2 ** 31)
const nUnits = 300
const poolBytes = nUnits * kvTable.unitBytes

describeBackends('copyPages', (backend) => {
  const random = randomNumbers(1)
  const bytes = Uint8Array.from({ length: poolBytes }, () => random() * 256)

  function copy(
    tensors: DeviceTensors,
    from: readonly number[],
    to: readonly number[],
    pageBytes: number,
  ) {
    const pool = tensors.input('u8', bytes)
    copyPages({ pool, from: tensors.i32(from), to: tensors.i32(to), pageBytes })
    return pool
  }

  function expected(from: readonly number[], to: readonly number[], pageBytes: number) {
    const pool = bytes.slice()
    from.forEach((unit, i) => {
      const at = unit * kvTable.unitBytes
      pool.set(bytes.subarray(at, at + pageBytes), (to[i] as number) * kvTable.unitBytes)
    })
    return pool
  }

  // 192, 576 and 2048 bytes: parameters, 4-bit and 16-bit pages of head_dim 32
  const calls: [string, number[], number[], number][] = [
    ['one page', [3], [250], 576],
    ['the first to the last', [0], [nUnits - 32], 2048],
    ['many pages, in no order', [40, 0, 9, 80], [200, 100, 150, 250], 576],
    ['one page to several', [7, 7, 7], [100, 10, 200], 192],
    ['a page to itself', [11], [11], 192],
    ['pages side by side', [0, 3, 6], [9, 12, 15], 192],
    ['pages of a unit', [299, 0], [1, 298], 64],
    ['no pages', [], [], 576],
  ]
  test.each(calls)('%s, and nothing else', async (_, from, to, pageBytes) => {
    const { tensors } = backend
    const pool = await tensors.read(copy(tensors, from, to, pageBytes))
    const shape = [poolBytes]
    expectIdentical(pool, expected(from, to, pageBytes), { name: 'pool', shape, seed: 1 })
  })

  test.each([1, 3])('with %i threads', async (threads) => {
    const from = Array.from({ length: 40 }, (_, i) => 3 * i)
    const to = from.map((unit) => unit + 150)
    await backend.withDevice({ threads }, async (_, tensors) => {
      const pool = await tensors.read(copy(tensors, from, to, 192))
      expectIdentical(pool, expected(from, to, 192), { name: 'pool', shape: [poolBytes] })
    })
  })

  const outside = [-1, int32Min, nUnits - 8, nUnits, int32Max]
  test.each(outside)('page %i is rejected at the next sync, and nothing copied', async (unit) => {
    const { tensors, device } = backend
    for (const [name, from, to] of [
      ['from', [0, unit], [100, 200]],
      ['to', [0, 50], [100, unit]],
    ] as const) {
      const pool = copy(tensors, from, to, 576)
      const message = new RegExp(`^${name}: `)
      const fault = { code: 'ERR_ZC_ARGUMENT', op: 'copyPages', message } as const
      await expectRejected(device.sync(), fault)
      expectIdentical(await tensors.read(pool), bytes, { name: 'pool', shape: [poolBytes] })
    }
  })

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['a pool of floats', (t) => ({ pool: t.output('f32', [99]) }), 'ERR_ZC_DTYPE', 'pool'],
    ['a pool of two axes', (t) => ({ pool: t.output('u8', [9, 64]) }), 'ERR_ZC_SHAPE', 'pool'],
    ['float from', (t) => ({ from: t.f32([0]) }), 'ERR_ZC_DTYPE', 'from'],
    ['from of two axes', (t) => ({ from: t.i32([0], [1, 1]) }), 'ERR_ZC_SHAPE', 'from'],
    ['float to', (t) => ({ to: t.f32([0]) }), 'ERR_ZC_DTYPE', 'to'],
    ['more to than from', (t) => ({ to: t.i32([0, 1]) }), 'ERR_ZC_SHAPE', 'to'],
    ['pages of 0 bytes', () => ({ pageBytes: 0 }), 'ERR_ZC_ARGUMENT', 'pageBytes'],
    ['pages of -64 bytes', () => ({ pageBytes: -64 }), 'ERR_ZC_ARGUMENT', 'pageBytes'],
    ['half a byte', () => ({ pageBytes: 64.5 }), 'ERR_ZC_ARGUMENT', 'pageBytes'],
    ['pages of NaN bytes', () => ({ pageBytes: Number.NaN }), 'ERR_ZC_ARGUMENT', 'pageBytes'],
    ['pages of 2^31 bytes', () => ({ pageBytes: 2 ** 31 }), 'ERR_ZC_ARGUMENT', 'pageBytes'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const pool = tensors.input('u8', bytes)
    const args = { pool, from: tensors.i32([0]), to: tensors.i32([1]), pageBytes: 64 }
    const refuse = () => copyPages({ ...args, ...fault(tensors) })
    expectRefused(refuse, { code, op: 'copyPages', argument })
  })
})
