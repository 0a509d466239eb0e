import type { ModelTokenizer } from '../model/tokenizer.js'

/** What an answer says and thinks, in its order. */
export interface ThoughtPart {
  /** Text for people, or what the model thinks by itself. */
  readonly kind: 'text' | 'reasoning'
  readonly text: string
}

/** What stands before and behind what a model thinks. */
export interface ThoughtMarks {
  readonly open: string
  readonly close: string
}

const MARKS: readonly ThoughtMarks[] = [
  // Of Qwen 3, DeepSeek-R1, GLM-Z1 and others.
  { open: '<think>', close: '</think>' },
  // Of Magistral.
  { open: '[THINK]', close: '[/THINK]' },
  // Of Seed-OSS.
  { open: '<seed:think>', close: '</seed:think>' },
]

/**
 * The marks that a chat template's models write what they think between, before what they say: it knows
 * where that ends. null: it knows none.
 */
export function thoughtMarks(template: string): ThoughtMarks | null {
  return MARKS.find(({ close }) => template.includes(close)) ?? null
}

/** What a parser has to know. */
export interface ThoughtContext {
  readonly marks: ThoughtMarks
  readonly tokenizer: Pick<ModelTokenizer, 'tokenId' | 'specialIds'>
  /** The text of the prompt, or its end: some templates begin the thought themselves. */
  readonly prompt: string
}

/**
 * Tells what a model thinks from what it says, where it writes the former first and between marks. White
 * space around thoughts is left out; an answer that does not begin with the mark has none.
 */
export class ThoughtParser {
  readonly #marks: ThoughtMarks
  /** Marks that are special tokens, which have no text of their own. */
  readonly #markTexts = new Map<number, string>()
  #state: 'beginning' | 'thinking' | 'after a thought' | 'saying'
  #hasThoughts: boolean | null = null
  /** What the answer begins with while that may become a mark; then the end of a thought, which may be none. */
  #held = ''
  #hasThought = false

  constructor({ marks, tokenizer, prompt }: ThoughtContext) {
    this.#marks = marks
    for (const mark of [marks.open, marks.close]) {
      const id = tokenizer.tokenId(mark)
      if (id !== undefined && tokenizer.specialIds.has(id)) this.#markTexts.set(id, mark)
    }
    this.#state = 'beginning'
    if (prompt.trimEnd().endsWith(marks.open)) this.#begin()
  }

  /** Whether the answer has thoughts; null: that is not known yet, and nothing was given out. */
  get hasThoughts(): boolean | null {
    return this.#hasThoughts
  }

  /** Whether the next token belongs to what the model thinks. */
  get isReasoning(): boolean {
    return this.#state === 'thinking'
  }

  /** The next token: its id, null for a text without one, and the text that became certain with it. */
  push(id: number | null, text: string): ThoughtPart[] {
    const mark = id === null ? undefined : this.#markTexts.get(id)
    const piece = text + (mark ?? '')
    switch (this.#state) {
      case 'beginning':
        return this.#first(piece)
      case 'thinking':
        return this.#think(piece)
      default:
        return this.#say(piece)
    }
  }

  /** The answer has ended. */
  end(): ThoughtPart[] {
    const held = this.#held
    this.#held = ''
    if (this.#state === 'thinking') return this.#thought(held.trimEnd())
    return held === '' ? [] : [{ kind: 'text', text: held }]
  }

  #begin(): void {
    this.#state = 'thinking'
    this.#hasThoughts = true
    this.#held = ''
  }

  #first(piece: string): ThoughtPart[] {
    const { open } = this.#marks
    this.#held += piece
    const text = this.#held.trimStart()
    if (text.startsWith(open)) {
      this.#begin()
      return this.#think(text.slice(open.length))
    }
    if (open.startsWith(text)) return []
    this.#state = 'saying'
    this.#hasThoughts = false
    return this.end()
  }

  #think(piece: string): ThoughtPart[] {
    const { close } = this.#marks
    const text = this.#held + piece
    const at = text.indexOf(close)
    if (at < 0) {
      const end = text.length - lengthHeld(text, close)
      this.#held = text.slice(end)
      return this.#thought(text.slice(0, end))
    }
    this.#held = ''
    this.#state = 'after a thought'
    return [
      ...this.#thought(text.slice(0, at).trimEnd()),
      ...this.#say(text.slice(at + close.length)),
    ]
  }

  #thought(thought: string): ThoughtPart[] {
    const text = this.#hasThought ? thought : thought.trimStart()
    if (text === '') return []
    this.#hasThought = true
    return [{ kind: 'reasoning', text }]
  }

  #say(piece: string): ThoughtPart[] {
    const text = this.#state === 'saying' ? piece : piece.trimStart()
    if (text === '') return []
    this.#state = 'saying'
    return [{ kind: 'text', text }]
  }
}

/** Units at the end of a thought that may be none of it: white space, and what may become the mark. */
function lengthHeld(text: string, close: string): number {
  let length = Math.min(close.length - 1, text.length)
  while (!close.startsWith(text.slice(text.length - length))) length--
  return text.length - text.slice(0, text.length - length).trimEnd().length
}
