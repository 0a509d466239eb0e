import type { SubjectModel, SubjectSequence, SubjectTokenizer } from '../../lib/eval/subject'
import type { PolicySpec } from '../../lib/policy/index'
import { readVocabulary } from './fixture-prompts'

const words = readVocabulary()

/** The trained models' words, without the tokenizer package. */
export const wordTokenizer: SubjectTokenizer = {
  encode: (text) =>
    text
      .split(/ +/)
      .filter((word) => word !== '')
      .map((word) => words.indexOf(word)),
  decode: (ids) => Array.from(ids, (id) => words[id]).join(' '),
  token: (id) => words[id],
  specialIds: new Set(),
  chatTemplateSource: () => undefined,
  tokenId: (word) => (words.includes(word) ? words.indexOf(word) : undefined),
  applyChatTemplate: ([message]) => `<s> ${message?.content} answer :`,
}

/** What a fake sequence was asked to do. */
export interface FakeCalls {
  policy: PolicySpec
  seed: number | undefined
  prefills: number[][]
  generated: number[]
  disposed: number
}

/** How a fake model behaves. */
export interface FakeBehaviour {
  tokenizer?: SubjectTokenizer | null
  maxPositions?: number
  /** The text a policy answers with, given the text of its prompt. */
  answer?: (prompt: string, policy: PolicySpec) => string
  /** Logits after `tokens`. */
  logits?: (tokens: readonly number[], policy: PolicySpec) => Float32Array
  /** Runs before a call does its work. */
  before?: (step: 'prefill' | 'token') => void
}

/**
 * A model that looks up the answer in its prompt's text; `calls` has one entry for each sequence
 * ever made.
 */
export function fakeModel(behaviour: FakeBehaviour = {}): SubjectModel & { calls: FakeCalls[] } {
  const { answer = lookUp, logits = () => new Float32Array(0), before = () => {} } = behaviour
  const calls: FakeCalls[] = []
  return {
    calls,
    config: { maxPositions: behaviour.maxPositions ?? 8192, vocabSize: words.length },
    tokenizer: behaviour.tokenizer === undefined ? wordTokenizer : behaviour.tokenizer,
    createSequence({ policy, seed }): SubjectSequence {
      const call: FakeCalls = { policy, seed, prefills: [], generated: [], disposed: 0 }
      calls.push(call)
      let length = 0
      return {
        get length() {
          return length
        },
        get bytes() {
          const fp16 = length * 100
          const resident = policy === 'fp16' ? fp16 : fp16 / 5
          return { resident, peak: resident, fp16, ratio: fp16 / resident, paperRatio: null }
        },
        async prefill(ids, { signal }) {
          before('prefill')
          signal?.throwIfAborted()
          call.prefills.push(Array.from(ids))
          length += ids.length
        },
        async logits(ids, { signal }) {
          before('prefill')
          signal?.throwIfAborted()
          call.prefills.push(Array.from(ids))
          length += ids.length
          return logits(call.prefills.flat(), policy)
        },
        async *generate(_, { maxTokens, ignoreEos = false, signal }) {
          const prompt = call.prefills
            .flat()
            .map((id) => words[id])
            .join(' ')
          const ids = wordTokenizer.encode(answer(prompt, policy), { addSpecialTokens: false })
          const count = ignoreEos ? maxTokens : Math.min(maxTokens, ids.length)
          call.generated.push(0)
          for (let i = 0; i < count; i++) {
            before('token')
            signal?.throwIfAborted()
            length++
            call.generated[call.generated.length - 1]!++
            const id = ids[i] ?? 0
            yield { id, text: `${i > 0 ? ' ' : ''}${words[id]}` }
          }
        },
        dispose() {
          call.disposed++
        },
      }
    },
  }
}

/** The right answer, and what the trained models write after it. */
export function lookUp(prompt: string): string {
  const [, key] = / in (line \S+ - \S+) \? /.exec(prompt) ?? []
  const record = prompt.split('\n').find((line) => line.trim().startsWith(`${key} :`)) ?? ''
  const [number] = /< [\d ]+ >/.exec(record) ?? ['']
  return `${key} : REGISTER_CONTENT is ${number} \n`
}
