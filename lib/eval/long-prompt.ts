import { deriveSeed, toSeed, uniformInteger } from '../random.js'
import { encodeLineRetrieval } from './line-retrieval.js'
import { generateLineRetrieval, kAdjectives, kNouns } from './line-retrieval-prompt.js'
import type { SubjectModel } from './subject.js'

/** A prompt is filled up from as many lines as this at a time. */
const kLinesPerPiece = 256

/**
 * Token ids of a prompt of exactly `length` tokens, at least 1, to measure with: the shortest way
 * to what a model was trained on. For a model that knows the words of line retrieval, record lines
 * and a question (the last line cut short where it must be); for any other, ids drawn uniformly.
 */
export function longPrompt(model: SubjectModel, length: number, seed: number): number[] {
  const { tokenizer, config } = model
  const words = [...kAdjectives, ...kNouns, 'REGISTER_CONTENT']
  if (tokenizer === null || words.some((word) => tokenizer.tokenId(word) === undefined)) {
    const own = toSeed(seed)
    return Array.from({ length }, (_, i) => uniformInteger(own, i, config.vocabSize))
  }
  const ids: number[] = []
  let question: number[] = []
  for (let piece = 0; ids.length + question.length < length; piece++) {
    const pieceSeed = uniformInteger(deriveSeed(toSeed(seed), piece), 0, 2 ** 48)
    const prompt = generateLineRetrieval({ lines: kLinesPerPiece, seed: pieceSeed, targetLine: 0 })
    const records = encodeLineRetrieval(tokenizer, prompt.recordText)
    if (piece === 0) question = encodeLineRetrieval(tokenizer, prompt.questionText)
    for (const id of records) ids.push(id)
  }
  // Shorter than a question: its end alone.
  const tail = question.slice(-length)
  return [...ids.slice(0, length - tail.length), ...tail]
}
