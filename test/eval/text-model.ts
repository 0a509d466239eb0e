import type { SubjectModel, SubjectSequence, SubjectTokenizer } from '../../lib/eval/subject'
import type { PolicySpec } from '../../lib/policy/index'

/** A token is a character. */
export const characterTokenizer: SubjectTokenizer = {
  encode: (text) => Array.from(text, (character) => character.codePointAt(0) as number),
  decode: (ids) => String.fromCodePoint(...ids),
  token: (id) => String.fromCodePoint(id),
  tokenId: () => undefined,
  specialIds: new Set(),
  chatTemplateSource: () => undefined,
  applyChatTemplate: ([message]) => `[user]${message?.content}[model]`,
}

/** How a model of characters behaves. */
export interface TextBehaviour {
  tokenizer?: SubjectTokenizer
  maxPositions?: number
  vocabSize?: number
  answer?: (prompt: string, policy: PolicySpec) => string
  logits?: (text: string, policy: PolicySpec) => Float32Array
}

/** A model that answers a text with a text; `prompts` has what each sequence was told. */
export function textModel(
  behaviour: TextBehaviour,
): SubjectModel & { readonly prompts: string[][]; readonly policies: PolicySpec[] } {
  const { tokenizer = characterTokenizer, answer = () => '' } = behaviour
  const prompts: string[][] = []
  const policies: PolicySpec[] = []
  return {
    prompts,
    policies,
    config: {
      maxPositions: behaviour.maxPositions ?? 100_000,
      vocabSize: behaviour.vocabSize ?? 0x110000,
    },
    tokenizer,
    createSequence({ policy }): SubjectSequence {
      const told: string[] = []
      prompts.push(told)
      policies.push(policy)
      let length = 0
      const add = (ids: ArrayLike<number>) => {
        told.push(tokenizer.decode(Array.from(ids)))
        length += ids.length
      }
      return {
        get length() {
          return length
        },
        bytes: { resident: 20, peak: 30, fp16: 100, ratio: 5, paperRatio: 6 },
        async prefill(ids) {
          add(ids)
        },
        async logits(ids) {
          add(ids)
          return behaviour.logits?.(told.join(''), policy) ?? new Float32Array(0)
        },
        async *generate(_, { maxTokens, stop = [] }) {
          const written: number[] = []
          for (const id of tokenizer.encode(answer(told.join(''), policy), {
            addSpecialTokens: false,
          })) {
            if (written.length === maxTokens) break
            written.push(id)
            length++
            const text = tokenizer.decode(written)
            if (stop.some((each) => text.endsWith(each))) return
            // What may become a stop text is held back, as the engine does.
            yield { id, text: tokenizer.decode([id]) }
          }
          if (written.length > 0) add(written)
        },
        dispose() {},
      }
    },
  }
}
