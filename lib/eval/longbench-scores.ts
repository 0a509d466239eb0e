/** LongBench's scores of one prediction against one truth, each of [0, 1]. */

/** F1 over the words of both, without case, articles and punctuation. */
export function questionF1(prediction: string, truth: string): number {
  return overlapF1(answerWords(prediction), answerWords(truth))
}

/**
 * F1 of the longest common subsequence of words. The published score splits into sentences first
 * and takes the union of their subsequences; this one does not.
 */
export function rougeL(prediction: string, truth: string): number {
  const [a, b] = [wordsOf(prediction), wordsOf(truth)]
  return f1(commonSubsequence(a, b), a.length, b.length)
}

/** 1 / n when the truth is among the n classes that the prediction names, else 0. */
export function classification(
  prediction: string,
  truth: string,
  classes: readonly string[],
): number {
  // A class that is part of the truth's own name is not named by it.
  const named = classes.filter(
    (name) => prediction.includes(name) && !(truth.includes(name) && name !== truth),
  )
  return named.includes(truth) ? 1 / named.length : 0
}

/** The share of the prediction's numbers that are the paragraph's. */
export function retrieval(prediction: string, truth: string): number {
  const [, paragraph] = /Paragraph (\d+)/.exec(truth) ?? []
  return shareOfNumbers(prediction, paragraph ?? truth)
}

/** The share of the prediction's numbers that are the truth. */
export function count(prediction: string, truth: string): number {
  return shareOfNumbers(prediction, truth.trim())
}

/** How much of the first line of code is the truth's: 2 common / (both lengths), by characters. */
export function codeSimilarity(prediction: string, truth: string): number {
  const line =
    prediction
      .replace(/^\n+/, '')
      .split('\n')
      .find((text) => !/[`#]|\/\//.test(text)) ?? ''
  const [a, b] = [[...line], [...truth]]
  return f1(commonSubsequence(a, b), a.length, b.length)
}

function shareOfNumbers(prediction: string, truth: string): number {
  const numbers = prediction.match(/\d+/g) ?? []
  if (numbers.length === 0) return 0
  return numbers.filter((number) => number === truth).length / numbers.length
}

const wordsOf = (text: string) => text.split(/\s+/).filter((word) => word !== '')

function answerWords(text: string): string[] {
  const plain = text.toLowerCase().replace(/[!-/:-@[-`{-~]/g, '')
  return wordsOf(plain).filter((word) => !['a', 'an', 'the'].includes(word))
}

function overlapF1(a: readonly string[], b: readonly string[]): number {
  const left = new Map<string, number>()
  for (const word of b) left.set(word, (left.get(word) ?? 0) + 1)
  let common = 0
  for (const word of a) {
    const n = left.get(word) ?? 0
    if (n === 0) continue
    left.set(word, n - 1)
    common++
  }
  return f1(common, a.length, b.length)
}

/** 2 common / (a + b): the harmonic mean of precision and recall. */
function f1(common: number, a: number, b: number): number {
  return common === 0 ? 0 : (2 * common) / (a + b)
}

function commonSubsequence(a: readonly string[], b: readonly string[]): number {
  let row = new Uint32Array(b.length + 1)
  for (const item of a) {
    const next = new Uint32Array(b.length + 1)
    for (let j = 0; j < b.length; j++) {
      next[j + 1] =
        item === b[j] ? (row[j] as number) + 1 : Math.max(next[j] as number, row[j + 1] as number)
    }
    row = next
  }
  return row[b.length] as number
}
