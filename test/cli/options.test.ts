import { InvalidArgumentError } from 'commander'
import {
  choice,
  decimal,
  distinctList,
  integer,
  list,
  policyName,
  policySpec,
  policySpecs,
  seed,
} from '../../lib/cli/options'

test.each([
  ['0', 0],
  ['10', 10],
  ['+7', 7],
])('integer reads %j', (text, value) => {
  expect(integer(0, 10)(text)).toBe(value)
})

test.each(['', ' ', 'x', '1x', '1.0', '1e1', '0x1', '11', '-1', 'NaN', 'Infinity'])(
  'integer of 0 to 10 refuses %j',
  (text) => {
    expect(() => integer(0, 10)(text)).toThrow(InvalidArgumentError)
    expect(() => integer(0, 10)(text)).toThrow('Expected a whole number of 0 to 10.')
  },
)

test.each([
  ['-5', -5],
  ['9007199254740991', 9007199254740991],
])('seed reads %j', (text, value) => {
  expect(seed(text)).toBe(value)
})

test('seed refuses what a double does not hold', () => {
  expect(() => seed('9007199254740992')).toThrow('Expected a whole number that JavaScript holds')
})

test.each([
  ['0', 0],
  ['.5', 0.5],
  ['1.', 1],
  ['1e-3', 0.001],
])('decimal reads %j', (text, value) => {
  expect(decimal(0, 1)(text)).toBe(value)
})

test.each(['', 'x', '1.5', '-0.1', '0x1', 'NaN', 'Infinity', '1e999', '0.5.5'])(
  'decimal of 0 to 1 refuses %j',
  (text) => {
    expect(() => decimal(0, 1)(text)).toThrow('Expected a number of 0 to 1.')
  },
)

test('decimal without a maximum', () => {
  expect(decimal(0)('1000')).toBe(1000)
  expect(() => decimal(0)('1e999')).toThrow('Expected a number of at least 0.')
})

test('lists', () => {
  expect(list(integer(0))('1, 2,1')).toEqual([1, 2, 1])
  expect(() => list(integer(0))('1,,2')).toThrow(InvalidArgumentError)
  expect(distinctList(integer(0))('50,100')).toEqual([50, 100])
  expect(() => distinctList(integer(0))('50,100,50')).toThrow('50 is named twice.')
})

test('policies', () => {
  expect(policySpecs('fp16,{"name":"zipcache","saliencyRatio":0.2}, uniform4')).toEqual([
    'fp16',
    { name: 'zipcache', saliencyRatio: 0.2 },
    'uniform4',
  ])
  expect(() => policySpecs('fp16,fp16')).toThrow('fp16 is named twice.')
  expect(() => policySpecs('zipcache,{"name":"zipcache"}')).toThrow('zipcache is named twice.')
  expect(() => policySpecs('{"name":"zipcache","ratio":0.2}')).toThrow(InvalidArgumentError)
  expect(() => policySpecs('{"name":')).toThrow(InvalidArgumentError)
})

test('policy names', () => {
  expect(policyName('zipcache')).toBe('zipcache')
  expect(() => policyName('zip')).toThrow(InvalidArgumentError)
  expect(() => policyName('uniform5')).toThrow(InvalidArgumentError)
})

test('one policy, by name or with options', () => {
  expect(policySpec('uniform4')).toBe('uniform4')
  expect(policySpec('{"name":"zipcache","window":50}')).toEqual({ name: 'zipcache', window: 50 })
  expect(() => policySpec('fp16,zipcache')).toThrow('Expected one policy.')
  expect(() => policySpec('{"name":"zipcache","widow":50}')).toThrow(/widow/)
})

test('choices', () => {
  expect(choice('inside', 'after')('after')).toBe('after')
  expect(() => choice('inside', 'after')('before')).toThrow('Expected inside or after.')
})
