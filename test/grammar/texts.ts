/** Texts that a grammar lets through. */
import { type JsonSchema, jsonGrammar, type StateSet } from '../../lib/grammar/index'

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
