/** Texts that must be JSON: which bytes may come next, and so which tokens. */
export { type Grammar, StateSet } from './automaton.js'
export { MAX_PARTS } from './budget.js'
export { gemmaCalls, QUOTE_BYTE } from './gemma-notation.js'
export { sharedGrammar } from './grammar-cache.js'
export { type JsonSchema, jsonGrammar } from './json-schema.js'
export { TokenMasker, type Vocabulary } from './token-masker.js'
export { type Steps, TokenTrie } from './token-trie.js'
