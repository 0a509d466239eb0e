import type { ThoughtParser, ThoughtPart } from '../chat/thoughts.js'
import { StopMatcher } from '../model/text-stream.js'
import type { AnswerEvent } from './answers.js'
import type { ChoiceEvent } from './generation.js'

/** What an answer does whose thoughts are told apart, and whose calls are not yet. */
export type ThoughtEvent = ChoiceEvent | Extract<AnswerEvent, { kind: 'reasoning' }>

/** What an answer with thoughts is read with. */
export interface ThoughtReading {
  /** A parser for the answer of a choice. */
  makeParser(choice: number): ThoughtParser
  /** Texts that end a choice, looked for in what it says alone. */
  readonly stop: readonly string[]
  /** Told of a choice that such a text has ended. */
  stopChoice(choice: number): void
  /** Told of every token of a thought. */
  countReasoning(): void
}

/** Tells what a model thinks from what it says, where both stand in one text. */
export async function* withThoughts(
  events: AsyncIterable<ChoiceEvent>,
  reading: ThoughtReading,
): AsyncGenerator<ThoughtEvent, void, undefined> {
  const choices = new Map<number, ThinkingChoice>()
  for await (const event of events) {
    const choice = choices.get(event.choice) ?? new ThinkingChoice(event.choice, reading)
    choices.set(event.choice, choice)
    yield* event.kind === 'end' ? choice.end(event) : choice.read(event)
  }
}

type TextEvent = Exclude<ChoiceEvent, { kind: 'end' }>
type EndEvent = Extract<ChoiceEvent, { kind: 'end' }>

class ThinkingChoice {
  readonly #choice: number
  readonly #reading: ThoughtReading
  readonly #parser: ThoughtParser
  readonly #matcher: StopMatcher
  /** What the answer begins with, while that may become a thought. */
  #first: TextEvent[] = []
  #isStopped = false

  constructor(choice: number, reading: ThoughtReading) {
    this.#choice = choice
    this.#reading = reading
    this.#parser = reading.makeParser(choice)
    this.#matcher = new StopMatcher(reading.stop)
  }

  *read(event: TextEvent): Generator<ThoughtEvent> {
    if (this.#isStopped) return
    const parser = this.#parser
    if (parser.isOver) return yield* this.#say(event)
    const wasReasoning = parser.isReasoning
    const wasBeginning = parser.hasThoughts === null
    const id = event.kind === 'token' ? event.token.id : null
    const parts = parser.push(id, textOf(event))
    // The mark itself is no thought.
    if (id !== null && wasReasoning && parser.isReasoning) this.#reading.countReasoning()
    if (wasReasoning) return yield* this.#tell(parts)
    if (!wasBeginning) return yield* this.#sayOwn(event, parts)
    this.#first.push(event)
    if (parser.hasThoughts === null) return
    const isPlain = parts[0]?.text === this.#first.map(textOf).join('')
    if (!parser.hasThoughts && isPlain) return yield* this.#sayFirst()
    this.#first = []
    yield* this.#tell(parts)
  }

  *end(event: EndEvent): Generator<ThoughtEvent> {
    if (this.#isStopped) return yield { ...event, finishReason: 'stop' }
    yield* this.#sayFirst()
    const { hasThoughts, isOver } = this.#parser
    if (hasThoughts !== null && !isOver && !this.#isStopped) yield* this.#tell(this.#parser.end())
    const text = this.#matcher.flush()
    if (text !== '') yield { kind: 'text', choice: this.#choice, text }
    yield this.#isStopped ? { ...event, finishReason: 'stop' } : event
  }

  /** The answer has no thoughts: each of its tokens has its own text. */
  *#sayFirst(): Generator<ThoughtEvent> {
    for (const event of this.#first) yield* this.#say(event)
    this.#first = []
  }

  /** What a token says is its own text; a thought may begin with it. */
  *#sayOwn(event: TextEvent, parts: readonly ThoughtPart[]): Generator<ThoughtEvent> {
    const [first, ...others] = parts
    const isText = first?.kind === 'text'
    yield* this.#say(withText(event, isText ? first.text : ''))
    yield* this.#tell(isText ? others : parts)
  }

  *#tell(parts: readonly ThoughtPart[]): Generator<ThoughtEvent> {
    for (const { kind, text } of parts) {
      if (kind === 'reasoning') yield { kind, choice: this.#choice, text }
      else yield* this.#say({ kind, choice: this.#choice, text })
    }
  }

  *#say(event: TextEvent): Generator<ThoughtEvent> {
    if (this.#isStopped) return
    const { text, stop } = this.#matcher.push(textOf(event))
    if (text !== '' || event.kind === 'token') yield withText(event, text)
    if (stop === null) return
    this.#isStopped = true
    this.#reading.stopChoice(this.#choice)
  }
}

function textOf(event: TextEvent): string {
  return event.kind === 'token' ? event.token.text : event.text
}

function withText(event: TextEvent, text: string): TextEvent {
  return event.kind === 'token' ? { ...event, token: { ...event.token, text } } : { ...event, text }
}
