import { ZipCacheError } from '../errors.js'
import {
  type JsonSchema,
  type Steps,
  sharedGrammar,
  TokenMasker,
  type Vocabulary,
} from '../grammar/index.js'
import type { HarmonyMarks } from '../model/harmony.js'
import type { TokenConstraint } from './adjust-logits.js'

/** What an answer in OpenAI's harmony format has to be. */
export interface HarmonyOptions {
  /** JSON of its message in the channel `final`, as `json` has it; left out: there is none. */
  readonly final?: true | JsonSchema | undefined
  /** Functions that it may call instead, and the JSON of their arguments; left out: none. */
  readonly calls?: Readonly<Record<string, true | JsonSchema>> | undefined
}

/** What the constraint has to know of a model. */
export interface HarmonyVocabulary extends Vocabulary {
  readonly marks: HarmonyMarks
  /** Tokens that end an answer. */
  readonly endTokens: ReadonlySet<number>
}

/** A header, as its tokens, and what holds the text behind it; null: the model's own thoughts. */
interface Header {
  readonly ids: readonly number[]
  readonly text: TokenConstraint | null
}

/**
 * Holds an answer to messages of JSON: the model may think first, in one message of the channel
 * `analysis` and as long as it likes, then has to say or to call what is asked for. It begins behind
 * `<|start|>assistant`, where gpt-oss's template ends.
 */
export class HarmonyConstraint implements TokenConstraint {
  readonly #endMark: number
  /** What no thought may have: it could not be told where it ends. */
  readonly #noThought: readonly number[]
  /** Headers of the message behind the thoughts. */
  readonly #later: readonly Header[]
  /** Those that the tokens so far begin; null: a text comes. */
  #headers: readonly Header[] | null
  /** How many tokens of theirs there are. */
  #at = 0
  /** What holds the text that comes; null: thoughts. */
  #text: TokenConstraint | null = null

  /** Throws `ERR_ZC_ARGUMENT` and `ERR_ZC_UNSUPPORTED` as `jsonGrammar`. */
  constructor({ final, calls = {} }: HarmonyOptions, vocabulary: HarmonyVocabulary) {
    const { marks, endTokens, encode } = vocabulary
    this.#endMark = marks.end
    const { end: _, ...others } = marks
    const known = Object.values(others).filter((id): id is number => id !== null)
    this.#noThought = [...new Set([...known, ...endTokens])].filter((id) => id !== marks.end)
    const masker = (schema: true | JsonSchema, ends: Iterable<number>) =>
      new TokenMasker(sharedGrammar(schema), vocabulary, new Set(ends))
    const headers: Header[] = []
    const channel = (name: string) => [marks.channel, ...encode(name)]
    if (final !== undefined) {
      const ends = [...endTokens].filter((id) => id !== marks.call)
      const ids = [...channel('final'), marks.message]
      headers.push({ ids, text: masker(final, ends) })
    }
    for (const [name, schema] of Object.entries(calls)) {
      const ends = endTokens.has(marks.call) ? [marks.call] : endTokens
      const text = masker(schema, ends)
      const recipient = ` to=functions.${name}`
      const constrain = marks.constrain === null ? [] : [...encode(' '), marks.constrain]
      const typed = constrain.length === 0 ? ' json' : 'json'
      // The recipient may stand in either place: the model chooses as it was taught.
      const inChannel = [...channel(`commentary${recipient}`), ...constrain, ...encode(typed)]
      const inRole = [...encode(recipient), ...channel('commentary json')]
      for (const ids of [inChannel, inRole]) headers.push({ ids: [...ids, marks.message], text })
    }
    const start = [marks.start, ...encode('assistant')]
    this.#later = headers.map(({ ids, text }) => ({ ids: [...start, ...ids], text }))
    this.#headers = [{ ids: [...channel('analysis'), marks.message], text: null }, ...headers]
  }

  get isDone(): boolean {
    return this.#headers === null && this.#text?.isDone === true
  }

  *prepare(): Steps {
    if (this.#headers === null && this.#text) yield* this.#text.prepare()
  }

  /**
   * Bans what may not come next.
   *
   * - `logits` (vocab_size), in and out
   */
  apply(logits: Float32Array): void {
    if (this.#headers) {
      const next = this.#headers.map(({ ids }) => ids[this.#at] as number)
      const kept = next.map((id) => logits[id] as number)
      logits.fill(Number.NEGATIVE_INFINITY)
      for (const [i, id] of next.entries()) logits[id] = kept[i] as number
    } else if (this.#text) this.#text.apply(logits)
    else for (const id of this.#noThought) logits[id] = Number.NEGATIVE_INFINITY
  }

  /** What all headers that are left have next, and behind the last one what its text begins with. */
  likely(): readonly number[] {
    const [first, ...others] = this.#headers ?? []
    if (!first) return this.#text?.likely() ?? []
    const { ids, text } = first
    let end = this.#at
    while (end < ids.length && others.every((other) => other.ids[end] === ids[end])) end++
    const next = ids.slice(this.#at, end)
    return end === ids.length && text ? [...next, ...text.likely()] : next
  }

  /** Takes note of a token that was chosen. */
  accept(id: number): void {
    if (this.#headers) this.#acceptHeader(this.#headers, id)
    else if (this.#text) this.#text.accept(id)
    else if (id === this.#endMark) {
      this.#headers = this.#later
      this.#at = 0
    }
  }

  #acceptHeader(headers: readonly Header[], id: number): void {
    const left = headers.filter(({ ids }) => ids[this.#at] === id)
    this.#at++
    const [first] = left
    if (!first) {
      throw new ZipCacheError(
        'ERR_ZC_INTERNAL',
        `harmony: token ${id} was chosen, but is not allowed`,
      )
    }
    // All end with the same mark, so that none is the beginning of another.
    const isWhole = first.ids.length === this.#at
    this.#headers = isWhole ? null : left
    if (isWhole) this.#text = first.text
  }
}
