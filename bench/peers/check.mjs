// Whether both engines compute the same model, before anything about them is compared.

import { openCell } from './cell-process.mjs'
import { kLlamaCaches, kZipCacheCaches, llamaCell, zipcacheCell } from './cells.mjs'
import { kShippedModels } from './models.mjs'
import { typicalIds } from './prompts.mjs'

/** Positions compared. */
const kPositions = 256

/**
 * What is compared, and how far log-probabilities may lie apart: where float16 weights meet
 * activations rounded to float16 (llama.cpp) or kept in float32 (ours), and where both round both to
 * bfloat16, eight times coarser; and where both have weights of 8 bits, with scales of other elements,
 * and llama.cpp activations of 8 bits, too. The trained models are sharper and turn the same rounding into
 * larger differences, up to the 20 nats that separate their best token from the worst. Bounds are
 * two to ten times what was seen.
 */
const kPairs = [
  { dtype: 'f32', weights: 'F16', bound: { random: 0.05, trained: 0.3 } },
  { dtype: 'bf16', weights: 'BF16', bound: { random: 0.3, trained: 3 } },
  { dtype: 'f32', ours: 'int8', weights: 'Q8_0', bound: { random: 1, trained: 6 } },
]
/** Share of positions with the same most probable token. */
const kLeastAgreement = 0.95

/**
 * Compares log-probabilities of all tokens at 256 positions: zipcache's `full` cache against
 * llama.cpp's F16 cache with flash attention.
 * @returns {Promise<object[]>} a row for each pair of number types, with `agrees`
 * Rejects when a process fails.
 */
export async function checkModel(model, host) {
  const ids = await typicalIds(model, kPositions)
  const logitsOf = async (cell) => {
    const { process } = await openCell(cell, model, host)
    try {
      return await process.call('logits', { ids, vocabSize: model.vocabSize })
    } finally {
      await process.stop()
    }
  }
  const rows = []
  for (const { dtype, ours: format, weights, bound: bounds } of kPairs) {
    const bound = kShippedModels.includes(model.name) ? bounds.trained : bounds.random
    const full = { ...kZipCacheCaches[0], policy: 'full' }
    const ours = await logitsOf(zipcacheCell(full, dtype, format))
    const theirs = await logitsOf(llamaCell(kLlamaCaches[0], weights))
    const { maxDifference, agreement } = compareLogits(ours, theirs, model.vocabSize)
    const agrees = maxDifference <= bound && agreement >= kLeastAgreement
    rows.push({
      model: model.name,
      zipcache: format === undefined ? dtype : `${dtype}, ${format} weights`,
      llama: weights,
      positions: kPositions,
      maxDifference,
      bound,
      agreement,
      agrees,
    })
  }
  return rows
}

/**
 * @param {Float32Array} a (positions, vocabSize)
 * @param {Float32Array} b (positions, vocabSize)
 * @returns {{ maxDifference: number, agreement: number }} the greatest difference of natural
 *   log-probabilities, and the share of positions with the same argmax
 */
function compareLogits(a, b, vocabSize) {
  let maxDifference = 0
  let nAgreeing = 0
  const positions = a.length / vocabSize
  for (let position = 0; position < positions; position++) {
    const begin = position * vocabSize
    const rowA = logProbabilities(a.subarray(begin, begin + vocabSize))
    const rowB = logProbabilities(b.subarray(begin, begin + vocabSize))
    let bestA = 0
    let bestB = 0
    for (let token = 0; token < vocabSize; token++) {
      const difference = Math.abs(rowA[token] - rowB[token])
      // Not a maximum: NaN must not be lost.
      if (!(difference <= maxDifference)) maxDifference = difference
      if (rowA[token] > rowA[bestA]) bestA = token
      if (rowB[token] > rowB[bestB]) bestB = token
    }
    if (bestA === bestB) nAgreeing++
  }
  return { maxDifference, agreement: nAgreeing / positions }
}

function logProbabilities(logits) {
  let max = Number.NEGATIVE_INFINITY
  for (const logit of logits) max = Math.max(max, logit)
  let sum = 0
  for (const logit of logits) sum += Math.exp(logit - max)
  return Float64Array.from(logits, (logit) => logit - max - Math.log(sum))
}
