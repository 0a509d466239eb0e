import fc from 'fast-check'
import type { ErrorCode } from '../../lib/errors.js'
import { selectSalient } from '../../lib/ops/index.js'
import { selectSalient as reference } from '../../lib/reference/index.js'
import { type Backend, describeBackends } from '../support/backends.js'
import { expectIdentical } from '../support/compare.js'
import type { DeviceTensors } from '../support/device-tensors.js'
import { expectRefused } from '../support/errors.js'
import { propertyRuns } from '../support/properties.js'
import { normals, randomNumbers } from '../support/random-data.js'
import { selectionShapes } from '../support/shapes.js'

interface Scores {
  scores: Float32Array
  nHeads: number
  n: number
  count: number
  seed?: number
}

async function run(tensors: DeviceTensors, { scores, nHeads, n, count }: Scores) {
  const salient = tensors.output('i32', [nHeads, count])
  const regular = tensors.output('i32', [nHeads, n - count])
  selectSalient({ scores: tensors.input('f32', scores, [nHeads, n]), salient, regular })
  return { salient: await tensors.read(salient), regular: await tensors.read(regular) }
}

async function expectSelection(backend: Backend, from: Scores) {
  const { salient, regular } = await run(backend.tensors, from)
  const expected = reference(from)
  const { nHeads, n, count, seed } = from
  expectIdentical(salient, expected.salient, { name: 'salient', shape: [nHeads, count], seed })
  expectIdentical(regular, expected.regular, { name: 'regular', shape: [nHeads, n - count], seed })
}

const shapes = [
  ...selectionShapes,
  { nHeads: 2, n: 15, count: 4 },
  { nHeads: 2, n: 127, count: 76 },
  { nHeads: 2, n: 128, count: 77 },
  { nHeads: 2, n: 129, count: 78 },
  { nHeads: 0, n: 5, count: 2 },
  { nHeads: 4, n: 4099, count: 2459 },
]

describeBackends('selectSalient', (backend) => {
  test.each(shapes)('$count of $n, $nHeads heads: distinct scores', async (shape) => {
    const seed = shape.n
    await expectSelection(backend, {
      ...shape,
      scores: normals(seed, shape.nHeads * shape.n),
      seed,
    })
  })

  test.each(shapes)('$count of $n, $nHeads heads: many ties', async (shape) => {
    const next = randomNumbers(shape.n)
    const scores = Float32Array.from({ length: shape.nHeads * shape.n }, () =>
      Math.floor(next() * 3),
    )
    await expectSelection(backend, { ...shape, scores, seed: shape.n })
  })

  test.each([0, 1, 3, 5, 7, 9, 11])('%i of all special values', async (count) => {
    const special = [0, -0, NaN, Infinity, -Infinity, 1e-45, -1e-45, 3.4e38, -3.4e38, -0, 0]
    const scores = Float32Array.from(special)
    await expectSelection(backend, { scores, nHeads: 1, n: scores.length, count })
  })

  test('ties go to the lowest index, zeros of both signs being equal', async () => {
    const scores = Float32Array.of(-0, 0, -0, 0, -1)
    const { salient, regular } = await run(backend.tensors, { scores, nHeads: 1, n: 5, count: 2 })
    expect([...salient]).toEqual([0, 1])
    expect([...regular]).toEqual([2, 3, 4])
  })

  test('property: the top count exactly, both lists ascending, together every token', async () => {
    const inputs = fc
      .array(fc.float(), { minLength: 1, maxLength: 200 })
      .chain((scores) => fc.tuple(fc.constant(scores), fc.integer({ min: 0, max: scores.length })))
    const property = fc.asyncProperty(inputs, async ([scores, count]) => {
      const { tensors } = backend
      const from = { scores: Float32Array.from(scores), nHeads: 1, n: scores.length, count }
      const { salient, regular } = await run(tensors, from)
      expect(salient).toHaveLength(count)
      for (const list of [salient, regular])
        expect([...list]).toEqual([...list].sort((a, b) => a - b))
      expect([...salient, ...regular].sort((a, b) => a - b)).toEqual([...scores.keys()])
      const rank = (i: number) => (Number.isNaN(scores[i]) ? -Infinity : scores[i])
      const least = Math.min(...[...salient].map(rank))
      for (const i of regular) expect(rank(i)).toBeLessThanOrEqual(least)
      await expectSelection(backend, from)
      tensors.dispose()
    })
    await fc.assert(property, propertyRuns(40))
  })

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['f16 scores', (t) => ({ scores: t.output('f16', [2, 5]) }), 'ERR_ZC_DTYPE', 'scores'],
    [
      'more salient than tokens',
      (t) => ({ salient: t.output('i32', [2, 6]) }),
      'ERR_ZC_SHAPE',
      'salient',
    ],
    [
      'lists that overlap',
      (t) => ({ regular: t.output('i32', [2, 4]) }),
      'ERR_ZC_SHAPE',
      'regular',
    ],
    ['other heads', (t) => ({ salient: t.output('i32', [1, 2]) }), 'ERR_ZC_SHAPE', 'salient'],
    ['float lists', (t) => ({ salient: t.output('f32', [2, 2]) }), 'ERR_ZC_DTYPE', 'salient'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const args = {
      scores: tensors.output('f32', [2, 5]),
      salient: tensors.output('i32', [2, 2]),
      regular: tensors.output('i32', [2, 3]),
    }
    const refuse = () => selectSalient({ ...args, ...fault(tensors) })
    expectRefused(refuse, { code, op: 'selectSalient', argument })
  })
})
