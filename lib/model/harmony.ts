import type { ModelTokenizer } from './tokenizer.js'

/**
 * Ids of the special tokens of OpenAI's harmony format, which gpt-oss answers in:
 * `<|start|>{role}<|channel|>{channel}<|message|>{text}<|end|>`, one message after the other.
 * Source: https://github.com/openai/harmony, docs/format.md.
 */
export interface HarmonyMarks {
  /** `<|start|>`: a header begins, with the role. */
  readonly start: number
  /** `<|channel|>`: the header goes on with the channel. */
  readonly channel: number
  /** `<|constrain|>`: the header goes on with the type of the text; null: there is none. */
  readonly constrain: number | null
  /** `<|message|>`: the text begins. */
  readonly message: number
  /** `<|end|>`: the message is over. */
  readonly end: number
  /** `<|call|>`: so is the answer, which asks for a call. */
  readonly call: number
  /** `<|return|>`: so is the answer; null: there is none. */
  readonly return: number | null
}

/** The marks of a vocabulary; null where one that no answer can do without is no special token of it. */
export function harmonyMarks(
  tokenizer: Pick<ModelTokenizer, 'specialIds' | 'tokenId'>,
): HarmonyMarks | null {
  const idOf = (name: string) => {
    const id = tokenizer.tokenId(`<|${name}|>`)
    return id !== undefined && tokenizer.specialIds.has(id) ? id : null
  }
  const [start, channel, message, end, call] = NEEDED.map(idOf)
  if (start == null || channel == null || message == null || end == null || call == null) {
    return null
  }
  const [constrain, returns] = [idOf('constrain'), idOf('return')]
  return {
    start,
    channel,
    message,
    end,
    call,
    constrain: constrain ?? null,
    return: returns ?? null,
  }
}

const NEEDED = ['start', 'channel', 'message', 'end', 'call']

/** Whether a chat template writes harmony's messages, and calls among them. */
export function isHarmonyTemplate(template: string): boolean {
  return NEEDED.every((name) => template.includes(`<|${name}|>`))
}
