/** The TypeScript of README.md and docs/library.md: `test/readme.test.ts` holds it to that. */
import { createEngine, generateLineRetrieval, loadModel } from '../../lib/index.js'

export async function fromAProgram(ids: number[], nextTurn: string): Promise<void> {
  const model = await loadModel('models/line-retrieval', { device: 'cpu', dtype: 'f32' })
  const prompt = generateLineRetrieval({ lines: 100, seed: 1 }).text // or any text, or token ids

  for await (const token of model.generate(prompt, {
    maxTokens: 64,
    temperature: 0,
    policy: { name: 'zipcache', saliencyRatio: 0.6, window: 100 },
  })) {
    process.stdout.write(token.text)
  }

  await model.dispose()

  const sequence = model.createSequence({ policy: 'zipcache' })
  await sequence.prefill(ids)
  console.log(sequence.bytes) // { resident, peak, fp16, ratio, paperRatio, byClass }
  console.log(await sequence.tokenMap()) // of each token: its bits, in which share of heads it is salient
  for await (const token of sequence.generate(null, { maxTokens: 64 }))
    process.stdout.write(token.text)
  for await (const token of sequence.generate(nextTurn)) process.stdout.write(token.text)
  sequence.dispose()
}

export async function chat(model: Awaited<ReturnType<typeof loadModel>>): Promise<void> {
  const { tokenizer } = model
  if (!tokenizer) throw new Error('the folder has no tokenizer.json')
  const messages = [{ role: 'user', content: 'Who wrote Faust?' }]
  const text = tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true })
  const ids = tokenizer.encode(text, { addSpecialTokens: false })
  for await (const token of model.generate(ids)) process.stdout.write(token.text)
}

export async function manySequences(
  model: Awaited<ReturnType<typeof loadModel>>,
  prompts: string[],
  signal: AbortSignal,
): Promise<string[]> {
  await using engine = createEngine({ model, kvMemory: 2 ** 30 }) // bytes for all caches together
  const answers = prompts.map(async (prompt) => {
    let text = ''
    for await (const token of engine.generate(prompt, { maxTokens: 64, signal })) text += token.text
    return text
  })
  return await Promise.all(answers)
}
