/** Conversations that take more memory than there is: requests wait, and none of them fails. */
import { generateLineRetrieval, loadModel, type Model } from '../../lib/index.js'
import { createBackend } from '../../lib/server/backend.js'
import type { ServiceOptions } from '../../lib/server/index.js'
import { settingsOf } from '../../lib/server/options.js'
import { kLineRetrieval } from './running.js'

let model: Model
beforeAll(async () => {
  model = await loadModel(kLineRetrieval, { threads: 1, kvMemory: 2 ** 24 })
})
afterAll(() => model.dispose())

const KNOWN = ['kvMemory', 'chatTemplate', 'prefixMemory', 'matchSessions'] as const

interface Choice {
  readonly message: { readonly content: string }
  readonly finish_reason: string
}

interface Body {
  readonly choices: readonly Choice[]
  readonly usage: {
    readonly prompt_tokens: number
    readonly prompt_tokens_details: { readonly cached_tokens: number }
  }
}

function setUp(options: ServiceOptions) {
  const observer = { begin: () => ({ prompt() {}, token() {}, end() {}, done() {} }) }
  const backend = createBackend(model, settingsOf(options, KNOWN), observer)
  const chat = async (messages: object[], more: object, id: string | null = null) => {
    const session = id === null ? null : { id, owner: '' }
    const call = { signal: new AbortController().signal, session, owner: '' }
    const request = { messages, max_tokens: 14, temperature: 0, ...more }
    const answer = await backend.service.chat(request, call)
    if (answer.kind !== 'whole') throw new Error('not a whole answer')
    return answer.body as Body
  }
  return { ...backend, chat }
}

/** Twelve conversations of three questions each about lines of their own, all at a time. */
async function converse(kvMemory: number, kv_cache: string) {
  const { chat, service, engine, sessions } = setUp({ kvMemory })
  const one = async (seed: number) => {
    const said: string[] = []
    const messages: object[] = []
    for (const targetLine of [2, 7, 5]) {
      const { text, questionText } = generateLineRetrieval({ lines: 10, seed, targetLine })
      messages.push({ role: 'user', content: messages.length === 0 ? text : questionText })
      const { choices, usage } = await chat(messages, { kv_cache }, `${seed}`)
      const { content } = choices[0]!.message
      const isCached = usage.prompt_tokens_details.cached_tokens > 0
      said.push(`${content} ${usage.prompt_tokens} ${isCached ? 'cached' : 'anew'}`)
      messages.push({ role: 'assistant', content })
    }
    return said
  }
  try {
    const said = await Promise.all(Array.from({ length: 12 }, (_, seed) => one(seed)))
    const { decoding, queued } = engine.stats()
    expect([decoding, queued, sessions.size > 0]).toEqual([0, 0, true])
    return { said: said.flat(), evicted: sessions.counters.evicted }
  } finally {
    await service.dispose()
  }
}

/** The model's own format, by a template that says that it knows thoughts. */
const chatTemplate = `{# </think> #}{% for m in messages %}{{ m.content }}{% endfor %}{%
  if add_generation_prompt %}{{ ' ' }}answer : {% endif %}`

test('what a conversation held before its answer is given up while it is answered', async () => {
  const { chat, service, sessions, engine } = setUp({ kvMemory: 2 ** 21, chatTemplate })
  const asked = (seed: number) => {
    const { text } = generateLineRetrieval({ lines: 20, seed })
    return [{ role: 'user', content: text.slice(0, -' answer :'.length) }]
  }
  const more = { kv_cache: 'fp16', ignore_eos: true, temperature: 0 }
  try {
    const request = { messages: asked(1), ...more, max_tokens: 60, stream: true }
    const session = { id: 'first', owner: '' }
    const call = { signal: new AbortController().signal, session }
    const first = await service.chat(request, call)
    if (first.kind !== 'stream') throw new Error('not a stream')
    for (let i = 0; i < 3; i++) await first.chunks.next()
    expect([sessions.size, sessions.bytes > 0]).toEqual([0, true])
    const second = chat(asked(2), { ...more, max_tokens: 1000 }, 'second')
    while (engine.stats().queued === 0) await new Promise((resolve) => setImmediate(resolve))
    expect(sessions.bytes).toBe(0)
    let nMore = 0
    for await (const _ of first.chunks) nMore++
    expect(nMore).toBeGreaterThan(40)
    expect((await second).choices[0]?.finish_reason).toBe('length')
  } finally {
    await service.dispose()
  }
})

test.each(['fp16', 'zipcache', 'h2o'])('%s: none of 36 requests fails', async (policy) => {
  const free = await converse(2 ** 26, policy)
  const scarce = await converse(1.25 * 2 ** 20, policy)
  expect([free.evicted, scarce.evicted > 0]).toEqual([0, true])
  const anew = scarce.said.filter((said) => said.endsWith('anew'))
  expect(anew.length).toBeGreaterThan(12)
  // In 16 bits a past that is run again is the same.
  const content = (said: string) => said.replace(/ \w+$/, '')
  if (policy === 'fp16') expect(scarce.said.map(content)).toEqual(free.said.map(content))
})

describe('requests that run their prompt before the answers', () => {
  const many = [1, 2, 3, 4, 5, 6]

  test.each(['fp16', 'zipcache', 'h2o'])('%s: of several choices', async (kv_cache) => {
    const all = async (kvMemory: number) => {
      const { chat, service, engine } = setUp({ kvMemory })
      try {
        const answers = many.map((seed) => {
          const messages = [
            { role: 'user', content: generateLineRetrieval({ lines: 14, seed }).text },
          ]
          const more = { kv_cache, n: 3, max_tokens: 90, ignore_eos: true, temperature: 1, seed: 1 }
          return chat(messages, more)
        })
        const choices = (await Promise.all(answers)).flatMap((answer) => answer.choices)
        expect(choices.every((one) => one.finish_reason === 'length')).toBe(true)
        expect(engine.stats()).toMatchObject({ sequences: 0, kvMemory: { used: 0 } })
        return choices.map(({ message }) => message.content)
      } finally {
        await service.dispose()
      }
    }
    expect(await all(2 ** 20)).toEqual(await all(2 ** 26))
  })

  test.each(['fp16', 'zipcache', 'h2o'])('%s: with a beginning of their own', async (kv_cache) => {
    const all = async (kvMemory: number) => {
      const { chat, service, engine } = setUp({ kvMemory, prefixMemory: kvMemory / 4 })
      try {
        const answers = many.map((seed) => {
          const { text, questionText } = generateLineRetrieval({ lines: 14, seed })
          const messages = [
            { role: 'system', content: text },
            { role: 'user', content: questionText },
          ]
          const more = { kv_cache, prompt_cache_key: `${seed}`, max_tokens: 90, ignore_eos: true }
          return chat(messages, more, seed % 2 === 0 ? `${seed}` : null)
        })
        const choices = (await Promise.all(answers)).flatMap((answer) => answer.choices)
        expect(choices.every((one) => one.finish_reason === 'length')).toBe(true)
        expect(engine.stats()).toMatchObject({ decoding: 0, queued: 0 })
        return choices.map(({ message }) => message.content)
      } finally {
        await service.dispose()
      }
    }
    expect(await all(2 ** 20)).toEqual(await all(2 ** 26))
  })
})
