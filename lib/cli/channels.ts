import type { Model } from '../engine/model.js'
import { harmonyMarks, isHarmonyTemplate } from '../model/harmony.js'
import { StopMatcher } from '../model/text-stream.js'
import { HarmonyParser, type HarmonyPart } from '../server/harmony.js'

/** An answer whose format tells what the model thinks from what it says. */
export interface Channels {
  /** Tokens that end it. */
  readonly stopTokens: readonly number[]
  /** What it has said. */
  readonly text: string
  /** What it has thought. */
  readonly reasoning: string
  /** Whether it has said a text that ends it. */
  readonly isStopped: boolean
  /** Takes the next token; what it says with it. */
  push(id: number): string
  /** The answer has ended; `isCut`: for want of room. The rest of what it says. */
  end(isCut: boolean): string
}

/**
 * Reads a chat's answer to a prompt; null where the model's template has no such format.
 *
 * - `stop`: texts that end it, looked for in what it says alone
 */
export function channelsOf(
  { tokenizer }: Pick<Model, 'tokenizer'>,
  prompt: string | readonly number[],
  stop: readonly string[],
): Channels | null {
  const template = tokenizer?.chatTemplateSource() ?? ''
  const marks = tokenizer && isHarmonyTemplate(template) ? harmonyMarks(tokenizer) : null
  if (!tokenizer || !marks || typeof prompt === 'string') return null
  const context = { marks, tokenizer, names: new Set<string>(), separator: '\n' }
  const parser = new HarmonyParser({ ...context, prompt })
  const matcher = new StopMatcher(stop)
  let text = ''
  let reasoning = ''
  let isStopped = false
  const take = (parts: readonly HarmonyPart[]) => {
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
    stopTokens: [marks.call, marks.return].filter((id) => id !== null),
    get text() {
      return text
    },
    get reasoning() {
      return reasoning
    },
    get isStopped() {
      return isStopped
    },
    push: (id) => take(parser.push(id)),
    end(isCut) {
      if (isStopped) return ''
      const rest = take(parser.end(isCut))
      const held = isStopped ? '' : matcher.flush()
      text += held
      return rest + held
    },
  }
}
