import type { ModelTokenizer } from './tokenizer.js'

/** What texts stand between in calls and results. */
export const GEMMA_QUOTE = '<|"|>'
/** What a call stands between: `<|tool_call>call:NAME{KEY:VALUE,…}<tool_call|>`. */
export const GEMMA_CALL = { open: '<|tool_call>', close: '<tool_call|>' }

/**
 * Ids of the special tokens of Gemma 4's answers.
 * Source: https://ai.google.dev/gemma/docs/core/prompt-formatting-gemma4.
 */
export interface GemmaMarks {
  /** `<|tool_call>`: a call begins. */
  readonly open: number
  /** `<tool_call|>`: it ends. */
  readonly close: number
  /** `<|"|>`: a text within a call begins, or ends. */
  readonly quote: number
  /** What ends an answer: `<turn|>` the model's turn, `<|tool_response>` where the results of calls are to come. */
  readonly ends: readonly number[]
}

/** The marks of a vocabulary; null where one that no call can do without is no special token of it. */
export function gemmaMarks(
  tokenizer: Pick<ModelTokenizer, 'specialIds' | 'tokenId'>,
): GemmaMarks | null {
  const idOf = (token: string) => {
    const id = tokenizer.tokenId(token)
    return id !== undefined && tokenizer.specialIds.has(id) ? id : null
  }
  const [open, close, quote] = [GEMMA_CALL.open, GEMMA_CALL.close, GEMMA_QUOTE].map(idOf)
  if (open == null || close == null || quote == null) return null
  const ends = ['<turn|>', '<|tool_response>'].map(idOf).filter((id) => id !== null)
  return { open, close, quote, ends }
}

/** Whether a chat template writes Gemma 4's turns, and calls among them. */
export function isGemmaTemplate(template: string): boolean {
  return template.includes('<|turn>') && template.includes(GEMMA_CALL.open)
}
