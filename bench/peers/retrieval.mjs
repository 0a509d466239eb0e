// Line retrieval: how often each cache still gives the right five digits.

import { openCell } from './cell-process.mjs'
import {
  kLlamaCaches,
  kZipCacheCaches,
  llamaCacheBytes,
  llamaCell,
  zipcacheCell,
} from './cells.mjs'
import { lineRetrievalPrompts } from './prompts.mjs'

/**
 * Both keep the shipped models' weights as they are, in float16 (see the check of logits). Flash
 * attention does not change what a cache loses, so that one F16 cell of llama.cpp is enough.
 *
 * `ask`: `inside`, the question stands in one prompt with the records, and zipcache's prefill
 * attends to all of it exactly, as in the paper; `after`, it is a turn of its own when the records
 * are compressed. To llama.cpp it is always `after`: what is in its cache is quantized, also to the
 * rest of the prompt.
 */
const kJobs = [
  ...kLlamaCaches
    .filter(({ flashAttention }) => flashAttention)
    .map((cache) => ({ cell: llamaCell(cache, 'F16'), ask: 'after' })),
  ...['inside', 'after'].flatMap((ask) =>
    kZipCacheCaches.map((cache) => ({ cell: zipcacheCell(cache, 'f32'), ask })),
  ),
]

/**
 * Asks every cell the same questions, greedily; a hit has all five digits right. No time is
 * measured, so that every processor has a cell.
 * @param {import('./models.mjs').BenchModel[]} models with a tokenizer
 * @param {{ lines: number[], questions: number, onProgress: (text: string) => void }} options
 * @param {{ nodeLlamaCpp: string }} host
 * @param {number} nProcessors used, from 0
 * @returns {Promise<object[]>} a row for each model, number of lines, cell and ask mode, with `ratio`
 *   the mean of 16-bit bytes / cache bytes after the last answer token; a cell whose process failed
 *   has `failed` instead
 */
export async function measureRetrieval(models, options, host, nProcessors) {
  const { lines, questions, onProgress } = options
  const rows = []
  for (const model of models) {
    for (const nLines of lines) {
      const prompts = await lineRetrievalPrompts(model, nLines, questions)
      for (const { cell, ask } of kJobs) {
        const about = { model: model.name, lines: nLines, ask, questions, ...cell }
        rows.push({ about, prompts, model, cell })
      }
    }
  }
  const results = new Array(rows.length)
  let next = 0
  const serveProcessor = async (cpu) => {
    while (next < rows.length) {
      const index = next++
      const { about, prompts, model, cell } = rows[index]
      const { lines: nLines, ask } = about
      onProgress(
        `${index + 1} of ${rows.length}: ${model.name}, ${nLines} lines, ${cell.name} ${cell.cache}`,
      )
      results[index] = { ...about, ...(await askAll(cell, ask, prompts, model, { ...host, cpu })) }
    }
  }
  await Promise.all(Array.from({ length: nProcessors }, (_, cpu) => serveProcessor(cpu)))
  return results
}

async function askAll(cell, ask, prompts, model, host) {
  let opened = null
  try {
    opened = await openCell(cell, model, host)
    let hits = 0
    let ratios = 0
    for (const { turns, maxTokens, isRight } of prompts) {
      const asked = ask === 'inside' ? [turns.flat()] : turns
      const { ids, tokens, bytes } = await opened.process.call('answer', {
        turns: asked,
        maxTokens,
      })
      if (isRight(ids)) hits++
      const ownBytes = bytes ?? llamaCacheBytes(model.shape, cell.kvType, tokens)
      ratios += llamaCacheBytes(model.shape, 'F16', tokens) / ownBytes
    }
    return { hits, ratio: ratios / prompts.length, failed: null }
  } catch (error) {
    return { hits: null, ratio: null, failed: error.message }
  } finally {
    await opened?.process.stop()
  }
}
