import type { ErrorCode } from '../../lib/errors.js'
import { setTailLengths } from '../../lib/ops/index.js'
import { describeBackends } from '../support/backends.js'
import { expectIdentical } from '../support/compare.js'
import type { DeviceTensors } from '../support/device-tensors.js'
import { expectRefused, expectRejected } from '../support/errors.js'
import { kvTable } from '../support/packed-cache.js'

const int32Max = 2 ** 31 - 1
const int32Min = -(2 ** 31)

describeBackends('setTailLengths', (backend) => {
  const nWords = 60
  const words = Int32Array.from({ length: nWords }, (_, i) => 1000 + i)

  /** Sets the lengths in tables that begin at `starts`. */
  function set(starts: readonly number[], lengths: readonly number[]) {
    const { tensors } = backend
    const tables = tensors.i32(words)
    setTailLengths({ tables, starts: tensors.i32(starts), lengths: tensors.i32(lengths) })
    return tables
  }

  test.each([
    ['one table', [0], [7]],
    ['the last table that fits', [nWords - kvTable.header], [1]],
    ['several, in no order, with gaps', [40, 3, 19], [0, int32Max, 33]],
    ['one named twice: the later length stays', [8, 8], [5, 6]],
    ['none', [], []],
  ] as [string, number[], number[]][])('%s', async (_, starts, lengths) => {
    const expected = words.slice()
    starts.forEach((start, i) => {
      expected[start + kvTable.tailLength] = lengths[i] as number
    })
    const tables = await backend.tensors.read(set(starts, lengths))
    expectIdentical(tables, expected, { name: 'tables', shape: [nWords] })
  })

  test('a masked sequence is left alone, whatever its length says', async () => {
    const expected = words.slice()
    expected[16 + kvTable.tailLength] = 9
    const tables = await backend.tensors.read(set([-1, 16, -1], [-5, 9, int32Min]))
    expectIdentical(tables, expected, { name: 'tables', shape: [nWords] })
  })

  test.each([-2, nWords - kvTable.header + 1, nWords, int32Max, int32Min])(
    'a table at word %i of 60 is rejected at the next sync',
    async (start) => {
      set([0, start], [1, 1])
      const fault = { code: 'ERR_ZC_ARGUMENT', op: 'setTailLengths', message: /^starts: / } as const
      await expectRejected(backend.device.sync(), fault)
    },
  )

  test.each([-1, int32Min])('a length of %i is rejected at the next sync', async (length) => {
    set([0], [length])
    const fault = { code: 'ERR_ZC_ARGUMENT', op: 'setTailLengths', message: /^lengths: / } as const
    await expectRejected(backend.device.sync(), fault)
  })

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['float tables', (t) => ({ tables: t.output('f32', [60]) }), 'ERR_ZC_DTYPE', 'tables'],
    ['tables of two axes', (t) => ({ tables: t.output('i32', [2, 30]) }), 'ERR_ZC_SHAPE', 'tables'],
    ['float starts', (t) => ({ starts: t.f32([0]) }), 'ERR_ZC_DTYPE', 'starts'],
    ['starts of two axes', (t) => ({ starts: t.i32([0], [1, 1]) }), 'ERR_ZC_SHAPE', 'starts'],
    ['float lengths', (t) => ({ lengths: t.f32([0]) }), 'ERR_ZC_DTYPE', 'lengths'],
    ['fewer lengths', (t) => ({ lengths: t.i32([]) }), 'ERR_ZC_SHAPE', 'lengths'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const args = { tables: tensors.i32(words), starts: tensors.i32([0]), lengths: tensors.i32([0]) }
    const refuse = () => setTailLengths({ ...args, ...fault(tensors) })
    expectRefused(refuse, { code, op: 'setTailLengths', argument })
  })
})
