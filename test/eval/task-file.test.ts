import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { readTaskFile, readTaskText } from '../../lib/eval/task-file'

let dir: string
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'zipcache-task-file-'))
})
afterAll(() => rmSync(dir, { recursive: true }))

function write(bytes: string | Uint8Array): string {
  const file = join(dir, 'task.jsonl')
  writeFileSync(file, bytes)
  return file
}

const good = '{"question":"a é?","n":3,"answers":["x","y"]}\n'

test.each([
  ['plain', good],
  ['gzipped', gzipSync(good)],
  ['with blank lines and CRLF', `\n${good.trimEnd()}\r\n\n`],
  ['with a byte order mark', `\ufeff${good}`],
])('reads %s', async (_, bytes) => {
  const { lines, digest } = await readTaskFile(write(bytes))
  expect(lines).toHaveLength(1)
  expect(digest).toMatch(/^[0-9a-f]{64}$/)
  expect(lines[0]?.text('question')).toBe('a é?')
  expect(lines[0]?.number('n')).toBe(3)
  expect(lines[0]?.texts('answers')).toEqual(['x', 'y'])
  expect([lines[0]?.has('n'), lines[0]?.has('m')]).toEqual([true, false])
})

test('another file has another digest', async () => {
  const digest = (await readTaskFile(write(good))).digest
  expect((await readTaskFile(write(gzipSync(good)))).digest).toBe(digest)
  expect((await readTaskFile(write(good.replace('3', '4')))).digest).not.toBe(digest)
})

test.each([
  ['bad JSON', `${good}{"question": "a`, /task\.jsonl:2: is no JSON: /],
  ['no object', `${good}\n["a"]\n`, /task\.jsonl:3: is \["a"\], expected an object$/],
  [
    'latin-1',
    Buffer.from(`${good}{"question":"\xe9"}\n`, 'latin1'),
    /task\.jsonl:1: is not UTF-8$/,
  ],
  ['UTF-16', Buffer.from(`\ufeff${good}`, 'utf16le'), /task\.jsonl:1: is not UTF-8$/],
  ['half of a gzip', gzipSync(good).subarray(0, 30), /task\.jsonl: is damaged gzip: /],
  ['nothing', '\n\n', /task\.jsonl: is empty$/],
])('refuses %s, naming file and line', async (_, bytes, message) => {
  await expect(readTaskFile(write(bytes))).rejects.toMatchObject({
    code: 'ERR_ZC_ARGUMENT',
    argument: 'data',
    message: expect.stringMatching(message),
  })
})

test('a wrong byte is found in its own line', async () => {
  const bytes = Buffer.concat([
    Buffer.from(good + good),
    Buffer.from([0xff, 0x0a]),
    Buffer.from(good),
  ])
  await expect(readTaskFile(write(bytes))).rejects.toThrow(/task\.jsonl:3: is not UTF-8$/)
  await expect(readTaskText(write(bytes))).rejects.toThrow(/task\.jsonl:3: is not UTF-8$/)
})

test.each([
  ['text', 'answer', /task\.jsonl:2: has no field 'answer', expected a text$/],
  ['text', 'n', /task\.jsonl:2: field 'n' is 3, expected a text$/],
  ['number', 'question', /task\.jsonl:2: field 'question' is "a é\?", expected a number$/],
  ['texts', 'question', /task\.jsonl:2: field 'question' is "a é\?", expected a list of texts$/],
] as const)('%s %s', async (kind, name, message) => {
  const { lines } = await readTaskFile(write(good + good))
  expect(() => lines[1]?.[kind](name)).toThrow(message)
})

test('a file that is not there is an IO error', async () => {
  await expect(readTaskFile(join(dir, 'none.jsonl'))).rejects.toMatchObject({ code: 'ERR_ZC_IO' })
})

test('text is as it stands there', async () => {
  const { text } = await readTaskText(write('one\r\ntwo\n\nthree\n'))
  expect(text).toBe('one\r\ntwo\n\nthree\n')
})
