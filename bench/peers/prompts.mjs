// Prompts as token ids, which both engines are given alike.
import { kShippedModels } from './models.mjs'

/** Special tokens, the first of every vocabulary here, are not drawn. */
const kSpecialTokens = 4
/** Questions about the same records, which llama.cpp then prefills once. */
const kQuestionsARecord = 4
/** Tokens beyond the right answer's before a model is taken to have missed. */
const kExtraAnswerTokens = 3

/**
 * Ids drawn uniformly: enough to measure time with.
 * @param {{ vocabSize: number }} model
 */
export function randomIds({ vocabSize }, length, seed) {
  let state = seed >>> 0
  return Array.from({ length }, () => {
    // The linear congruential generator of Numerical Recipes; its high bits are the random ones.
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return kSpecialTokens + Math.floor((state / 2 ** 32) * (vocabSize - kSpecialTokens))
  })
}

/**
 * Ids to compare logits with: a trained model gets a text of its task, since it answers noise with
 * probabilities that the least rounding moves.
 * @returns {Promise<number[]>} `length` of them
 */
export async function typicalIds(model, length) {
  if (!kShippedModels.includes(model.name)) return randomIds(model, length, 1)
  // A line takes 15 tokens at least.
  const [{ turns }] = await lineRetrievalPrompts(model, Math.ceil(length / 15), 1)
  return turns.flat().slice(0, length)
}

/**
 * Line-retrieval questions, four about different lines of the same records each time; both engines
 * get the same.
 * @returns {Promise<{ turns: number[][], maxTokens: number, isRight: (ids: number[]) => boolean }[]>}
 *   `turns`: the records, then the question; joined they are the whole prompt
 */
export async function lineRetrievalPrompts(model, lines, count) {
  const { generateLineRetrieval, loadModel } = await import('../../dist/index.mjs')
  const loaded = await loadModel(model.folder, { device: 'cpu', threads: 1 })
  const { tokenizer } = loaded
  await loaded.dispose()
  const encode = (text) => tokenizer.encode(text, { addSpecialTokens: false })
  return Array.from({ length: count }, (_, question) => {
    const seed = Math.floor(question / kQuestionsARecord)
    // The line that the seed draws, and others at equal distances from it.
    const first = generateLineRetrieval({ lines, seed }).targetLine
    const distance = (question % kQuestionsARecord) * (lines / kQuestionsARecord)
    const targetLine = Math.floor(first + distance) % lines
    const prompt = generateLineRetrieval({ lines, seed, targetLine })
    return {
      turns: [encode(prompt.recordText), encode(prompt.questionText)],
      maxTokens: encode(prompt.answerText).length + kExtraAnswerTokens,
      isRight: (ids) => {
        const text = tokenizer.decode(ids).replace(/\s+/g, '')
        return /\d{5}/.exec(text)?.[0] === prompt.number
      },
    }
  })
}
