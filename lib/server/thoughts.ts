import type { AnswerEvent } from './answers.js'
import type { ChoiceEvent } from './generation.js'

const OPEN = '<think>'
const CLOSE = '</think>'

/** What an answer does whose thoughts are told apart, and whose calls are not yet. */
export type ThoughtEvent = ChoiceEvent | Extract<AnswerEvent, { kind: 'reasoning' }>

/** Whether a chat template's models write what they think before what they say: it knows where that ends. */
export function writesThoughts(template: string): boolean {
  return template.includes(CLOSE)
}

/**
 * Tells what a model thinks from what it says, where it writes the former first and between `<think>` and
 * `</think>`: Qwen 3, DeepSeek-R1, GLM-Z1 and others. White space around thoughts is left out; an
 * answer that does not begin with `<think>` has none.
 *
 * - `prompt`: some templates begin the thought themselves, so that the answer goes on with it
 * - `count`: told of every token of a thought
 */
export async function* withThoughts(
  events: AsyncIterable<ChoiceEvent>,
  prompt: string,
  count: () => void,
): AsyncGenerator<ThoughtEvent, void, undefined> {
  const isOpen = prompt.trimEnd().endsWith(OPEN)
  const choices = new Map<number, ThinkingChoice>()
  for await (const event of events) {
    const choice = choices.get(event.choice) ?? new ThinkingChoice(event.choice, isOpen, count)
    choices.set(event.choice, choice)
    yield* event.kind === 'end' ? choice.end(event) : choice.read(event)
  }
}

type TextEvent = Exclude<ChoiceEvent, { kind: 'end' }>
type EndEvent = Extract<ChoiceEvent, { kind: 'end' }>

class ThinkingChoice {
  readonly #choice: number
  readonly #count: () => void
  #state: 'beginning' | 'thinking' | 'after a thought' | 'saying'
  /** What the answer begins with, while that may become `<think>`. */
  #first: TextEvent[] = []
  /** White space and what may become `</think>`, at the end of a thought so far. */
  #held = ''
  #hasThought = false

  constructor(choice: number, isOpen: boolean, count: () => void) {
    this.#choice = choice
    this.#count = count
    this.#state = isOpen ? 'thinking' : 'beginning'
  }

  *read(event: TextEvent): Generator<ThoughtEvent> {
    if (this.#state === 'saying') yield event
    else if (this.#state === 'beginning') yield* this.#begin(event)
    else if (this.#state === 'thinking') yield* this.#goOn(event)
    else {
      const text = textOf(event).trimStart()
      if (text !== '') this.#state = 'saying'
      if (text !== '' || event.kind === 'token') yield withText(event, text)
    }
  }

  *end(event: EndEvent): Generator<ThoughtEvent> {
    yield* this.#first
    if (this.#state === 'thinking') yield* this.#think(this.#held.trimEnd())
    yield event
  }

  *#begin(event: TextEvent): Generator<ThoughtEvent> {
    this.#first.push(event)
    const text = this.#first.map(textOf).join('').trimStart()
    if (OPEN.startsWith(text)) {
      if (text !== OPEN) return
    } else if (!text.startsWith(OPEN)) {
      this.#state = 'saying'
      yield* this.#first
      this.#first = []
      return
    }
    this.#state = 'thinking'
    this.#first = []
    yield* this.#take(text.slice(OPEN.length))
  }

  *#goOn(event: TextEvent): Generator<ThoughtEvent> {
    yield* this.#take(textOf(event))
    // `</think>` itself is no thought.
    if (event.kind === 'token' && this.#state === 'thinking') this.#count()
  }

  *#take(piece: string): Generator<ThoughtEvent> {
    const text = this.#held + piece
    const close = text.indexOf(CLOSE)
    const end = close < 0 ? text.length - lengthHeld(text) : close
    const thought = text.slice(0, end)
    this.#held = close < 0 ? text.slice(end) : ''
    yield* this.#think(close < 0 ? thought : thought.trimEnd())
    if (close < 0) return
    const rest = text.slice(close + CLOSE.length).trimStart()
    this.#state = rest === '' ? 'after a thought' : 'saying'
    if (rest !== '') yield { kind: 'text', choice: this.#choice, text: rest }
  }

  *#think(thought: string): Generator<ThoughtEvent> {
    const text = this.#hasThought ? thought : thought.trimStart()
    if (text === '') return
    this.#hasThought = true
    yield { kind: 'reasoning', choice: this.#choice, text }
  }
}

/** Units at the end of a thought that may be none of it: white space, and what may become `</think>`. */
function lengthHeld(text: string): number {
  let length = Math.min(CLOSE.length - 1, text.length)
  while (!CLOSE.startsWith(text.slice(text.length - length))) length--
  return text.length - text.slice(0, text.length - length).trimEnd().length
}

function textOf(event: TextEvent): string {
  return event.kind === 'token' ? event.token.text : event.text
}

function withText(event: TextEvent, text: string): TextEvent {
  return event.kind === 'token' ? { ...event, token: { ...event.token, text } } : { ...event, text }
}
