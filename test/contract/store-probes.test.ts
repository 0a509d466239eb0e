import type { ErrorCode } from '../../lib/errors.js'
import { storeProbes } from '../../lib/ops/index.js'
import { describeBackends } from '../support/backends.js'
import { type DeviceTensors, floatDtypes } from '../support/device-tensors.js'
import { expectRefused, expectRejected } from '../support/errors.js'
import { normals, storeAs } from '../support/random-data.js'

describeBackends('storeProbes', (backend) => {
  /** A call whose probes are zeros before it. */
  function call(tensors: DeviceTensors, slots: readonly number[], capacity = 5) {
    const n = slots.length
    return {
      q: tensors.f32(normals(1, n * 6), [n, 2, 3]),
      lse: tensors.f32(normals(2, n * 2), [n, 2]),
      slots: tensors.i32(slots),
      probeQ: tensors.f32(new Float32Array(capacity * 6), [capacity, 2, 3]),
      probeLse: tensors.f32(new Float32Array(capacity * 2), [capacity, 2]),
    }
  }

  test.each(floatDtypes)('keeps rows of %s in their slots, and no others', async (dtype) => {
    const { tensors } = backend
    const slots = [3, -1, 0, -1, -1, 4]
    const q = storeAs(dtype, normals(1, 6 * 6))
    const lse = normals(2, 6 * 2)
    const args = {
      q: tensors.input(dtype, q.stored as Uint16Array, [6, 2, 3]),
      lse: tensors.f32(lse, [6, 2]),
      slots: tensors.i32(slots),
      probeQ: tensors.input(dtype, storeAs(dtype, new Float32Array(30)).stored as Uint16Array, [
        ...[5, 2, 3],
      ]),
      probeLse: tensors.f32(new Float32Array(10), [5, 2]),
    }
    storeProbes(args)
    const expectedQ = new Float64Array(30)
    const expectedLse = new Float32Array(10)
    for (const [row, slot] of slots.entries()) {
      if (slot < 0) continue
      expectedQ.set(q.values.subarray(row * 6, row * 6 + 6), slot * 6)
      expectedLse.set(lse.subarray(row * 2, row * 2 + 2), slot * 2)
    }
    expect(await tensors.values(args.probeQ)).toEqual(expectedQ)
    expect(await tensors.read(args.probeLse)).toEqual(expectedLse)
  })

  test('a later call adds to the slots, and a slot taken twice holds the later row', async () => {
    const { tensors } = backend
    const args = call(tensors, [1, 2, 1])
    storeProbes(args)
    storeProbes({ ...args, slots: tensors.i32([-1, 4, -1]) })
    const q = await tensors.read(args.q)
    const probes = await tensors.read(args.probeQ)
    const slot = (index: number) => [...probes.subarray(index * 6, index * 6 + 6)]
    const row = (index: number) => [...q.subarray(index * 6, index * 6 + 6)]
    const zeros = new Array(6).fill(0)
    expect([0, 1, 2, 3, 4].map(slot)).toEqual([zeros, row(2), row(1), zeros, row(1)])
  })

  test('no rows, and no room', async () => {
    const { tensors, device } = backend
    storeProbes(call(tensors, []))
    storeProbes(call(tensors, [-1, -1], 0))
    await device.sync()
  })

  test.each([5, -2, 2 ** 31 - 1, -(2 ** 31)])('slot %i of 5, at the next sync', async (slot) => {
    const { tensors, device } = backend
    storeProbes(call(tensors, [0, slot]))
    const fault = { code: 'ERR_ZC_ARGUMENT', op: 'storeProbes', message: /^slots: / } as const
    await expectRejected(device.sync(), fault)
  })

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['integers', (t) => ({ q: t.output('i32', [2, 2, 3]) }), 'ERR_ZC_DTYPE', 'q'],
    ['q of two axes', (t) => ({ q: t.output('f32', [2, 6]) }), 'ERR_ZC_SHAPE', 'q'],
    ['f16 lse', (t) => ({ lse: t.output('f16', [2, 2]) }), 'ERR_ZC_DTYPE', 'lse'],
    ['another lse', (t) => ({ lse: t.output('f32', [2, 1]) }), 'ERR_ZC_SHAPE', 'lse'],
    ['float slots', (t) => ({ slots: t.output('f32', [2]) }), 'ERR_ZC_DTYPE', 'slots'],
    ['more slots', (t) => ({ slots: t.output('i32', [3]) }), 'ERR_ZC_SHAPE', 'slots'],
    ['f16 probeQ', (t) => ({ probeQ: t.output('f16', [5, 2, 3]) }), 'ERR_ZC_DTYPE', 'probeQ'],
    ['another probeQ', (t) => ({ probeQ: t.output('f32', [5, 3, 2]) }), 'ERR_ZC_SHAPE', 'probeQ'],
    ['fewer probeLse', (t) => ({ probeLse: t.output('f32', [4, 2]) }), 'ERR_ZC_SHAPE', 'probeLse'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const refuse = () => storeProbes({ ...call(tensors, [0, 1]), ...fault(tensors) })
    expectRefused(refuse, { code, op: 'storeProbes', argument })
  })
})
