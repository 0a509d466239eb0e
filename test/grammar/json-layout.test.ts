/** How JSON is laid out: a value written in one way goes on in that way. */
import fc from 'fast-check'
import { JsonLayout } from '../../lib/grammar/json-layout'
import { propertyRuns } from '../support/properties'

/** As Python's json.dumps does by itself. */
function spaced(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(spaced).join(', ')}]`
  if (typeof value !== 'object' || value === null) return JSON.stringify(value)
  const pairs = Object.entries(value).map(
    ([name, one]) => `${JSON.stringify(name)}: ${spaced(one)}`,
  )
  return `{${pairs.join(', ')}}`
}

/** What stands behind white space, or none, that was not likely there. */
function surprises(text: string): string[] {
  const layout = new JsonLayout()
  const found: string[] = []
  for (const [whole, blank, sign] of text.matchAll(/(\s*)("(?:[^"\\]|\\.)*"|[^\s"])/gu)) {
    if (layout.before((sign as string).charCodeAt(0)) !== blank) found.push(whole)
    for (const byte of Buffer.from(whole)) layout.push(byte)
  }
  return found
}

const example = { a: 1, 'b:,{': ['x"}', { c: null, d: [] }, { c: true, d: [2] }], e: {} }

test('one line, with spaces: never a surprise', () => {
  expect(surprises(spaced(example))).toEqual([])
})

test('without white space: the first colon and the first comma are surprises', () => {
  expect(surprises(JSON.stringify(example))).toEqual(['1', '"b:,{"'])
})

test.each(['  ', '\t', '    '])('a line for each value, indented by %j', (indent) => {
  const text = JSON.stringify(example, null, indent)
  expect(surprises(text)).toEqual([`\n${indent}"a"`, `\n${indent.repeat(2)}"x\\"}"`])
})

test('a copy goes on by itself', () => {
  const layout = new JsonLayout()
  for (const byte of Buffer.from('{\n "a":')) layout.push(byte)
  const copy = layout.copy()
  for (const byte of Buffer.from('{"b":1')) copy.push(byte)
  expect(copy.before(0x7d)).toBe('')
  expect(layout.before(0x31)).toBe(' ')
  for (const byte of Buffer.from('1')) layout.push(byte)
  expect(layout.before(0x7d)).toBe('\n')
})

test('nothing is likely within a text', () => {
  const layout = new JsonLayout()
  for (const byte of Buffer.from('{"a, \\"b:')) {
    layout.push(byte)
    if (byte !== 0x7b) expect(layout.before(0x22)).toBe('')
  }
})

test('what is begun is gone on with, and what is another is not', () => {
  const layout = new JsonLayout()
  for (const byte of Buffer.from('{\n  "a": 1,\n ')) layout.push(byte)
  expect(layout.before(0x22)).toBe(' ')
  layout.push(0x09)
  expect(layout.before(0x22)).toBe('')
})

test('property: any JSON in one line is no surprise', () => {
  fc.assert(
    fc.property(fc.jsonValue({ maxDepth: 4 }), (value) => {
      expect(surprises(spaced(value))).toEqual([])
    }),
    propertyRuns(200),
  )
})
