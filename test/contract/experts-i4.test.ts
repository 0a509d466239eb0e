import type { ErrorCode } from '../../lib/errors.js'
import { expertLinear, linear, type Tensor, type WeightScales } from '../../lib/ops/index.js'
import {
  type FloatDtype,
  expertLinear as reference,
  routeExperts,
} from '../../lib/reference/index.js'
import { describeBackends, isHost } from '../support/backends.js'
import { expectClose, expectIdentical } from '../support/compare.js'
import { type DeviceTensors, floatDtypes } from '../support/device-tensors.js'
import { expectRefused } from '../support/errors.js'
import { normals, storeAs } from '../support/random-data.js'
import { tolerance } from '../support/tolerance.js'
import {
  type Grouping,
  makeWeightOf4Bits,
  tensorsOf4Bits,
  valuesOf4Bits,
} from '../support/weights-of-4-bits.js'

const [nExperts, nChosen, n] = [5, 2, 53]

/** A call with matrices of 4 bits, as a backend has it, and what the reference says. */
function callOf(
  { name, tensors }: { name: string; tensors: DeviceTensors },
  { m, k, group, dtype }: { m: number; k: number; group: Grouping; dtype: FloatDtype },
) {
  const seed = m + k + (group === 'mxfp4' ? 0 : group)
  const routing = routeExperts({ logits: normals(seed, m * nExperts), nExperts, nChosen })
  const x = storeAs(dtype, normals(seed + 1, m * k))
  const bias = storeAs('bf16', normals(seed + 5, nExperts * n))
  const stored = makeWeightOf4Bits(group, nExperts * n * k, seed + 2)
  const args = {
    x: tensors.input(dtype, x.stored as Uint16Array, [m, k]),
    ...tensorsOf4Bits(tensors, stored, group, [nExperts, n, k]),
    bias: tensors.input('bf16', bias.stored as Uint16Array, [nExperts, n]),
    pairs: tensors.i32(routing.pairs),
    offsets: tensors.i32(routing.offsets),
    out: tensors.output('f32', [m * nChosen, n]),
  }
  const weight = valuesOf4Bits(stored, group, dtype, isHost(name))
  const values = { x: x.values, weight, bias: bias.values, experts: routing.experts }
  const expected = reference({ ...values, m, n, k })
  return { args, expected, experts: routing.experts }
}

/** The same by `linear`, each pair by itself. */
async function runAlone(
  tensors: DeviceTensors,
  { args, experts }: Pick<ReturnType<typeof callOf>, 'args' | 'experts'>,
): Promise<Float64Array> {
  const { x, weight, scales, zeros, bias } = args
  const k = x.shape[1] as number
  const outs: Float64Array[] = []
  for (const [pair, expert] of experts.entries()) {
    const partOf = <T extends Tensor>(all: T) => {
      const shape = all.shape.slice(1)
      const own = all.view(shape, expert * (shape[0] as number) * (shape[1] as number)) as T
      return tensors.own(own)
    }
    const out = tensors.output('f32', [1, n])
    linear({
      x: tensors.own(x.view([1, k], Math.floor(pair / nChosen) * k)),
      ...{ weight: partOf(weight), scales: partOf<WeightScales>(scales), out },
      ...(zeros && { zeros: partOf(zeros) }),
      bias: tensors.own(bias.view([n], expert * n)),
    })
    outs.push(await tensors.values(out))
  }
  return Float64Array.from(outs.flatMap((out) => [...out]))
}

const title = 'expertLinear with weights of 4 bits'

describeBackends(title, (backend) => {
  describe.each(floatDtypes)('x of %s', (dtype) => {
    test.each([
      [0, 64, 64],
      [1, 320, 64],
      [9, 512, 128],
      [40, 192, 32],
      [131, 64, 64],
      [1, 320, 'mxfp4'],
      [40, 192, 'mxfp4'],
      [131, 64, 'mxfp4'],
      [200, 320, 64],
      [200, 192, 'mxfp4'],
    ] as const)(
      '%i rows of %i, groups of %s: the reference, to the bit as linear',
      async (m, k, group) => {
        const { tensors } = backend
        const call = callOf(backend, { m, k, group, dtype })
        expertLinear(call.args)
        const actual = await tensors.values(call.args.out)
        const comparison = { name: 'out', shape: call.args.out.shape }
        const within = { tolerance: tolerance.i8Linear, floor: Math.sqrt(k) }
        expectClose(actual, call.expected, { ...comparison, ...within })
        expectIdentical(actual, await runAlone(tensors, call), comparison)
      },
    )
  })

  test.each([1, 3])('the same bits on %i threads', async (threads) => {
    const run = async (tensors: DeviceTensors) => {
      const { name } = backend
      const { args } = callOf({ name, tensors }, { m: 67, k: 320, group: 64, dtype: 'f32' })
      expertLinear(args)
      return tensors.values(args.out)
    }
    const here = await run(backend.tensors)
    const there = await backend.withDevice({ threads }, (_, tensors) => run(tensors))
    expectIdentical(there, here, { name: 'out', shape: [67 * nChosen, n] })
  })
})

describeBackends(`${title}, refused`, (backend) => {
  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['one matrix', (t) => ({ weight: t.output('u8', [5, 64]) }), 'ERR_ZC_SHAPE', 'weight'],
    ['a byte a code', (t) => ({ weight: t.output('u8', [4, 5, 128]) }), 'ERR_ZC_SHAPE', 'weight'],
    ['no scales', () => ({ scales: undefined }), 'ERR_ZC_ARGUMENT', 'scales'],
    ['no zeros', () => ({ zeros: undefined }), 'ERR_ZC_ARGUMENT', 'zeros'],
    [
      'float4 in 64',
      (t) => ({ scales: t.output('u8', [4, 5, 2]), zeros: undefined }),
      'ERR_ZC_SHAPE',
      'scales',
    ],
    [
      'scales of one expert',
      (t) => ({ scales: t.output('f16', [5, 2]) }),
      'ERR_ZC_SHAPE',
      'scales',
    ],
    [
      'scales of other experts',
      (t) => ({ scales: t.output('f16', [3, 5, 2]) }),
      'ERR_ZC_SHAPE',
      'scales',
    ],
    ['groups of 16', (t) => ({ scales: t.output('f16', [4, 5, 8]) }), 'ERR_ZC_SHAPE', 'scales'],
    ['other zeros', (t) => ({ zeros: t.output('u8', [4, 5, 4]) }), 'ERR_ZC_SHAPE', 'zeros'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const args = {
      x: tensors.output('f32', [3, 128]),
      weight: tensors.output('u8', [4, 5, 64]),
      scales: tensors.output('f16', [4, 5, 2]),
      zeros: tensors.output('u8', [4, 5, 2]),
      pairs: tensors.output('i32', [6]),
      offsets: tensors.output('i32', [5]),
      out: tensors.output('f32', [6, 5]),
    }
    const refuse = () => expertLinear({ ...args, ...fault(tensors) })
    expectRefused(refuse, { code, op: 'expertLinear', argument })
  })
})
