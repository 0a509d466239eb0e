/** A conversation of a real model whose answers come back otherwise than they were said. */
import { generateLineRetrieval, loadModel, type Model } from '../../lib/index.js'
import { createService, type OpenAiService } from '../../lib/server/index.js'
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

interface Body {
  readonly choices: readonly [{ readonly message: { readonly content: string } }]
  readonly usage: {
    readonly prompt_tokens: number
    readonly completion_tokens: number
    readonly prompt_tokens_details: { readonly cached_tokens: number }
  }
}

/** What an answer says, of how many tokens of a prompt how many were there already. */
async function ask(service: OpenAiService, messages: object[], more: object, owner = '', id = '') {
  const request = { messages, max_tokens: 14, temperature: 0, ...more }
  const session = id === '' ? null : { id, owner }
  const call = { signal: new AbortController().signal, session, owner }
  const answer = await service.chat(request, call)
  if (answer.kind !== 'whole') throw new Error('not a whole answer')
  const { choices, usage } = answer.body as Body
  const cached = usage.prompt_tokens_details.cached_tokens
  const { prompt_tokens: length, completion_tokens: nSaid } = usage
  return { said: choices[0].message.content, length, nSaid, cached }
}

test.each(['zipcache', 'kivi2', 'fp16'])('%s: the next question is answered', async (policy) => {
  const service = createService(model, { kvMemory: 2 ** 26, chatTemplate })
  const say = (messages: object[], id: string) =>
    ask(service, messages, { kv_cache: policy }, '', id)
  try {
    const messages = [asked(first.text)]
    const answer = await say(messages, 'a')
    expect(answer).toMatchObject({ said: expect.stringContaining(numberOf(first)), cached: 0 })
    // The same again, by the cache as it was when the prompt ended: the same to the token.
    expect(await say(messages, 'a')).toEqual({ ...answer, cached: answer.length - 2 })
    const next = [
      ...messages,
      { role: 'assistant', content: answer.said.replace(/^.*: /, '') },
      asked(second.questionText),
    ]
    const other = await say(next, 'a')
    expect(other).toMatchObject({ said: expect.stringContaining(numberOf(second)) })
    expect(other.cached).toBe(answer.length - 2)
    expect(await say(next, 'a')).toEqual({ ...other, cached: other.length - 2 })
    expect((await say(next, 'b')).said).toBe(other.said)
  } finally {
    await service.dispose()
  }
})

test('chats that name no session go on with each other, if asked for', async () => {
  const messages = [{ role: 'user', content: first.text }]
  for (const matchSessions of [true, false]) {
    const service = createService(model, { kvMemory: 2 ** 26, matchSessions })
    const say = (said: object[], more: object = {}, owner = '') => ask(service, said, more, owner)
    try {
      const answer = await say(messages)
      const next = [
        ...messages,
        { role: 'assistant', content: answer.said },
        { role: 'user', content: second.questionText },
      ]
      // Of another key, in another policy, and of two choices: anew.
      expect((await say(next, {}, 'other')).cached).toBe(0)
      expect((await say(next, { kv_cache: 'fp16' })).cached).toBe(0)
      expect((await say(next, { n: 2 })).cached).toBe(0)
      const other = await say(next)
      expect(other.cached > 0).toBe(matchSessions)
      expect(other.said).toContain(numberOf(second))
    } finally {
      await service.dispose()
    }
  }
})

describe('with little memory', () => {
  const long = [1, 2, 3, 4].map((seed) => asked(generateLineRetrieval({ lines: 40, seed }).text))
  /** Tokens that each is answered with, all at a time, under names of their own. */
  const lengths = async (kvMemory: number, kv_cache: string, chatTemplate: string, all = long) => {
    const service = createService(model, { kvMemory, chatTemplate })
    try {
      const more = { kv_cache, ignore_eos: true, max_tokens: 300 }
      const answers = all.map((message, i) => ask(service, [message], more, '', `${i}`))
      return (await Promise.all(answers)).map(({ nSaid }) => nSaid)
    } finally {
      await service.dispose()
    }
  }

  test('chats whose prompts fit at a time and whose answers do not wait for each other', async () => {
    const all = await lengths(2.3 * 2 ** 20, 'fp16', chatTemplate)
    expect(all).toEqual(long.map(() => 300))
  })

  test.each([
    ['fp16', 1.25],
    ['h2o', 1],
  ])('%s: what is kept takes nothing of an answer', async (policy, mib) => {
    const without = chatTemplate.replace('</think>', '')
    for (const template of [without, chatTemplate]) {
      const [n] = await lengths(mib * 2 ** 20, policy, template, long.slice(0, 1))
      expect(n).toBe(policy === 'fp16' ? 130 : 300)
    }
  })
})

test('where no conversation is kept, none is kept before its answer either', async () => {
  const service = createService(model, { kvMemory: 2 ** 26, chatTemplate, maxSessions: 0 })
  try {
    const messages = [asked(first.text)]
    for (let i = 0; i < 2; i++) {
      const answer = await ask(service, messages, {}, '', 'a')
      expect(answer).toMatchObject({ said: expect.stringContaining(numberOf(first)), cached: 0 })
    }
  } finally {
    await service.dispose()
  }
})
