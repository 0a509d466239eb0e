import { checkClose, kTolerance } from '../../lib/bench/check'
import { tolerance } from '../support/tolerance'

const name = 'out'

test('what is timed is held to the same tolerances as what is tested', () => {
  expect(tolerance).toMatchObject(kTolerance)
})

test.each([
  ['equal bits', [1, -2, 0], [1, -2, 0], { tolerance: 0 }],
  ['within the largest value', [100, 0.05], [100, 0], { tolerance: 1e-3 }],
  ['within the floor', [0.5e-3], [0], { tolerance: 1e-3, floor: 1 }],
  ['the same infinities and NaN', [-Infinity, NaN], [-Infinity, NaN], { tolerance: 0 }],
])('%s', (_, actual, expected, options) => {
  expect(() => checkClose(actual, expected, { name, ...options })).not.toThrow()
})

test.each([
  [
    'another number',
    [1, 2.01],
    [1, 2],
    { tolerance: 1e-3 },
    /^out: element 1 is 2.01, expected 2 /,
  ],
  [
    'a small row beside a large',
    [1e3, 1.1],
    [1e3, 1],
    { tolerance: 1e-3, rowLength: 1 },
    /element 1/,
  ],
  ['NaN', [NaN], [1], { tolerance: 1 }, /element 0 is NaN/],
  ['a number for NaN', [1], [NaN], { tolerance: 1 }, /expected NaN/],
  ['infinity', [Infinity], [1], { tolerance: 1 }, /is Infinity/],
  ['the other infinity', [Infinity], [-Infinity], { tolerance: 1 }, /expected -Infinity/],
  ['one element too few', [1], [1, 1], { tolerance: 1 }, /has 1 elements, expected 2/],
  ['nothing to compare', [], [], { tolerance: 1 }, /has 0 elements/],
])('refuses %s', (_, actual, expected, options, message) => {
  const check = () => checkClose(actual, expected, { name, ...options })
  expect(check).toThrow(expect.objectContaining({ code: 'ERR_ZC_INTERNAL' }))
  expect(check).toThrow(message)
})
