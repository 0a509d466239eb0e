import { GEMMA_CALL } from '../model/gemma-marks.js'
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
  /** What follows `open` and is no thought. */
  readonly name?: string
  /** Thoughts may stand between what is said, too, and the end of one alone says nothing. */
  readonly isAnywhere?: true
  /** What a call begins with: a thought ends there as well, if the model forgot to. */
  readonly call?: string
}

const MARKS: readonly ThoughtMarks[] = [
  // Of Qwen 3, DeepSeek-R1, GLM-Z1 and others.
  { open: '<think>', close: '</think>' },
  // Of Magistral.
  { open: '[THINK]', close: '[/THINK]' },
  // Of Seed-OSS.
  { open: '<seed:think>', close: '</seed:think>' },
  // Of Gemma 4, whose thoughts are in a channel with a name.
  {
    open: '<|channel>',
    close: '<channel|>',
    name: 'thought\n',
    isAnywhere: true,
    call: GEMMA_CALL.open,
  },
]

/**
 * The marks that a chat template's models write what they think between: it knows where that ends. null: it
 * knows none.
 */
export function thoughtMarks(template: string): ThoughtMarks | null {
  return MARKS.find(({ close }) => template.includes(close)) ?? null
}

/** Whether a text ends where a thought has begun. */
export function endsInThought(text: string, { open, name = '' }: ThoughtMarks): boolean {
  const end = text.trimEnd()
  return end.endsWith(open) || (name !== '' && end.endsWith(open + name.trimEnd()))
}

/** What a parser has to know. */
export interface ThoughtContext {
  readonly marks: ThoughtMarks
  readonly tokenizer: Pick<ModelTokenizer, 'tokenId' | 'specialIds'>
  /** The text of the prompt, or its end: some templates begin the thought themselves. */
  readonly prompt: string
}

/**
 * Tells what a model thinks from what it says, where it writes the former between marks, and first. White
 * space around thoughts is left out; an answer that does not begin with the mark has none, unless they may
 * stand anywhere.
 */
export class ThoughtParser {
  readonly #marks: ThoughtMarks
  /** What a thought ends with. */
  readonly #ends: readonly string[]
  /** Marks that are special tokens, which have no text of their own. */
  readonly #markTexts = new Map<number, string>()
  #state: 'beginning' | 'thinking' | 'after a thought' | 'saying'
  #hasThoughts: boolean | null = null
  /** What the answer begins with while that may become a mark; then the end of a thought, which may be none. */
  #held = ''
  /** Whether the thought has said anything, and one before it. */
  #hasThought = false
  #hasEarlier = false
  /** What may still stand before a thought. */
  #name = ''

  constructor({ marks, tokenizer, prompt }: ThoughtContext) {
    this.#marks = marks
    this.#ends = marks.call === undefined ? [marks.close] : [marks.close, marks.call]
    for (const mark of [marks.open, ...this.#ends]) {
      const id = tokenizer.tokenId(mark)
      if (id !== undefined && tokenizer.specialIds.has(id)) this.#markTexts.set(id, mark)
    }
    this.#state = 'beginning'
    if (!endsInThought(prompt, marks)) return
    this.#begin()
    if (!prompt.trimEnd().endsWith(marks.open)) this.#name = ''
  }

  /** Whether the answer began with thoughts; null: that is not known yet, and nothing was given out. */
  get hasThoughts(): boolean | null {
    return this.#hasThoughts
  }

  /** Whether there are no thoughts, and none can come: the rest is what it says. */
  get isOver(): boolean {
    return this.#hasThoughts === false && !this.#marks.isAnywhere
  }

  /** Whether the next token belongs to what the model thinks. */
  get isReasoning(): boolean {
    return this.#state === 'thinking'
  }

  /** The next token: its id, null for a text without one, and the text that became certain with it. */
  push(id: number | null, text: string): ThoughtPart[] {
    const mark = id === null ? undefined : this.#markTexts.get(id)
    const piece = text + (mark === undefined || this.#isOthers(mark) ? '' : mark)
    switch (this.#state) {
      case 'beginning':
        return this.#first(piece)
      case 'thinking':
        return this.#think(piece)
      default:
        return this.#goOn(piece)
    }
  }

  /** Whether a mark is none of a thought's where it stands: that of a call, or of an end without a beginning. */
  #isOthers(mark: string): boolean {
    const { call, close, isAnywhere } = this.#marks
    if (this.#state === 'thinking') return false
    return mark === call || (mark === close && isAnywhere === true)
  }

  /** The answer has ended. */
  end(): ThoughtPart[] {
    const held = this.#held
    this.#held = ''
    if (this.#state === 'thinking') return this.#thought(this.#unnamed(held.trimEnd()))
    return held === '' ? [] : [{ kind: 'text', text: held }]
  }

  #begin(): void {
    this.#state = 'thinking'
    this.#hasThoughts ??= true
    this.#hasEarlier ||= this.#hasThought
    this.#hasThought = false
    this.#held = ''
    this.#name = this.#marks.name ?? ''
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
    const held = this.#held
    this.#held = ''
    return this.#goOn(held)
  }

  #think(piece: string): ThoughtPart[] {
    const { close } = this.#marks
    const text = this.#held + piece
    const places = this.#ends.map((mark) => text.indexOf(mark)).filter((at) => at >= 0)
    if (places.length === 0) {
      const begun = Math.max(...this.#ends.map((mark) => lengthBegun(text, mark)))
      const certain = text.slice(0, text.length - begun)
      const mayBeName = this.#name.startsWith(certain) && this.#name !== certain
      const thought = mayBeName ? '' : this.#unnamed(certain)
      const said = thought.trimEnd()
      this.#held = mayBeName ? text : thought.slice(said.length) + text.slice(certain.length)
      return this.#thought(said)
    }
    const at = Math.min(...places)
    const thought = this.#unnamed(text.slice(0, at).trimEnd())
    this.#held = ''
    this.#state = 'after a thought'
    const rest = text.slice(text.startsWith(close, at) ? at + close.length : at)
    return [...this.#thought(thought), ...this.#goOn(rest)]
  }

  /** A thought without its name. */
  #unnamed(thought: string): string {
    const name = this.#name
    this.#name = ''
    if (thought.startsWith(name)) return thought.slice(name.length)
    return thought === name.trimEnd() ? '' : thought
  }

  #thought(thought: string): ThoughtPart[] {
    const text = this.#hasThought ? thought : thought.trimStart()
    if (text === '') return []
    const separator = this.#hasEarlier && !this.#hasThought ? '\n' : ''
    this.#hasThought = true
    return [{ kind: 'reasoning', text: separator + text }]
  }

  /** What comes where no thought is. */
  #goOn(piece: string): ThoughtPart[] {
    const { open, isAnywhere } = this.#marks
    if (!isAnywhere) return this.#say(piece)
    const text = this.#held + piece
    const at = text.indexOf(open)
    if (at < 0) {
      const end = text.length - lengthBegun(text, open)
      this.#held = text.slice(end)
      return this.#say(text.slice(0, end))
    }
    const said = this.#say(text.slice(0, at))
    this.#begin()
    return [...said, ...this.#think(text.slice(at + open.length))]
  }

  #say(piece: string): ThoughtPart[] {
    const text = this.#state === 'saying' ? piece : piece.trimStart()
    if (text === '') return []
    this.#state = 'saying'
    return [{ kind: 'text', text }]
  }
}

/** Units at the end of a text that may become a mark. */
function lengthBegun(text: string, mark: string): number {
  let length = Math.min(mark.length - 1, text.length)
  while (!mark.startsWith(text.slice(text.length - length))) length--
  return length
}
