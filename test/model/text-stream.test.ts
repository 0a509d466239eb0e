import { join } from 'node:path'
import fc from 'fast-check'
import { StopMatcher, TextStream, type TokenDecoder } from '../../lib/model/text-stream'
import { loadTokenizer, type ModelTokenizer } from '../../lib/model/tokenizer'
import { expectZipCacheError, kModels, ModelFolders } from './model-folder'
import { byteLevelTokenizer, sentencePieceTokenizer } from './tokenizer-files'

const folders = new ModelFolders()
afterAll(() => folders.remove())

const tokenizers: Record<string, ModelTokenizer> = {}
beforeAll(async () => {
  const load = async (json: unknown) =>
    (await loadTokenizer(folders.write({ 'tokenizer.json': json }))) as ModelTokenizer
  tokenizers.bytes = await load(byteLevelTokenizer())
  tokenizers.pieces = await load(sentencePieceTokenizer())
  tokenizers.words = (await loadTokenizer(join(kModels, 'line-retrieval'))) as ModelTokenizer
  const metaspace = {
    ...sentencePieceTokenizer(),
    normalizer: null,
    pre_tokenizer: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'first' },
    decoder: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'first' },
  }
  tokenizers.metaspace = await load(metaspace)
})

const tokenizer = (name: string) => tokenizers[name] as ModelTokenizer

/** The pieces of `ids`, the last from `flush`. */
function piecesOf(decoder: TokenDecoder, ids: readonly number[], skip?: ReadonlySet<number>) {
  const stream = new TextStream(decoder, skip === undefined ? {} : { skip })
  return [...ids.map((id) => stream.push(id)), stream.flush()]
}

/** What a text says after ids. */
function continued(decoder: TokenDecoder, before: readonly number[], ids: readonly number[]) {
  const stream = new TextStream(decoder, { before })
  return ids.map((id) => stream.push(id)).join('') + stream.flush()
}

/** Ids that make trouble: bytes of characters, spaces, special tokens, none. */
const kIds: Record<string, fc.Arbitrary<number>> = {
  bytes: fc.oneof(
    fc.nat(320),
    fc.constantFrom(0xe2, 0x82, 0xac, 0xf0, 0x9f, 0x98, 0x80, 0xc3, 0xa9, 0xef, 0xbb, 0xbf, 0xbd),
    fc.constantFrom(0x20, 258, 300, 301),
  ),
  pieces: fc.oneof(
    fc.nat(280),
    fc.constantFrom(
      ...[0xe2, 0x82, 0xac, 0xf0, 0x9f, 0x98, 0x80, 0xef, 0xbb, 0xbf].map((b) => b + 3),
    ),
    fc.constantFrom(0, 1, 2, 259, 260, 263, 264, 265, 266, 268),
  ),
  metaspace: fc.oneof(fc.integer({ min: 259, max: 270 }), fc.constantFrom(0, 1, 2, 259)),
  words: fc.nat(200),
}

describe('TextStream', () => {
  test.each(['bytes', 'pieces', 'metaspace', 'words'])('%s: pieces make the whole', (name) => {
    const ids = fc.array(kIds[name] as fc.Arbitrary<number>, { maxLength: 60 })
    fc.assert(
      fc.property(ids, fc.boolean(), (all, skipSpecialTokens) => {
        const skip = skipSpecialTokens ? tokenizer(name).specialIds : new Set<number>()
        const pieces = piecesOf(tokenizer(name), all, skip)
        expect(pieces.join('')).toBe(tokenizer(name).decode(all, { skipSpecialTokens }))
      }),
      { numRuns: 400 },
    )
  })

  test.each(['bytes', 'pieces'])('%s: text of people', (name) => {
    const text = fc.string({ unit: 'grapheme', maxLength: 40 })
    fc.assert(
      fc.property(text, (whole) => {
        const ids = tokenizer(name).encode(whole, { addSpecialTokens: false })
        const pieces = piecesOf(tokenizer(name), ids)
        expect(pieces.join('')).toBe(tokenizer(name).decode(ids))
        // No half characters on the way: what is not whole waits.
        for (const piece of pieces) {
          if (!whole.includes('\uFFFD')) expect(piece).not.toContain('\uFFFD')
        }
      }),
      { numRuns: 300 },
    )
  })

  test('holds back the bytes of a character until it is whole', () => {
    expect(piecesOf(tokenizer('bytes'), [0x61, 0xf0, 0x9f, 0x98, 0x80, 0x62])).toEqual([
      'a',
      '',
      '',
      '',
      '😀',
      'b',
      '',
    ])
  })

  test('hands out half a character at the end, as decode does', () => {
    expect(piecesOf(tokenizer('bytes'), [0x61, 0xe2, 0x82])).toEqual(['a', '', '', '\uFFFD'])
    expect(piecesOf(tokenizer('bytes'), [0xe2, 0x82, 0x61])).toEqual(['', '', '\uFFFDa', ''])
  })

  test('keeps the space of every word but the first', () => {
    // ▁a ▁ab ▁ ▁a
    const ids = [263, 264, 259, 263]
    expect(piecesOf(tokenizer('pieces'), ids)).toEqual(['a', ' ab', ' ', ' a', ''])
    // A special token that is left out does not make the next word the first.
    const skip = new Set([2])
    expect(piecesOf(tokenizer('pieces'), [263, 2, 264], skip)).toEqual(['a', '', ' ab', ''])
  })

  test.each(['bytes', 'pieces', 'words'])('%s: a text that goes on after ids', (name) => {
    const ids = fc.array(kIds[name] as fc.Arbitrary<number>, { maxLength: 60 })
    fc.assert(
      fc.property(ids, ids, (before, more) => {
        const said = tokenizer(name).decode(before)
        // Half a character is said with what makes it whole.
        fc.pre(!said.endsWith('\uFFFD') && said !== '')
        const all = tokenizer(name).decode([...before, ...more])
        expect(continued(tokenizer(name), before, more)).toBe(all.slice(said.length))
      }),
      { numRuns: 400 },
    )
  })

  test('is new after flush', () => {
    const stream = new TextStream(tokenizer('pieces'))
    expect(stream.push(263) + stream.push(263) + stream.flush()).toBe('a a')
    expect(stream.push(263) + stream.flush()).toBe('a')
    expect(stream.flush()).toBe('')
  })

  test.each([
    ['words', 'words', [5, 82, 7]],
    ['spaces', 'pieces', [259]],
    ['bytes that are no text', 'bytes', [0xff]],
    ['half characters', 'bytes', [0xe2, 0x82]],
    ['half characters in one token', 'bytes', [258]],
    ['replacement characters', 'bytes', [0xef, 0xbf, 0xbd]],
    ['byte order marks', 'pieces', [0xef + 3, 0xbb + 3, 0xbf + 3]],
    ['ids without a token', 'bytes', [299]],
  ])('a token costs the same at any length: %s', (_, name, pattern) => {
    let decoded = 0
    const counting: TokenDecoder = {
      token: (id) => tokenizer(name).token(id),
      decode: (ids) => {
        decoded += ids.length
        return tokenizer(name).decode(ids)
      },
    }
    const n = 3000
    const ids = Array.from({ length: n }, (_, i) => pattern[i % pattern.length] as number)
    const text = piecesOf(counting, ids).join('')
    expect(text).toBe(tokenizer(name).decode(ids))
    expect(decoded).toBeLessThan(60 * n)
  })
})

describe('StopMatcher', () => {
  /** What a matcher makes of pieces: the text it lets through and the stop string it meets. */
  function run(stops: readonly string[], pieces: readonly string[]) {
    const matcher = new StopMatcher(stops)
    let text = ''
    for (const piece of pieces) {
      const match = matcher.push(piece)
      text += match.text
      if (match.stop !== null) return { text, stop: match.stop }
    }
    return { text: text + matcher.flush(), stop: null }
  }

  /** The same by looking at every beginning of the whole text. */
  function runWhole(stops: readonly string[], whole: string) {
    for (let end = 1; end <= whole.length; ++end) {
      const ending = stops.filter((stop) => whole.slice(0, end).endsWith(stop))
      if (ending.length === 0) continue
      const stop = ending.reduce((a, b) => (b.length > a.length ? b : a))
      return { text: whole.slice(0, end - stop.length), stop }
    }
    return { text: whole, stop: null }
  }

  test('text before the stop string comes out, the rest does not', () => {
    expect(run(['\n\n'], ['one\n', '\ntwo'])).toEqual({ text: 'one', stop: '\n\n' })
    expect(run(['END'], ['the EN', 'D of it'])).toEqual({ text: 'the ', stop: 'END' })
    expect(run(['END'], ['the EN', 'TIRE text'])).toEqual({ text: 'the ENTIRE text', stop: null })
    expect(run(['END'], ['the EN'])).toEqual({ text: 'the EN', stop: null })
    expect(run([], ['a', 'b'])).toEqual({ text: 'ab', stop: null })
  })

  test('holds back only what could become a stop string', () => {
    const matcher = new StopMatcher(['aab'])
    expect(matcher.push('xaa')).toEqual({ text: 'x', stop: null })
    expect(matcher.push('a')).toEqual({ text: 'a', stop: null })
    expect(matcher.push('b')).toEqual({ text: '', stop: 'aab' })
    expect(matcher.push('more')).toEqual({ text: '', stop: 'aab' })
    expect(matcher.flush()).toBe('')
    expect(matcher.push('more')).toEqual({ text: 'more', stop: null })
  })

  test('the one completed first wins, of two that end together the longer', () => {
    expect(run(['abcd', 'bc'], ['abcd'])).toEqual({ text: 'a', stop: 'bc' })
    expect(run(['c', 'abc'], ['abc'])).toEqual({ text: '', stop: 'abc' })
  })

  test('how the text is cut changes nothing', () => {
    const letters = fc.string({ unit: fc.constantFrom('a', 'b', '😀', '\uD83D'), maxLength: 6 })
    fc.assert(
      fc.property(
        fc.array(
          letters.filter((stop) => stop !== ''),
          { maxLength: 4 },
        ),
        fc.array(letters, { maxLength: 10 }),
        (stops, pieces) => {
          expect(run(stops, pieces)).toEqual(runWhole(stops, pieces.join('')))
        },
      ),
      { numRuns: 1000 },
    )
  })

  test.each([
    [[''], 'stop[0]: is an empty string'],
    [['a', 5], 'stop[1]: is number, expected a string'],
    ['a', 'stop: expected an array of strings'],
  ])('%j is refused', (stops, message) => {
    let error: unknown
    try {
      new StopMatcher(stops as string[])
    } catch (e) {
      error = e
    }
    expectZipCacheError(error, 'ERR_ZC_ARGUMENT', message)
  })
})
