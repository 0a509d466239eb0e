/** Chats that name a `prompt_cache_key` share the cache of their tools and system messages. */
import { generateLineRetrieval, loadModel, type Model } from '../../lib/index.js'
import { createService, type OpenAiService, type ServiceOptions } from '../../lib/server/index.js'
import { kLineRetrieval } from './running.js'

let model: Model
beforeAll(async () => {
  model = await loadModel(kLineRetrieval, { threads: 1, kvMemory: 2 ** 24 })
})
afterAll(() => model.dispose())

const prompt = generateLineRetrieval({ lines: 20, seed: 3 }).text
// The question is the last line of the prompt: what stands before it is everybody's.
const cut = prompt.lastIndexOf('question')
const [system, question] = [prompt.slice(0, cut), prompt.slice(cut)]

interface Body {
  readonly choices: readonly { readonly message: { readonly content: string } }[]
  readonly usage: {
    readonly prompt_tokens: number
    readonly prompt_tokens_details: { readonly cached_tokens: number }
  }
}

async function withService(
  options: ServiceOptions,
  body: (ask: (fields?: object, owner?: string) => Promise<Body>) => Promise<void>,
): Promise<void> {
  const service: OpenAiService = createService(model, { kvMemory: 2 ** 26, ...options })
  const ask = async (fields: object = {}, owner = '') => {
    const messages = [
      { role: 'system', content: system },
      { role: 'user', content: question },
    ]
    const request = { messages, max_tokens: 8, temperature: 0, ...fields }
    const call = { signal: new AbortController().signal, session: null, owner }
    const answer = await service.chat(request, call)
    if (answer.kind !== 'whole') throw new Error('not a whole answer')
    return answer.body as Body
  }
  try {
    await body(ask)
  } finally {
    await service.dispose()
  }
}

const cached = ({ usage }: Body) => usage.prompt_tokens_details.cached_tokens
const text = ({ choices }: Body) => choices[0]?.message.content

test('the second chat of a key finds what the first left, and answers the same', async () => {
  await withService({ prefixMemory: 2 ** 24 }, async (ask) => {
    const first = await ask({ prompt_cache_key: 'records' })
    expect(cached(first)).toBe(0)
    const second = await ask({ prompt_cache_key: 'records' })
    expect(cached(second)).toBeGreaterThan(200)
    expect(cached(second)).toBeLessThan(second.usage.prompt_tokens)
    expect(second.usage.prompt_tokens).toBe(first.usage.prompt_tokens)
    expect(text(second)).toBe(text(first))
    // Another question about the same, and several answers to it.
    const messages = [
      { role: 'system', content: system },
      { role: 'user', content: 'is that all ?' },
    ]
    const other = await ask({ prompt_cache_key: 'records', messages, n: 2 })
    expect(cached(other)).toBe(cached(second))
    expect(other.choices).toHaveLength(2)
  })
})

test('nothing is shared with another key, owner, policy or beginning, or without a key', async () => {
  await withService({ prefixMemory: 2 ** 24 }, async (ask) => {
    await ask({ prompt_cache_key: 'records' }, 'me')
    const messages = [
      { role: 'system', content: `${system} line` },
      { role: 'user', content: question },
    ]
    const others: [object, string][] = [
      [{ prompt_cache_key: 'others' }, 'me'],
      [{ prompt_cache_key: 'records' }, 'you'],
      [{ prompt_cache_key: 'records', kv_cache: 'uniform4' }, 'me'],
      [{ prompt_cache_key: 'records', messages }, 'me'],
      [{}, 'me'],
    ]
    for (const [fields, owner] of others) expect(cached(await ask(fields, owner))).toBe(0)
    expect(cached(await ask({ prompt_cache_key: 'records' }, 'me'))).toBeGreaterThan(0)
  })
})

test('a beginning of a few tokens, or of none, is not kept', async () => {
  await withService({ prefixMemory: 2 ** 24 }, async (ask) => {
    for (const messages of [
      [{ role: 'user', content: prompt }],
      [
        { role: 'system', content: 'line' },
        { role: 'user', content: prompt },
      ],
    ]) {
      for (let i = 0; i < 2; i++) {
        expect(cached(await ask({ prompt_cache_key: 'records', messages }))).toBe(0)
      }
    }
  })
})

test('without memory for it the key changes nothing', async () => {
  await withService({}, async (ask) => {
    const plain = await ask()
    const keyed = await ask({ prompt_cache_key: 'records' })
    expect(text(keyed)).toBe(text(plain))
    expect(cached(await ask({ prompt_cache_key: 'records' }))).toBe(0)
  })
})
