import type { ErrorCode } from '../../lib/errors.js'
import { addExperts, expertLinear, linear, routeExperts, type Tensor } from '../../lib/ops/index.js'
import {
  type FloatDtype,
  addExperts as referenceAdd,
  expertLinear as referenceLinear,
  routeExperts as referenceRoute,
} from '../../lib/reference/index.js'
import { type Backend, describeBackends, once } from '../support/backends.js'
import { expectClose, expectIdentical } from '../support/compare.js'
import { type DeviceTensors, floatDtypes } from '../support/device-tensors.js'
import { expectRefused, expectRejected } from '../support/errors.js'
import { integers, normals, storeAs } from '../support/random-data.js'
import { tolerance } from '../support/tolerance.js'

interface Router {
  nExperts: number
  nChosen: number
  normalized?: boolean
  scores?: 'softmax' | 'sigmoid'
  correction?: ArrayLike<number>
  leastSum?: number
  scale?: number
  expertScales?: ArrayLike<number>
}

async function route(tensors: DeviceTensors, logits: ArrayLike<number>, router: Router) {
  const { nExperts, nChosen, correction, expertScales, ...scoring } = router
  const n = logits.length / nExperts
  const out = {
    weights: tensors.output('f32', [n, nChosen]),
    experts: tensors.output('i32', [n, nChosen]),
    pairs: tensors.output('i32', [n * nChosen]),
    offsets: tensors.output('i32', [nExperts + 1]),
  }
  routeExperts({
    ...{ logits: tensors.f32(logits, [n, nExperts]), ...out, ...scoring },
    correction: correction && tensors.f32(correction, [nExperts]),
    expertScales: expertScales && tensors.f32(expertScales, [nExperts]),
  })
  return {
    weights: await tensors.values(out.weights),
    experts: await tensors.read(out.experts),
    pairs: await tensors.read(out.pairs),
    offsets: await tensors.read(out.offsets),
  }
}

describeBackends('routeExperts', (backend) => {
  async function expectReference(logits: Float32Array, router: Router) {
    const own = await route(backend.tensors, logits, router)
    const expected = referenceRoute({ logits, ...router })
    for (const key of ['experts', 'pairs', 'offsets'] as const) {
      expect([...own[key]]).toEqual([...expected[key]])
    }
    expectClose(own.weights, expected.weights, {
      name: 'weights',
      shape: [logits.length / router.nExperts, router.nChosen],
      tolerance: tolerance.f32Activation,
    })
    backend.tensors.dispose()
  }

  test.each([
    [1, 1],
    [2, 1],
    [2, 2],
    [7, 3],
    [8, 2],
    [31, 4],
    [32, 32],
    [33, 8],
    [60, 4],
    [128, 8],
    [1024, 10],
  ])('of %i experts %i', async (nExperts, nChosen) => {
    for (const n of [0, 1, 3, 17, 133]) {
      const logits = normals(n + nExperts, n * nExperts).map((x) => 3 * x)
      for (const normalized of [false, true]) {
        await expectReference(logits, { nExperts, nChosen, normalized })
      }
    }
  })

  test.each([
    [1, 1],
    [7, 3],
    [32, 32],
    [33, 8],
    [160, 8],
    [1024, 10],
  ])('of %i experts %i, by other scores and with a correction', async (nExperts, nChosen) => {
    const own = normals(nExperts, nExperts)
    for (const n of [0, 1, 17, 133]) {
      const logits = normals(n + nExperts, n * nExperts).map((x) => 3 * x)
      const sizes = { nExperts, nChosen, scale: 2.5 }
      await expectReference(logits, { ...sizes, scores: 'sigmoid', normalized: true })
      for (const scores of ['softmax', 'sigmoid'] as const) {
        const correction = own.map((x) => x / 4)
        await expectReference(logits, { ...sizes, scores, correction })
        const least = { leastSum: scores === 'softmax' ? 0.05 : 3, normalized: true }
        await expectReference(logits, { ...sizes, scores, correction, ...least })
      }
    }
  })

  test.each([
    [1, 1],
    [7, 3],
    [33, 8],
    [128, 8],
    [1024, 10],
  ])('of %i experts %i, each with a scale', async (nExperts, nChosen) => {
    const expertScales = normals(nExperts + 1, nExperts)
    const correction = normals(nExperts, nExperts).map((x) => x / 4)
    for (const n of [0, 1, 17, 133]) {
      const logits = normals(n + nExperts, n * nExperts).map((x) => 3 * x)
      const sizes = { nExperts, nChosen, expertScales }
      await expectReference(logits, sizes)
      await expectReference(logits, { ...sizes, normalized: true, scale: 2.5 })
      await expectReference(logits, { ...sizes, scores: 'sigmoid', correction, normalized: true })
    }
  })

  test('scales of experts choose nothing, and multiply after all else', async () => {
    const router = { nExperts: 4, nChosen: 2, expertScales: [8, -4, 0, 16] }
    const scoring = { scores: 'sigmoid', normalized: true, leastSum: 2, scale: 3 } as const
    const { experts, weights } = await route(backend.tensors, [-9, 0, 0, -8], {
      ...router,
      ...scoring,
    })
    expect([...experts]).toEqual([1, 2])
    expect([...weights].map((weight) => weight + 0)).toEqual([-3, 0])
  })

  test('a correction chooses, and weighs nothing', async () => {
    const router = { nExperts: 4, nChosen: 2, correction: [0, 2, 0, 1] }
    const { experts, weights } = await route(backend.tensors, [9, 0, 1, 0], {
      ...router,
      scores: 'sigmoid',
    })
    expect([...experts]).toEqual([1, 3])
    expect([...weights]).toEqual([0.5, 0.5])
  })

  test('sigmoids of logits of every size; sums that are as good as 0 divide nothing', async () => {
    const minus = Number.NEGATIVE_INFINITY
    const rows = [
      [1e30, -1e30, 3, 0],
      [minus, minus, minus, minus],
      [-50, -51, -60, -1e30],
      [Number.POSITIVE_INFINITY, 1, minus, 0],
    ]
    const router = { nExperts: 4, nChosen: 3, scores: 'sigmoid', normalized: true } as const
    await expectReference(Float32Array.from(rows.flat()), { ...router, leastSum: 1e-20 })
    const { weights } = await route(backend.tensors, rows[1], { ...router, leastSum: 1e-20 })
    expect([...weights]).toEqual([0, 0, 0])
  })

  test('of equal logits the smaller expert is first', async () => {
    const logits = [0, -0, 1, 1, -0, 0, 1, -5, 2, 2, 2, 2, 2, 2, 2, 2].map((x) => x)
    const { experts, weights } = await route(backend.tensors, logits, { nExperts: 8, nChosen: 6 })
    expect([...experts]).toEqual([2, 3, 6, 0, 1, 4, 0, 1, 2, 3, 4, 5])
    expect([...weights.subarray(6)]).toEqual(new Array(6).fill(1 / 8))
  })

  test('logits of every size, and infinitely small ones', async () => {
    const minus = Number.NEGATIVE_INFINITY
    const rows = [
      [1e30, -1e30, 3, 0],
      [-1e30, -2e30, -1e30, -3e38],
      [100, 10, 99, -1000],
      [minus, 1, minus, 0],
    ]
    for (const normalized of [false, true]) {
      const logits = Float32Array.from(rows.flat())
      await expectReference(logits, { nExperts: 4, nChosen: 3, normalized })
    }
  })

  test('a NaN makes the weights of its row NaN, and none of its experts anything but one', async () => {
    const nan = Number.NaN
    const logits = [1, nan, 3, 4, 1, 2, 3, 4, nan, nan, nan, nan]
    for (const scores of ['softmax', 'sigmoid'] as const) {
      for (const normalized of [false, true]) {
        const router = { nExperts: 4, nChosen: 2, scores, normalized, leastSum: 1e-20 }
        const { experts, weights, offsets } = await route(backend.tensors, logits, router)
        expect([...experts]).toEqual([3, 2, 3, 2, 0, 1])
        expect([...weights].map(Number.isNaN)).toEqual([true, true, false, false, true, true])
        expect([...offsets]).toEqual([0, 1, 2, 4, 6])
        const corrected = await route(backend.tensors, logits, {
          ...router,
          correction: [0, 0, 9, 9],
        })
        expect([...corrected.experts]).toEqual([0, 1, 3, 2, 0, 1])
        const spoiled = [...corrected.weights].map(Number.isNaN)
        expect(spoiled).toEqual([true, true, false, false, true, true])
      }
    }
  })

  test('a row has the same bits with any others, on any number of threads', async () => {
    const router = { nExperts: 61, nChosen: 5, normalized: true }
    const logits = normals(4, 100 * 61)
    const all = await route(backend.tensors, logits, router)
    for (const [first, last] of [
      [0, 1],
      [99, 100],
      [3, 40],
    ]) {
      const own = await route(backend.tensors, logits.slice(first * 61, last * 61), router)
      const shape = [last - first, 5]
      expectIdentical(own.weights, all.weights.slice(first * 5, last * 5), { name: 'out', shape })
    }
    const there = await backend.withDevice({ threads: 3 }, (_, tensors) =>
      route(tensors, logits, router),
    )
    expectIdentical(there.weights, all.weights, { name: 'out', shape: [100, 5] })
  })

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['f16 logits', (t) => ({ logits: t.output('f16', [3, 8]) }), 'ERR_ZC_DTYPE', 'logits'],
    ['logits of one axis', (t) => ({ logits: t.output('f32', [24]) }), 'ERR_ZC_SHAPE', 'logits'],
    ['no experts', (t) => ({ logits: t.output('f32', [3, 0]) }), 'ERR_ZC_SHAPE', 'logits'],
    ['1025 experts', (t) => ({ logits: t.output('f32', [3, 1025]) }), 'ERR_ZC_SHAPE', 'logits'],
    ['none of them', (t) => ({ weights: t.output('f32', [3, 0]) }), 'ERR_ZC_SHAPE', 'weights'],
    ['nine of eight', (t) => ({ weights: t.output('f32', [3, 9]) }), 'ERR_ZC_SHAPE', 'weights'],
    ['other rows', (t) => ({ weights: t.output('f32', [2, 2]) }), 'ERR_ZC_SHAPE', 'weights'],
    ['float experts', (t) => ({ experts: t.output('f32', [3, 2]) }), 'ERR_ZC_DTYPE', 'experts'],
    ['other experts', (t) => ({ experts: t.output('i32', [3, 3]) }), 'ERR_ZC_SHAPE', 'experts'],
    ['too few pairs', (t) => ({ pairs: t.output('i32', [5]) }), 'ERR_ZC_SHAPE', 'pairs'],
    [
      'an f16 correction',
      (t) => ({ correction: t.output('f16', [8]) }),
      'ERR_ZC_DTYPE',
      'correction',
    ],
    ['a short one', (t) => ({ correction: t.output('f32', [7]) }), 'ERR_ZC_SHAPE', 'correction'],
    [
      'f16 scales of experts',
      (t) => ({ expertScales: t.output('f16', [8]) }),
      'ERR_ZC_DTYPE',
      'expertScales',
    ],
    [
      'too many of them',
      (t) => ({ expertScales: t.output('f32', [9]) }),
      'ERR_ZC_SHAPE',
      'expertScales',
    ],
    ['a least sum below 0', () => ({ leastSum: -1e-9 }), 'ERR_ZC_ARGUMENT', 'leastSum'],
    ['a scale of NaN', () => ({ scale: Number.NaN }), 'ERR_ZC_ARGUMENT', 'scale'],
    ['eight offsets', (t) => ({ offsets: t.output('i32', [8]) }), 'ERR_ZC_SHAPE', 'offsets'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const args = {
      logits: tensors.output('f32', [3, 8]),
      weights: tensors.output('f32', [3, 2]),
      experts: tensors.output('i32', [3, 2]),
      pairs: tensors.output('i32', [6]),
      offsets: tensors.output('i32', [9]),
    }
    const refuse = () => routeExperts({ ...args, ...fault(tensors) })
    expectRefused(refuse, { code, op: 'routeExperts', argument })
  })

  test('refuses other scores', () => {
    const logits = backend.tensors.output('f32', [3, 8])
    const refuse = () => routeExperts({ logits, scores: 'logits' } as never)
    expectRefused(refuse, { code: 'ERR_ZC_ARGUMENT', argument: 'scores' })
  })
})

/** One call: `chosen` of `nExperts` for each of m rows, of which x has each, or one for all. */
interface Layer {
  m: number
  n: number
  k: number
  nExperts: number
  nChosen: number
  /** x has a row for each pair, as behind the gate. */
  ofPairs: boolean
  x: FloatDtype
  weight: FloatDtype | 'i8'
  out: FloatDtype
  bias?: FloatDtype
  seed: number
}

const plain = {
  ...({ nExperts: 5, nChosen: 2, ofPairs: false } as const),
  ...({ x: 'f32', weight: 'f32', out: 'f32', seed: 3 } as const),
}

/** Expert 1 is liked best, and the last one by nobody, where there are enough. */
function routingOf({ m, nExperts, nChosen, seed }: Layer) {
  const logits = normals(seed, m * nExperts).map((x, i) => {
    const expert = i % nExperts
    if (expert === 1) return x + 1
    return expert === nExperts - 1 && nChosen < nExperts ? -100 : x
  })
  return referenceRoute({ logits, nExperts, nChosen })
}

function inputsOf(layer: Layer) {
  const { m, n, k, nExperts, nChosen, seed } = layer
  const xRows = layer.ofPairs ? m * nChosen : m
  const isCodes = layer.weight === 'i8'
  const codes = isCodes
    ? Int8Array.from(integers(seed + 1, nExperts * n * k, 255), (code) => code - 127)
    : null
  const weight =
    layer.weight === 'i8' ? null : storeAs(layer.weight, normals(seed + 1, nExperts * n * k))
  const scales = isCodes
    ? Float32Array.from(normals(seed + 2, nExperts * n), (s) => (1 + Math.abs(s)) / 73)
    : null
  const x = storeAs(layer.x, normals(seed + 3, xRows * k))
  const bias = layer.bias && storeAs(layer.bias, normals(seed + 4, nExperts * n))
  return {
    ...layer,
    xRows,
    x,
    xType: layer.x,
    weightType: layer.weight,
    weight,
    codes,
    scales,
    biasType: layer.bias,
    bias,
    routing: routingOf(layer),
  }
}

type Inputs = ReturnType<typeof inputsOf>

const caseOf = once((layer: Layer) => {
  const inputs = inputsOf(layer)
  const { x, xRows: m, n, k, weight, codes, scales, bias, routing } = inputs
  const expected = referenceLinear({
    ...{ x: x.values, weight: weight?.values ?? codes ?? [], experts: routing.experts, m, n, k },
    ...(scales ? { scales } : {}),
    ...(bias ? { bias: bias.values } : {}),
  })
  return { inputs, expected }
})

function tensorsOf(tensors: DeviceTensors, own: Inputs) {
  const { n, k, nExperts, xRows, routing, scales, bias } = own
  const shape = [nExperts, n, k]
  const weight: Tensor = own.codes
    ? tensors.input('i8', own.codes, shape)
    : tensors.input(own.weightType as FloatDtype, own.weight!.stored as Uint16Array, shape)
  return {
    x: tensors.input(own.xType, own.x.stored as Uint16Array, [xRows, k]),
    weight,
    ...(scales ? { scales: tensors.f32(scales, [nExperts, n]) } : {}),
    ...(bias
      ? { bias: tensors.input(own.biasType!, bias.stored as Uint16Array, [nExperts, n]) }
      : {}),
    pairs: tensors.i32(routing.pairs),
    offsets: tensors.i32(routing.offsets),
    out: tensors.output(own.out, [routing.pairs.length, n]),
  }
}

async function run(tensors: DeviceTensors, own: Inputs) {
  const args = tensorsOf(tensors, own)
  expertLinear(args)
  return tensors.values(args.out)
}

/** The same by `linear`, each pair by itself. */
async function runAlone(tensors: DeviceTensors, own: Inputs) {
  const { n, k, nExperts, routing, scales, xRows } = own
  const { x, weight, bias } = tensorsOf(tensors, own)
  const outs: Float64Array[] = []
  for (const [pair, expert] of routing.experts.entries()) {
    const row = Math.floor(pair / (routing.experts.length / xRows))
    const out = tensors.output(own.out, [1, n])
    const views = [x.view([1, k], row * k), weight.view([n, k], expert * n * k)] as const
    for (const view of views) tensors.own(view)
    const ownScales = scales && tensors.f32(scales.slice(expert * n, (expert + 1) * n))
    const ownBias = bias && tensors.own(bias.view([n], expert * n))
    linear({ x: views[0], weight: views[1], scales: ownScales ?? undefined, bias: ownBias, out })
    outs.push(await tensors.values(out))
  }
  expect(nExperts).toBeGreaterThan(0)
  return Float64Array.from(outs.flatMap((out) => [...out]))
}

const allowed = {
  f32: tolerance.f32Linear,
  f16: tolerance.f16Output,
  bf16: tolerance.bf16Output,
}

/** (m, n, k, n_experts, n_chosen): one, primes, under / at / over tiles and panels, parts of k. */
const shapes: readonly (readonly [number, number, number, number, number])[] = [
  [0, 5, 7, 3, 1],
  [3, 0, 7, 3, 1],
  [3, 5, 0, 3, 2],
  [1, 1, 1, 1, 1],
  [1, 7, 13, 8, 2],
  [1, 96, 64, 8, 8],
  [2, 47, 32, 3, 1],
  [5, 4, 7, 16, 4],
  [9, 49, 33, 4, 2],
  [33, 23, 256, 2, 1],
  [64, 25, 257, 4, 2],
  [131, 53, 37, 3, 2],
  [97, 24, 264, 2, 2],
  [6, 131, 1160, 4, 2],
  [70, 9, 2056, 4, 3],
]

describeBackends('expertLinear', (backend) => {
  async function expectReference(layer: Layer) {
    const { inputs, expected } = caseOf(layer)
    const floatTolerance = layer.weight === 'i8' ? tolerance.i8Linear : allowed.f32
    expectClose(await run(backend.tensors, inputs), expected, {
      name: 'out',
      shape: [layer.m * layer.nChosen, layer.n],
      tolerance: layer.out === 'f32' ? floatTolerance : allowed[layer.out],
      floor: 1, // a row of few columns may cancel out; products are of size 1
      seed: layer.seed,
    })
    backend.tensors.dispose()
  }

  test.each(shapes)('(%i, %i, %i) of %i experts %i', async (m, n, k, nExperts, nChosen) => {
    for (const ofPairs of [false, true]) {
      const seed = m * 1000 + n * 100 + k
      await expectReference({ ...plain, m, n, k, nExperts, nChosen, ofPairs, seed })
      const types = { x: 'bf16', weight: 'bf16' } as const
      await expectReference({ ...plain, ...types, m, n, k, nExperts, nChosen, ofPairs, seed })
    }
  })

  describe.each(floatDtypes)('x of %s', (x) => {
    test.each(floatDtypes)('weight of %s', async (weight) => {
      for (const out of floatDtypes) {
        await expectReference({ ...plain, x, weight, out, m: 6, n: 53, k: 37 })
      }
    })
  })

  // A few rows of each expert, some, and many; columns of four, which are written at once, and odd.
  test.each(floatDtypes)('a bias of %s for each expert', async (bias) => {
    for (const weight of [...floatDtypes, 'i8'] as const) {
      for (const [m, n] of [
        [2, 53],
        [33, 132],
        [131, 53],
      ] as const) {
        const x = weight === 'i8' ? 'bf16' : weight
        await expectReference({ ...plain, x, weight, bias, m, n, k: 72 })
      }
    }
  })

  describe('gives a pair the bits that linear gives it', () => {
    const types = floatDtypes.flatMap((x) => floatDtypes.map((weight) => ({ x, weight })))
    // A few rows of each expert, some, many of expert 1; k in one part, in several, and odd.
    const sizes = [
      { m: 1, k: 83 },
      { m: 9, k: 1160 },
      { m: 40, k: 64 },
      { m: 131, k: 1160 },
    ]
    test.each(types.flatMap((pair) => sizes.map((size) => ({ ...pair, ...size }))))(
      '$m rows of $k, x of $x, weight of $weight',
      async (own) => {
        for (const ofPairs of [false, true]) {
          const bias = ofPairs ? { bias: own.x } : {}
          const inputs = inputsOf({ ...plain, ...own, ...bias, n: 53, ofPairs, seed: 7 })
          const together = await run(backend.tensors, inputs)
          expectIdentical(together, await runAlone(backend.tensors, inputs), {
            name: 'out',
            shape: [own.m * 2, 53],
          })
          backend.tensors.dispose()
        }
      },
    )

    // So many rows of each that a GPU widens codes first, some columns of all experts at a time.
    test.each([
      { n: 53, k: 83 },
      { n: 300, k: 1160 },
    ])('many rows of $k, $n columns of codes', async ({ n, k }) => {
      for (const x of floatDtypes) {
        const layer = { ...plain, m: 200, n, k, x, weight: 'i8', bias: 'f32', seed: 9 } as const
        const inputs = inputsOf(layer)
        const together = await run(backend.tensors, inputs)
        const alone = await runAlone(backend.tensors, inputs)
        expectIdentical(together, alone, { name: `x of ${x}`, shape: [200 * 2, n] })
        backend.tensors.dispose()
      }
    })

    test('with many experts, and columns', async () => {
      const layer = { ...plain, m: 23, n: 300, k: 64, nExperts: 40, nChosen: 8, x: 'bf16' } as const
      const inputs = inputsOf({ ...layer, weight: 'bf16', seed: 8 })
      expectIdentical(await run(backend.tensors, inputs), await runAlone(backend.tensors, inputs), {
        name: 'out',
        shape: [23 * 8, 300],
      })
    })

    test.each([1, 2, 3, 5])('with %i threads', async (threads) => {
      for (const m of [1, 67]) {
        const inputs = inputsOf({ ...plain, m, n: 1013, k: 83, seed: 18 })
        const here = await run(backend.tensors, inputs)
        const there = await backend.withDevice({ threads }, (_, tensors) => run(tensors, inputs))
        expectIdentical(there, here, { name: 'out', shape: [2 * m, 1013] })
      }
    })
  })

  describe('with a weight of 8 bits', () => {
    const codes = { ...plain, weight: 'i8', n: 53 } as const

    test('multiplies as linear does', async () => {
      for (const x of floatDtypes) {
        for (const [m, k] of [
          [1, 300],
          [9, 512],
          [131, 77],
        ] as const) {
          await expectReference({ ...codes, m, k, x })
          const inputs = inputsOf({ ...codes, bias: 'f16', m, k, x })
          expectIdentical(
            await run(backend.tensors, inputs),
            await runAlone(backend.tensors, inputs),
            { name: 'out', shape: [2 * m, 53] },
          )
          backend.tensors.dispose()
        }
      }
    })
  })

  test('NaN reaches its row and no other', async () => {
    for (const weight of ['f32', 'bf16'] as const) {
      const inputs = inputsOf({ ...plain, weight, m: 21, n: 9, k: 40, seed: 9 })
      const before = await run(backend.tensors, inputs)
      const stored = Float32Array.from(inputs.x.stored as Float32Array)
      stored[5 * 40 + 3] = Number.NaN
      const out = await run(backend.tensors, { ...inputs, x: { ...inputs.x, stored } })
      const expected = before.map((y, i) => (Math.floor(i / 18) === 5 ? Number.NaN : y))
      expect([...out]).toEqual([...expected])
      backend.tensors.dispose()
    }
  })

  const damaged: [string, (args: ReturnType<typeof tensorsOf>) => void, RegExp][] = [
    ['a pair too large', ({ pairs }) => pairs.write(Int32Array.of(42), 7), /^pairs: 42, expected/],
    ['a negative one', ({ pairs }) => pairs.write(Int32Array.of(-1), 0), /^pairs: -1, expected/],
    ['a later begin', ({ offsets }) => offsets.write(Int32Array.of(1), 0), /^offsets: /],
    ['an earlier end', ({ offsets }) => offsets.write(Int32Array.of(41), 5), /^offsets: /],
    ['a late end', ({ offsets }) => offsets.write(Int32Array.of(2 ** 30), 5), /^offsets: /],
    ['a step back', ({ offsets }) => offsets.write(Int32Array.of(40, 3), 2), /^offsets: /],
    ['a negative begin', ({ offsets }) => offsets.write(Int32Array.of(-9), 2), /^offsets: /],
  ]
  describe.each(['f32', 'bf16'] as const)('weights of %s', (weight) => {
    test.each(damaged)('%s is told at the next sync', async (_, damage, message) => {
      const { tensors, device } = backend
      const args = tensorsOf(tensors, inputsOf({ ...plain, weight, m: 21, n: 9, k: 40 }))
      damage(args)
      expertLinear(args)
      const fault = { code: 'ERR_ZC_ARGUMENT', op: 'expertLinear', message } as const
      await expectRejected(device.sync(), fault)
    })
  })

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['integers for x', (t) => ({ x: t.output('i32', [3, 7]) }), 'ERR_ZC_DTYPE', 'x'],
    ['one matrix', (t) => ({ weight: t.output('f32', [5, 7]) }), 'ERR_ZC_SHAPE', 'weight'],
    ['another k', (t) => ({ weight: t.output('f32', [4, 5, 6]) }), 'ERR_ZC_SHAPE', 'weight'],
    ['no experts', (t) => ({ weight: t.output('f32', [0, 5, 7]) }), 'ERR_ZC_SHAPE', 'weight'],
    [
      'codes without scales',
      (t) => ({ weight: t.output('i8', [4, 5, 7]) }),
      'ERR_ZC_DTYPE',
      'weight',
    ],
    [
      'scales without codes',
      (t) => ({ scales: t.output('f32', [4, 5]) }),
      'ERR_ZC_DTYPE',
      'weight',
    ],
    [
      'scales of one expert',
      (t) => ({ weight: t.output('i8', [4, 5, 7]), scales: t.output('f32', [5]) }),
      'ERR_ZC_SHAPE',
      'scales',
    ],
    ['a bias of integers', (t) => ({ bias: t.output('i32', [4, 5]) }), 'ERR_ZC_DTYPE', 'bias'],
    ['a bias of one expert', (t) => ({ bias: t.output('f32', [5]) }), 'ERR_ZC_SHAPE', 'bias'],
    ['a bias of k', (t) => ({ bias: t.output('f32', [4, 7]) }), 'ERR_ZC_SHAPE', 'bias'],
    ['float pairs', (t) => ({ pairs: t.output('f32', [6]) }), 'ERR_ZC_DTYPE', 'pairs'],
    [
      'pairs of a row and a half',
      (t) => ({ pairs: t.output('i32', [5]) }),
      'ERR_ZC_SHAPE',
      'pairs',
    ],
    ['pairs of no rows', (t) => ({ x: t.output('f32', [0, 7]) }), 'ERR_ZC_SHAPE', 'pairs'],
    ['four offsets', (t) => ({ offsets: t.output('i32', [4]) }), 'ERR_ZC_SHAPE', 'offsets'],
    ['another out', (t) => ({ out: t.output('f32', [3, 5]) }), 'ERR_ZC_SHAPE', 'out'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const args = {
      x: tensors.output('f32', [3, 7]),
      weight: tensors.output('f32', [4, 5, 7]),
      pairs: tensors.output('i32', [6]),
      offsets: tensors.output('i32', [5]),
      out: tensors.output('f32', [6, 5]),
    }
    const refuse = () => expertLinear({ ...args, ...fault(tensors) })
    expectRefused(refuse, { code, op: 'expertLinear', argument })
  })
})

describeBackends('addExperts', (backend) => {
  interface Sum {
    n: number
    nChosen: number
    width: number
    accumulate?: boolean
  }
  async function add(tensors: Backend['tensors'], { n, nChosen, width, accumulate }: Sum) {
    const x = normals(1, n * nChosen * width)
    const weights = normals(2, n * nChosen)
    // What is only written may hold anything.
    const before = accumulate === false ? undefined : normals(3, n * width)
    const out = tensors.f32(before ?? new Float32Array(n * width).fill(Number.NaN), [n, width])
    const stored = {
      x: tensors.f32(x, [n * nChosen, width]),
      weights: tensors.f32(weights, [n, nChosen]),
    }
    addExperts({ ...stored, out, accumulate })
    return { actual: await tensors.values(out), x, weights, before, nChosen }
  }

  test.each([1, 3, 7, 8, 9, 64, 1031])('rows of %i', async (width) => {
    for (const [n, nChosen] of [
      [0, 2],
      [1, 1],
      [5, 2],
      [17, 8],
      [2, 64],
    ] as const) {
      for (const accumulate of [undefined, true, false]) {
        const sum = { n, nChosen, width, ...(accumulate === undefined ? {} : { accumulate }) }
        const { actual, ...own } = await add(backend.tensors, sum)
        const within = { name: 'out', shape: [n, width], tolerance: tolerance.f32Norm, floor: 8 }
        expectClose(actual, referenceAdd(own), within)
        backend.tensors.dispose()
      }
    }
  })

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['f16 rows', (t) => ({ x: t.output('f16', [6, 7]) }), 'ERR_ZC_DTYPE', 'x'],
    ['too few rows', (t) => ({ x: t.output('f32', [5, 7]) }), 'ERR_ZC_SHAPE', 'x'],
    ['weights of one axis', (t) => ({ weights: t.output('f32', [6]) }), 'ERR_ZC_SHAPE', 'weights'],
    ['another out', (t) => ({ out: t.output('f32', [3, 6]) }), 'ERR_ZC_SHAPE', 'out'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const args = {
      x: tensors.output('f32', [6, 7]),
      weights: tensors.output('f32', [3, 2]),
      out: tensors.output('f32', [3, 7]),
    }
    const refuse = () => addExperts({ ...args, ...fault(tensors) })
    expectRefused(refuse, { code, op: 'addExperts', argument })
  })
})
