import type { Grammar } from './automaton.js'
import { type JsonSchema, jsonGrammar } from './json-schema.js'

/** How many are kept, of how many characters each; of how many entries of sets and parts of schemas in all: some 80 MB. */
const MAX_GRAMMARS = 16
const MAX_CHARACTERS = 1 << 16
const MAX_ENTRIES = 1 << 16

/** By the schema's text; the one that was asked for longest ago first. */
const kept = new Map<string, Grammar>()

/**
 * `jsonGrammar` of schemas that come again and again: a grammar remembers where each byte leads, and
 * a vocabulary what each of its states allows.
 */
export function sharedGrammar(schema: true | JsonSchema): Grammar {
  const key = textOf(schema)
  if (key === null) return jsonGrammar(schema)
  const grammar = kept.get(key) ?? jsonGrammar(schema)
  kept.delete(key)
  kept.set(key, grammar)
  for (const oldest of kept.keys()) {
    const sizes = [...kept.values()].map(({ size, nParts }) => size + nParts)
    const isFew = sizes.reduce((sum, one) => sum + one) <= MAX_ENTRIES
    if ((kept.size <= MAX_GRAMMARS && isFew) || kept.size === 1) break
    kept.delete(oldest)
  }
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
