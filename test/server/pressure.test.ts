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
