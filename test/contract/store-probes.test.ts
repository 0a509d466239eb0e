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

  test.each(floatDtypes)('every layer of %s as by a call of its own', async (dtype) => {
    const { tensors } = backend
    const [nLayers, nRows, nHeads, headDim, capacity] = [3, 4, 2, 5, 6]
    const slots = tensors.i32([5, -1, 0, 2])
    const make = (lead: number[], rows: number, seed: number) => {
      const n = [...lead, rows, nHeads].reduce((product, size) => product * size, 1)
      const q = storeAs(dtype, normals(seed, n * headDim)).stored as Uint16Array
      return {
        q: tensors.input(dtype, q, [...lead, rows, nHeads, headDim]),
        lse: tensors.f32(normals(seed + 1, n), [...lead, rows, nHeads]),
      }
    }
    const rows = make([nLayers], nRows, 1)
    const kept = make([nLayers], capacity, 3)
    const apart = make([nLayers], capacity, 3)
    storeProbes({ ...rows, slots, probeQ: kept.q, probeLse: kept.lse })
    for (let layer = 0; layer < nLayers; layer++) {
      const of = (t: typeof rows, n: number) => ({
        q: tensors.own(t.q.view([n, nHeads, headDim], layer * n * nHeads * headDim)),
        lse: tensors.own(t.lse.view([n, nHeads], layer * n * nHeads)),
      })
      const own = of(apart, capacity)
      storeProbes({ ...of(rows, nRows), slots, probeQ: own.q, probeLse: own.lse })
    }
    expect(await tensors.values(kept.q)).toEqual(await tensors.values(apart.q))
    expect(await tensors.read(kept.lse)).toEqual(await tensors.read(apart.lse))
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
    ['q of five rows', (t) => ({ q: t.output('f32', [5, 2, 3]) }), 'ERR_ZC_SHAPE', 'lse'],
    ['fewer probeLse', (t) => ({ probeLse: t.output('f32', [4, 2]) }), 'ERR_ZC_SHAPE', 'probeLse'],
  ]
  const layered: [string, (t: DeviceTensors) => object, string][] = [
    ['lse of one layer', (t) => ({ lse: t.output('f32', [2, 2]) }), 'lse'],
    ['lse of more layers', (t) => ({ lse: t.output('f32', [3, 2, 2]) }), 'lse'],
    ['probeQ of one layer', (t) => ({ probeQ: t.output('f32', [5, 2, 3]) }), 'probeQ'],
    ['probeQ of more layers', (t) => ({ probeQ: t.output('f32', [3, 5, 2, 3]) }), 'probeQ'],
    ['probeLse of one layer', (t) => ({ probeLse: t.output('f32', [5, 2]) }), 'probeLse'],
    ['probeLse of fewer slots', (t) => ({ probeLse: t.output('f32', [4, 4, 2]) }), 'probeLse'],
    ['slots of all layers', (t) => ({ slots: t.output('i32', [4, 2]) }), 'slots'],
  ]
  test.each(layered)('of 4 layers, refuses %s', (_, fault, argument) => {
    const { tensors } = backend
    const args = {
      q: tensors.output('f32', [4, 2, 2, 3]),
      lse: tensors.output('f32', [4, 2, 2]),
      slots: tensors.i32([0, 1]),
      probeQ: tensors.output('f32', [4, 5, 2, 3]),
      probeLse: tensors.output('f32', [4, 5, 2]),
    }
    const refuse = () => storeProbes({ ...args, ...fault(tensors) })
    expectRefused(refuse, { code: 'ERR_ZC_SHAPE', op: 'storeProbes', argument })
  })

  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const refuse = () => storeProbes({ ...call(tensors, [0, 1]), ...fault(tensors) })
    expectRefused(refuse, { code, op: 'storeProbes', argument })
  })
})
