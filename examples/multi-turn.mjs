// A conversation: the text is read once and compressed, then each question is a turn over the
// compressed past, and its answer joins it.
//   node examples/multi-turn.mjs
import { fileURLToPath } from 'node:url'
import { loadModel } from 'zipcache'
import { questionText, records, recordText } from './line-records.mjs'

const dir = fileURLToPath(new URL('../models/line-retrieval', import.meta.url))
const model = await loadModel(dir)
try {
  const sequence = model.createSequence({ policy: 'zipcache', seed: 0 })
  await sequence.prefill(recordText)
  console.log(`read ${sequence.length} tokens into ${sequence.bytes.resident} bytes`)

  for (const { key, number } of [records[7], records[30], records[55]]) {
    let answer = ''
    // Prefills the question after everything that was said, then decodes.
    for await (const token of sequence.generate(questionText(key), { maxTokens: 15 })) {
      answer += token.text
    }
    console.log(`${answer.trim()}   (it is ${number})`)
  }
  console.log(
    `${sequence.length} tokens, ${sequence.bytes.ratio.toFixed(2)}x smaller than in 16 bits`,
  )
} finally {
  await model.dispose()
}
