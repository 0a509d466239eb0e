import { argumentError, show, ZipCacheError } from '../errors.js'
import type { ModelConfig } from '../model/config.js'
import type { ModelTokenizer } from '../model/tokenizer.js'

/**
 * Token ids, or a text for the model's tokenizer, which adds what its authors put before a text
 * (`<s>`) where a sequence begins with it, and nothing where it goes on.
 */
export type Prompt = ArrayLike<number> | string

/** Throws `ERR_ZC_CONTEXT_LENGTH` for more tokens than the model has positions for. */
export function checkPromptLength(
  argument: string,
  nTokens: number,
  { maxPositions }: Pick<ModelConfig, 'maxPositions'>,
): void {
  if (nTokens <= maxPositions) return
  throw new ZipCacheError(
    'ERR_ZC_CONTEXT_LENGTH',
    `${argument}: ${nTokens} tokens, the model's context holds ${maxPositions}`,
    { argument },
  )
}

/**
 * The token ids of a prompt, or of what `argument` names; `addSpecialTokens` is the tokenizer's, for a text.
 *
 * Throws `ERR_ZC_ARGUMENT` for a text without a tokenizer, and for an id that is no whole number of
 * [0, vocab_size).
 */
export function tokenIds(
  prompt: Prompt,
  tokenizer: ModelTokenizer | null,
  vocabSize: number,
  style: { readonly addSpecialTokens?: boolean; readonly argument?: string } = {},
): number[] {
  const { argument = 'prompt', ...encoding } = style
  if (typeof prompt === 'string') {
    if (tokenizer) return tokenizer.encode(prompt, encoding)
    throw argumentError(argument, 'is a text, but the model has no tokenizer.json; give token ids')
  }
  if (Buffer.isBuffer(prompt)) {
    throw argumentError(argument, 'is a Buffer, whose bytes are no token ids; give its text')
  }
  // 2^32: what an array can hold.
  if (!Number.isInteger(prompt?.length) || prompt.length < 0 || prompt.length >= 2 ** 32) {
    throw argumentError(argument, 'is neither a text nor a list of token ids')
  }
  return Array.from(prompt, (id, i) => {
    if (Number.isInteger(id) && id >= 0 && id < vocabSize) return id
    throw argumentError(
      argument,
      `token ${i} is ${show(id)}, expected a whole number below ${vocabSize}`,
    )
  })
}
