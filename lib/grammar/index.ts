/** Texts that must be JSON: which bytes may come next, and so which tokens. */
export { type Grammar, StateSet } from './automaton.js'
export { type JsonSchema, jsonGrammar } from './json-schema.js'
export { TokenMasker, TokenTrie } from './token-masker.js'
