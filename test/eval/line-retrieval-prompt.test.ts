import { join } from 'node:path'
import fc from 'fast-check'
import {
  generateLineRetrieval,
  kAdjectives,
  kNouns,
  kTemplates,
  type LineRetrievalRecord,
  writeLineRetrieval,
} from '../../lib/eval/line-retrieval-prompt'
import { loadTokenizer, type ModelTokenizer } from '../../lib/model/tokenizer'
import { readFixturePrompts, readVocabulary } from './fixture-prompts'

const words = readVocabulary()
const prompts = readFixturePrompts()
const textOf = (ids: readonly number[]) => ids.map((id) => words[id]).join(' ')

/** What `writeRecord` wrote. Throws on a line that no template makes. */
function parseRecord(line: string): LineRetrievalRecord {
  const match = /^line (\S+) - (\S+) : (.*)$/.exec(line)
  if (match === null) throw new Error(`no record: ${line}`)
  const [, adjective = '', noun = '', content = ''] = match
  const number = /< (\d \d \d \d \d) >/.exec(content)?.[1] ?? ''
  const template = kTemplates.indexOf(content.replace(`< ${number} >`, 'NUMBER'))
  if (template === -1) throw new Error(`no template: ${content}`)
  return { adjective, noun, number: number.replaceAll(' ', ''), template }
}

/** The records of a prompt, and the line its question asks for. */
function parsePrompt(text: string) {
  const lines = text.split(' \n').map((line) => line.trim())
  const records = lines.slice(1, -2).map(parseRecord)
  const [, adjective, noun] = / in line (\S+) - (\S+) \? /.exec(lines.at(-2) ?? '') ?? []
  const targetLine = records.findIndex((r) => r.adjective === adjective && r.noun === noun)
  return { records, targetLine }
}

/** Lines by template; the equal ones are one. */
function countTemplates(texts: readonly string[]): Map<string, number> {
  const counts = new Map<string, number>()
  for (const { template } of texts.flatMap((text) => parsePrompt(text).records)) {
    const name = kTemplates[template] as string
    counts.set(name, (counts.get(name) ?? 0) + 1)
  }
  return counts
}

let tokenizer: ModelTokenizer
beforeAll(async () => {
  const dir = join(__dirname, '..', '..', 'models', 'line-retrieval')
  tokenizer = (await loadTokenizer(dir)) as ModelTokenizer
})

test('word lists are the vocabulary, in its order', () => {
  expect(kAdjectives).toHaveLength(64)
  expect(kNouns).toHaveLength(64)
  expect([...kAdjectives, ...kNouns]).toEqual(words.slice(64))
})

describe('prompts of the original generator', () => {
  test.each(prompts.map((prompt, index) => [index, prompt] as const))(
    'prompt %i is written identically from its records',
    (_, prompt) => {
      const text = textOf(prompt.ids)
      const { records, targetLine } = parsePrompt(text)
      const written = writeLineRetrieval(records, targetLine)
      expect(records).toHaveLength(prompt.lines)
      expect(written.text).toBe(text)
      expect(written.number).toBe(prompt.number)
      expect(written.targetLine).toBe(prompt.target_line)
      expect(written.answerText).toBe(textOf(prompt.answer_ids))
      expect(tokenizer.encode(written.text)).toEqual(prompt.ids)
    },
  )
})

describe('generateLineRetrieval', () => {
  const anyPrompt = fc.record({
    lines: fc.integer({ min: 1, max: 300 }),
    seed: fc.maxSafeInteger(),
  })

  test('tokenizes to words of the vocabulary and back', () => {
    fc.assert(
      fc.property(anyPrompt, (options) => {
        const { text, recordText, questionText, answerText } = generateLineRetrieval(options)
        for (const part of [text, recordText, questionText, answerText]) {
          expect(textOf(tokenizer.encode(part))).toBe(part.replace(/^ /, ''))
        }
        expect(tokenizer.encode(text)).not.toContain(tokenizer.unkId)
      }),
      { numRuns: 30 },
    )
  })

  test('splits into records and question, in text and in tokens', () => {
    const { text, recordText, questionText } = generateLineRetrieval({ lines: 20, seed: 3 })
    expect(recordText + questionText).toBe(text)
    expect(recordText.endsWith(' \n')).toBe(true)
    expect(questionText.startsWith(' question :')).toBe(true)
    expect([...tokenizer.encode(recordText), ...tokenizer.encode(questionText)]).toEqual(
      tokenizer.encode(text),
    )
  })

  test('keys are unique and the question asks for the target line', () => {
    fc.assert(
      fc.property(anyPrompt, (options) => {
        const prompt = generateLineRetrieval(options)
        const { records, targetLine } = parsePrompt(prompt.text)
        expect(records).toHaveLength(options.lines)
        expect(new Set(records.map((r) => `${r.adjective} ${r.noun}`)).size).toBe(options.lines)
        expect(targetLine).toBe(prompt.targetLine)
        expect(records[targetLine]?.number).toBe(prompt.number)
        expect(prompt.answerText.replaceAll(' ', '').endsWith(`<${prompt.number}`)).toBe(true)
      }),
      { numRuns: 30 },
    )
  })

  test('the same seed gives the same prompt, another seed another', () => {
    const make = (seed: number | bigint) => generateLineRetrieval({ lines: 50, seed })
    expect(make(7)).toEqual(make(7))
    expect(make(7)).toEqual(make(7n))
    expect(make(8).recordText).not.toBe(make(7).recordText)
  })

  test('another target line or another number of lines keeps the records', () => {
    const base = generateLineRetrieval({ lines: 50, seed: 7 })
    const asked = generateLineRetrieval({ lines: 50, seed: 7, targetLine: 49 })
    expect(asked.targetLine).toBe(49)
    expect(asked.recordText).toBe(base.recordText)
    const longer = generateLineRetrieval({ lines: 51, seed: 7 })
    expect(longer.recordText.startsWith(base.recordText)).toBe(true)
  })

  test('all 4096 keys', () => {
    const { records } = parsePrompt(generateLineRetrieval({ lines: 4096, seed: 0 }).text)
    expect(new Set(records.map((r) => `${r.adjective} ${r.noun}`)).size).toBe(4096)
  })

  test('draws templates as often as the original generator', () => {
    const original = countTemplates(prompts.map(({ ids }) => textOf(ids)))
    const ours = countTemplates(
      Array.from({ length: 40 }, (_, seed) => generateLineRetrieval({ lines: 100, seed }).text),
    )
    for (const counts of [original, ours]) {
      const total = [...counts.values()].reduce((sum, count) => sum + count, 0)
      expect([...counts.keys()].sort()).toEqual([...new Set(kTemplates)].sort())
      for (const [name, count] of counts) {
        const share = kTemplates.filter((template) => template === name).length / kTemplates.length
        // Four standard deviations of a binomial count.
        const deviation = Math.sqrt(total * share * (1 - share))
        expect(Math.abs(count - total * share)).toBeLessThan(4 * deviation)
      }
    }
  })

  test('asks for any line', () => {
    const targets = Array.from(
      { length: 400 },
      (_, seed) => generateLineRetrieval({ lines: 4, seed }).targetLine,
    )
    for (let line = 0; line < 4; line++) {
      expect(targets.filter((target) => target === line).length).toBeGreaterThan(60)
    }
  })

  test.each([
    ['lines', { lines: 0, seed: 1 }],
    ['lines', { lines: 4097, seed: 1 }],
    ['lines', { lines: 1.5, seed: 1 }],
    ['lines', { lines: Number.NaN, seed: 1 }],
    ['seed', { lines: 1, seed: 0.5 }],
    ['targetLine', { lines: 3, seed: 1, targetLine: 3 }],
    ['targetLine', { lines: 3, seed: 1, targetLine: -1 }],
    ['targetLine', { lines: 3, seed: 1, targetLine: 0.5 }],
  ])('refuses %s of %j', (argument, options) => {
    expect(() => generateLineRetrieval(options)).toThrow(
      expect.objectContaining({ code: 'ERR_ZC_ARGUMENT', argument }),
    )
  })
})
