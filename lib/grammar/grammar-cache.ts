import type { Grammar } from './automaton.js'
import { type JsonSchema, jsonGrammar } from './json-schema.js'

/** How many are kept, of how many characters and entries of sets: some tens of MiB in the worst case. */
const MAX_GRAMMARS = 16
const MAX_CHARACTERS = 1 << 16
const MAX_ENTRIES = 1 << 14

/** By the schema's text; the one that was asked for longest ago first. */
const kept = new Map<string, Grammar>()

/**
 * `jsonGrammar` of schemas that come again and again: a grammar remembers where each byte leads, and
 * a vocabulary what each of its states allows.
 */
export function sharedGrammar(schema: true | JsonSchema): Grammar {
  const key = textOf(schema)
  if (key === null) return jsonGrammar(schema)
  let grammar = kept.get(key)
  kept.delete(key)
  if (!grammar || grammar.size > MAX_ENTRIES) grammar = jsonGrammar(schema)
  kept.set(key, grammar)
  const [oldest] = kept.keys()
  if (kept.size > MAX_GRAMMARS) kept.delete(oldest as string)
  return grammar
}

/** null for a schema without a text, as one that contains itself, and for one that is too long. */
function textOf(schema: true | JsonSchema): string | null {
  try {
    const text = JSON.stringify(schema)
    return text.length <= MAX_CHARACTERS ? text : null
  } catch {
    return null
  }
}
