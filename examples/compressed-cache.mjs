// Answers a question over a thousand tokens from a KV cache compressed as in ZipCache, and says what
// the cache takes.
//   node examples/compressed-cache.mjs
import { fileURLToPath } from 'node:url'
import { loadModel } from 'zipcache'
import { questionText, records, recordText } from './line-records.mjs'

const dir = fileURLToPath(new URL('../models/line-retrieval', import.meta.url))
const model = await loadModel(dir, { device: 'cpu', dtype: 'f32' })
try {
  // 60% of the tokens, those that attention finds salient, at 4 bits, the others at 2.
  const policy = { name: 'zipcache', saliencyRatio: 0.6, highBits: 4, lowBits: 2, window: 100 }
  const sequence = model.createSequence({ policy })

  const { key, number } = records[41]
  await sequence.prefill(recordText + questionText(key))
  for await (const token of sequence.generate(null, { maxTokens: 13 })) {
    process.stdout.write(token.text)
  }
  console.log(`\nthe number there is ${number}`)

  const { resident, fp16, ratio } = sequence.bytes
  console.log(
    `${sequence.length} tokens in ${resident} bytes; 16 bits take ${fp16} (${ratio.toFixed(2)}x)`,
  )
} finally {
  await model.dispose() // and of its sequences
}
