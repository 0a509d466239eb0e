import type { ModelTokenizer } from './tokenizer.js'

/** Punctuation, symbols and line breaks, alone or with spaces. */
const PUNCTUATION = /^(?=.*[\p{P}\p{S}\n])[\p{P}\p{S}\s]+$/su

/**
 * Finds out, once asked, which tokens are special or punctuation: one byte a token of the
 * vocabulary.
 *
 * Source: the `special` probes of ZipCache (arXiv 2405.14256) §4.3, Table 2.
 */
export function specialTokensOf(tokenizer: ModelTokenizer, vocabSize: number): () => Uint8Array {
  let found: Uint8Array | null = null
  return () => {
    found ??= Uint8Array.from({ length: vocabSize }, (_, id) => {
      if (tokenizer.specialIds.has(id)) return 1
      const text = tokenizer.decode([id])
      // U+FFFD stands for a part of a character.
      return PUNCTUATION.test(text) && !text.includes('\uFFFD') ? 1 : 0
    })
    return found
  }
}
