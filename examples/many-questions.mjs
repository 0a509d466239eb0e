// Many questions about one text, at the same time: the text is read once, compressed and shared;
// every question's answer is a row of one batch. Then the text's cache goes to a file and back.
//   node examples/many-questions.mjs
import { mkdtemp, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { createEngine, loadModel } from 'zipcache'
import { questionText, records, recordText } from './line-records.mjs'

const dir = fileURLToPath(new URL('../models/line-retrieval', import.meta.url))
const model = await loadModel(dir)
const engine = createEngine({ model, kvMemory: 64 * 2 ** 20 })
const folder = await mkdtemp(join(tmpdir(), 'zipcache-example-'))

async function answerOf(sequence, key) {
  let answer = ''
  for await (const token of sequence.generate(questionText(key), { maxTokens: 13 })) {
    answer += token.text
  }
  return answer
}

try {
  const text = engine.createSequence({ policy: 'zipcache' })
  await text.prefill(recordText)

  const asked = records.filter((_, i) => i % 8 === 3)
  const forks = asked.map(() => text.fork()) // pages are shared until one of them writes
  const answers = await Promise.all(asked.map(({ key }, i) => answerOf(forks[i], key)))
  for (const [i, { key, number }] of asked.entries()) {
    console.log(`${key}: ${answers[i].trim()} (it is ${number})`)
  }
  const { steps, generatedTokens, kvMemory } = engine.stats()
  console.log(`${generatedTokens} tokens in ${steps} steps, ${kvMemory.used} bytes of caches`)

  const file = join(folder, 'text.zipcache')
  await text.save(file)
  const restored = await engine.restore(file)
  const { key, number } = records[41]
  const answer = await answerOf(restored, key)
  console.log(`from a file of ${(await stat(file)).size} bytes: ${answer.trim()} (it is ${number})`)
} finally {
  await model.dispose() // and of its engines
  await rm(folder, { recursive: true })
}
