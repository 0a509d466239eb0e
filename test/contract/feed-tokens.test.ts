import type { ErrorCode } from '../../lib/errors.js'
import { feedTokens } from '../../lib/ops/index.js'
import { describeBackends } from '../support/backends.js'
import { expectIdentical } from '../support/compare.js'
import type { DeviceTensors } from '../support/device-tensors.js'
import { expectRefused, expectRejected } from '../support/errors.js'

const int32Max = 2 ** 31 - 1
const int32Min = -(2 ** 31)

describeBackends('feedTokens', (backend) => {
  function call(sampled: number[], source: number[], given: number[]) {
    const { tensors } = backend
    return {
      sampled: tensors.i32(sampled),
      source: tensors.i32(source),
      given: tensors.i32(given),
      out: tensors.output('i32', [source.length]),
    }
  }

  test.each([
    ['given tokens', [50, 51], [-1, -1, -1], [7, 8, 9], [7, 8, 9]],
    ['sampled tokens, in any order', [50, 51, 52], [2, 0, 1], [7, 8, 9], [52, 50, 51]],
    ['one sampled token to several rows', [50, 51], [1, 1, 1], [7, 8, 9], [51, 51, 51]],
    ['both, row by row', [50, 51], [-1, 1, -1, 0], [7, 8, 9, 10], [7, 51, 9, 50]],
    ['a sampled -1 as token 0', [-1, 51], [1, 0, -1], [7, 8, 9], [51, 0, 9]],
    ['more rows than were sampled', [50], [0, -1, 0, -1, 0], [1, 2, 3, 4, 5], [50, 2, 50, 4, 50]],
    ['given tokens where nothing was sampled', [], [-1], [7], [7]],
    ['the largest ids', [int32Max], [0, -1], [1, int32Max], [int32Max, int32Max]],
    ['no rows', [50], [], [], []],
  ] as [string, number[], number[], number[], number[]][])(
    '%s',
    async (_, sampled, source, given, expected) => {
      const args = call(sampled, source, given)
      feedTokens(args)
      const { tensors } = backend
      const shape = [expected.length]
      expectIdentical(await tensors.read(args.out), expected, { name: 'out', shape })
      expect([...(await tensors.read(args.sampled))]).toEqual(sampled)
    },
  )

  test.each([-2, 3, int32Max, int32Min])(
    'row %i of 3 is rejected at the next sync',
    async (source) => {
      feedTokens(call([50, 51, 52], [0, source], [7, 8]))
      const fault = { code: 'ERR_ZC_ARGUMENT', op: 'feedTokens', message: /^source: / } as const
      await expectRejected(backend.device.sync(), fault)
    },
  )

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['float sampled', (t) => ({ sampled: t.f32([0]) }), 'ERR_ZC_DTYPE', 'sampled'],
    ['sampled of two axes', (t) => ({ sampled: t.i32([0], [1, 1]) }), 'ERR_ZC_SHAPE', 'sampled'],
    ['float source', (t) => ({ source: t.f32([0, 0]) }), 'ERR_ZC_DTYPE', 'source'],
    ['source of two axes', (t) => ({ source: t.i32([0, 0], [2, 1]) }), 'ERR_ZC_SHAPE', 'source'],
    ['float given', (t) => ({ given: t.f32([0, 0]) }), 'ERR_ZC_DTYPE', 'given'],
    ['fewer given', (t) => ({ given: t.i32([0]) }), 'ERR_ZC_SHAPE', 'given'],
    ['float out', (t) => ({ out: t.output('f32', [2]) }), 'ERR_ZC_DTYPE', 'out'],
    ['more out', (t) => ({ out: t.output('i32', [3]) }), 'ERR_ZC_SHAPE', 'out'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const args = { ...call([1], [0, -1], [5, 6]), ...fault(backend.tensors) }
    expectRefused(() => feedTokens(args), { code, op: 'feedTokens', argument })
  })
})
