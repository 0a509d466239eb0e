import { GEMMA_QUOTE } from '../model/gemma-marks.js'
import { jsonOf, type TaggedCall, type TaggedContext, typesOfArgument } from './tagged-calls.js'

/**
 * The call of a text that is nothing but one as Gemma 4 writes it: `call:NAME{KEY:VALUE,…}`, objects and lists
 * in the same way, texts between `<|"|>`, keys without; null for any other. What a model may write instead is
 * taken, too: texts as JSON has them, keys as texts, a text that is a bare word, and no `call` in front.
 * Source: https://ai.google.dev/gemma/docs/capabilities/text/function-calling-gemma4, and
 * https://huggingface.co/google/gemma-4-31B-it, chat_template.jinja.
 *
 * - `parametersOf`: the JSON schema of a function's arguments, which says whether a bare word is a text
 */
export function readGemmaCall(text: string, { parametersOf }: TaggedContext): TaggedCall | null {
  const [head, name] = /^\s*(?:call:|:)?([\w.-]+)\s*(?=\{)/.exec(text) ?? []
  if (head === undefined || name === undefined) return null
  const reader = new GemmaReader(text, head.length)
  const parameters = parametersOf(name)
  const args = reader.object((key, word) => jsonOf(word, typesOfArgument(parameters, key)))
  return args !== null && reader.isAtEnd ? { name, args } : null
}

/** Follows a text of Gemma's calls, and where its texts are. */
export class GemmaTexts {
  #at = 0
  #isInside = false

  /** Whether a place, which is within no mark, is within a text; places have to come in order. */
  isInside(text: string, place: number): boolean {
    const between = text.slice(this.#at, place)
    for (let at = between.indexOf(GEMMA_QUOTE); at >= 0; ) {
      this.#isInside = !this.#isInside
      at = between.indexOf(GEMMA_QUOTE, at + GEMMA_QUOTE.length)
    }
    this.#at = place
    return this.#isInside
  }
}

/** What a bare word is as JSON, as the value of a key of the call's own. */
type WordReader = (key: string, word: string) => string

/** Objects and lists within each other: more than a grammar lets through. */
const MAX_DEPTH = 512

/** Reads values, and gives them as JSON; null for what is none. Numbers stay as they are written. */
class GemmaReader {
  readonly #text: string
  #at: number
  #depth = 0

  constructor(text: string, at: number) {
    this.#text = text
    this.#at = at
  }

  get isAtEnd(): boolean {
    this.#skipSpace()
    return this.#at === this.#text.length
  }

  object(wordOf: WordReader | null): string | null {
    return this.#within('{', '}', () => {
      const key = this.#key()
      if (key === null || !this.#take(':')) return null
      const value = this.#value(wordOf && ((word) => wordOf(key, word)))
      return value === null ? null : `${JSON.stringify(key)}: ${value}`
    })
  }

  #value(wordOf: ((word: string) => string) | null): string | null {
    this.#skipSpace()
    switch (this.#text[this.#at]) {
      case '{':
        return this.object(null)
      case '[':
        return this.#within('[', ']', () => this.#value(null))
    }
    const text = this.#quoted()
    if (text !== null) return JSON.stringify(text)
    const word = this.#match(/[^,[\]{}"<]+/y)?.trimEnd()
    return word === undefined ? null : (wordOf?.(word) ?? jsonOf(word, null))
  }

  #key(): string | null {
    this.#skipSpace()
    return this.#quoted() ?? this.#match(/[^:,{}"<]+/y)?.trimEnd() ?? null
  }

  /** A text between quotes of either kind; null: there is none. */
  #quoted(): string | null {
    if (this.#text.startsWith(GEMMA_QUOTE, this.#at)) {
      const from = this.#at + GEMMA_QUOTE.length
      const end = this.#text.indexOf(GEMMA_QUOTE, from)
      if (end < 0) return null
      this.#at = end + GEMMA_QUOTE.length
      return this.#text.slice(from, end)
    }
    const json = this.#match(/"[^"\\]*(?:\\.[^"\\]*)*"/sy)
    if (json === undefined) return null
    try {
      return JSON.parse(json) as string
    } catch {
      // Not escaped as JSON asks for: as it stands there.
      return json.slice(1, -1)
    }
  }

  /** Values of an object or a list, one after the other. */
  #within(open: string, close: string, read: () => string | null): string | null {
    if (!this.#take(open) || this.#depth === MAX_DEPTH) return null
    this.#depth++
    const all: string[] = []
    while (!this.#take(close)) {
      if (all.length > 0 && !this.#take(',')) return null
      const one = read()
      if (one === null) return null
      all.push(one)
    }
    this.#depth--
    return open + all.join(', ') + close
  }

  #take(sign: string): boolean {
    this.#skipSpace()
    const isThere = this.#text.startsWith(sign, this.#at)
    if (isThere) this.#at += sign.length
    return isThere
  }

  #skipSpace(): void {
    this.#match(/\s+/y)
  }

  #match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#at
    const found = pattern.exec(this.#text)?.[0]
    this.#at += found?.length ?? 0
    return found
  }
}
