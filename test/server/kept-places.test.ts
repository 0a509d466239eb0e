/** A conversation of a real model whose answers come back otherwise than they were said. */
import { generateLineRetrieval, loadModel, type Model } from '../../lib/index.js'
import { createService } from '../../lib/server/index.js'
import { kLineRetrieval } from './running.js'

let model: Model
beforeAll(async () => {
  model = await loadModel(kLineRetrieval, { threads: 1, kvMemory: 2 ** 24 })
})
afterAll(() => model.dispose())

/** The model's own format, by a template that says that it knows thoughts; answers begin with two tokens. */
const begun = ' answer :'
const chatTemplate = `{# </think> #}{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{
  '\\n' }}{% elif add_generation_prompt or not loop.last %}{{ '${begun} ' }}{% endif %}{% endfor %}`
const asked = (text: string) => ({ role: 'user', content: text.slice(0, -begun.length) })

const first = generateLineRetrieval({ lines: 20, seed: 1 })
const second = generateLineRetrieval({ lines: 20, seed: 1, targetLine: 3 })
const numberOf = ({ number }: { number: string }) => number.split('').join(' ')

test.each(['zipcache', 'kivi2', 'fp16'])('%s: the next question is answered', async (policy) => {
  const service = createService(model, { kvMemory: 2 ** 26, chatTemplate })
  const ask = async (messages: object[], id: string) => {
    const request = { messages, max_tokens: 14, temperature: 0, kv_cache: policy }
    const call = { signal: new AbortController().signal, session: { id, owner: '' }, owner: '' }
    const answer = await service.chat(request, call)
    if (answer.kind !== 'whole') throw new Error('not a whole answer')
    const { choices, usage } = answer.body as {
      choices: [{ message: { content: string } }]
      usage: { prompt_tokens: number; prompt_tokens_details: { cached_tokens: number } }
    }
    const cached = usage.prompt_tokens_details.cached_tokens
    return { said: choices[0].message.content, length: usage.prompt_tokens, cached }
  }
  try {
    const messages = [asked(first.text)]
    const answer = await ask(messages, 'a')
    expect(answer).toMatchObject({ said: expect.stringContaining(numberOf(first)), cached: 0 })
    // The same again, by the cache as it was when the prompt ended: the same to the token.
    expect(await ask(messages, 'a')).toEqual({ ...answer, cached: answer.length - 2 })
    const next = [
      ...messages,
      { role: 'assistant', content: answer.said.replace(/^.*: /, '') },
      asked(second.questionText),
    ]
    const other = await ask(next, 'a')
    expect(other).toMatchObject({ said: expect.stringContaining(numberOf(second)) })
    expect(other.cached).toBe(answer.length - 2)
    expect(await ask(next, 'a')).toEqual({ ...other, cached: other.length - 2 })
    expect((await ask(next, 'b')).said).toBe(other.said)
  } finally {
    await service.dispose()
  }
})
