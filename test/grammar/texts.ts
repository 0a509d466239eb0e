/** Texts that a grammar lets through. */
import type { GrammarState } from '../../lib/grammar/automaton'
import {
  gemmaCalls,
  type JsonSchema,
  jsonGrammar,
  QUOTE_BYTE,
  type StateSet,
} from '../../lib/grammar/index'

/** The state after a text, or null. */
export function after(schema: true | JsonSchema, text: string): StateSet | null {
  let state: StateSet | null = jsonGrammar(schema).start
  for (const byte of Buffer.from(text)) state = state?.next(byte) ?? null
  return state
}

export const accepts = (schema: true | JsonSchema, text: string) =>
  after(schema, text)?.isAccepting === true

/** A text that the grammar allows, byte by byte, as numbers choose; short ways once it is long. */
export function walk(schema: true | JsonSchema, choices: readonly number[]): string | null {
  const bytes: number[] = []
  let state = jsonGrammar(schema).start
  for (let i = 0; bytes.length < 2000; i++) {
    if (state.isAccepting && (state.isFinal || (choices[i % choices.length] as number) % 4 === 0)) {
      return Buffer.from(bytes).toString()
    }
    const open: number[] = []
    for (let byte = 0; byte < 256; byte++) if (state.next(byte)) open.push(byte)
    if (open.length === 0) throw new Error(`a dead end: ${Buffer.from(bytes)}`)
    // Closing what is open ends a walk; letters go on with it.
    const closing = open.filter((byte) => '"]},:'.includes(String.fromCharCode(byte)))
    const from = i > choices.length && closing.length > 0 ? closing : open
    const byte = from[(choices[i % choices.length] as number) % from.length] as number
    bytes.push(byte)
    state = state.next(byte) as StateSet
  }
  return null
}

/** Whether an object may be the arguments of a call as Gemma 4 writes it, with quotes around keys or without. */
export function acceptsGemma(schema: true | JsonSchema, value: object): boolean {
  return [true, false].some((isQuoted) => {
    let state: GrammarState | null = gemmaCalls({ f: schema })
    const bytes = [...Buffer.from('call:f'), ...gemmaBytes(value, isQuoted)]
    for (const byte of bytes) state = state?.next(byte) ?? null
    return state?.isAccepting === true
  })
}

function gemmaBytes(value: unknown, isQuoted: boolean): number[] {
  const quoted = (text: string) => [QUOTE_BYTE, ...Buffer.from(text), QUOTE_BYTE]
  const list = (all: number[][]) => all.flatMap((one, i) => (i === 0 ? one : [0x2c, ...one]))
  if (typeof value === 'string') return quoted(value)
  if (typeof value !== 'object' || value === null) return [...Buffer.from(JSON.stringify(value))]
  if (Array.isArray(value))
    return [0x5b, ...list(value.map((one) => gemmaBytes(one, isQuoted))), 0x5d]
  const pairs = Object.entries(value).map(([key, one]) => [
    ...(isQuoted ? quoted(key) : Buffer.from(key)),
    0x3a,
    ...gemmaBytes(one, isQuoted),
  ])
  return [0x7b, ...list(pairs), 0x7d]
}
