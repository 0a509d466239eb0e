import { gemmaMarks, isGemmaTemplate } from '../model/gemma-marks.js'
import { harmonyMarks, isHarmonyTemplate } from '../model/harmony.js'
import { StopMatcher } from '../model/text-stream.js'
import type { ModelTokenizer } from '../model/tokenizer.js'
import { HarmonyParser, type HarmonyPart } from './harmony.js'
import { ThoughtParser, type ThoughtPart, thoughtMarks } from './thoughts.js'

/** What reading an answer needs of a tokenizer; `ModelTokenizer` is one. */
export type AnswerTokenizer = Pick<
  ModelTokenizer,
  'chatTemplateSource' | 'decode' | 'specialIds' | 'token' | 'tokenId'
>

/** A token of an answer, as `Sequence.generate` gives it. */
export interface AnswerToken {
  readonly id: number
  readonly text: string
  readonly isStop?: true
}

/** An answer to a chat whose model tells what it thinks from what it says. */
export interface AnswerReader {
  /** Tokens that end it. */
  readonly stopTokens: readonly number[]
  /** What it has said. */
  readonly text: string
  /** What it has thought. */
  readonly reasoning: string
  /** Whether it has said a text that ends it. */
  readonly isStopped: boolean
  /** Takes the next token; what it says with it. */
  push(token: AnswerToken): string
  /** The answer has ended; `isCut`: for want of room. The rest of what it says. */
  end(isCut: boolean): string
}

/** What a format tells apart. */
interface Format {
  readonly stopTokens: readonly number[]
  push(token: AnswerToken): readonly (HarmonyPart | ThoughtPart)[]
  end(isCut: boolean): readonly (HarmonyPart | ThoughtPart)[]
}

/**
 * Reads a chat's answer to a prompt; null where the model's template has no format that tells thoughts
 * apart.
 *
 * - `stop`: texts that end it, looked for in what it says alone; the generation is not told of them
 */
export function answerReader(
  tokenizer: AnswerTokenizer,
  prompt: readonly number[],
  stop: readonly string[],
): AnswerReader | null {
  const format = harmonyFormat(tokenizer, prompt) ?? thoughtFormat(tokenizer, prompt)
  if (!format) return null
  const matcher = new StopMatcher(stop)
  let text = ''
  let reasoning = ''
  let isStopped = false
  const take = (parts: readonly (HarmonyPart | ThoughtPart)[]) => {
    const before = text.length
    for (const part of parts) {
      if (part.kind === 'text') {
        const match = matcher.push(part.text)
        text += match.text
        isStopped ||= match.stop !== null
      } else if (part.kind === 'reasoning') reasoning += part.text
    }
    return text.slice(before)
  }
  return {
    stopTokens: format.stopTokens,
    get text() {
      return text
    },
    get reasoning() {
      return reasoning
    },
    get isStopped() {
      return isStopped
    },
    push: (token) => take(format.push(token)),
    end(isCut) {
      if (isStopped) return ''
      const rest = take(format.end(isCut))
      const held = isStopped ? '' : matcher.flush()
      text += held
      return rest + held
    },
  }
}

function harmonyFormat(tokenizer: AnswerTokenizer, prompt: readonly number[]): Format | null {
  const marks = isHarmonyTemplate(templateOf(tokenizer)) ? harmonyMarks(tokenizer) : null
  if (!marks) return null
  const context = { marks, tokenizer, names: new Set<string>(), separator: '\n' }
  const parser = new HarmonyParser({ ...context, prompt })
  return {
    stopTokens: [marks.call, marks.return].filter((id) => id !== null),
    // The parser has all tokens, and so what was held back of their text.
    push: ({ id, isStop }) => (isStop ? [] : parser.push(id)),
    end: (isCut) => parser.end(isCut),
  }
}

/** More tokens than any mark has, with white space behind it. */
const PROMPT_END = 32

function thoughtFormat(tokenizer: AnswerTokenizer, prompt: readonly number[]): Format | null {
  const template = templateOf(tokenizer)
  const marks = thoughtMarks(template)
  if (!marks) return null
  const gemma = isGemmaTemplate(template) ? gemmaMarks(tokenizer) : null
  const parser = new ThoughtParser({
    marks,
    tokenizer,
    prompt: tokenizer.decode(prompt.slice(-PROMPT_END)),
  })
  return {
    stopTokens: gemma?.ends ?? [],
    push: ({ id, text, isStop }) => parser.push(isStop ? null : id, text),
    end: () => parser.end(),
  }
}

function templateOf(tokenizer: AnswerTokenizer): string {
  return tokenizer.chatTemplateSource() ?? ''
}
