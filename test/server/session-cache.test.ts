/** What a conversation's cache holds, token by token, over HTTP. */
import { generateLineRetrieval } from '../../lib/index'
import { post, startServer, stream, until, useServer } from './running'

const question = generateLineRetrieval({ lines: 10, seed: 5 })
const body = { prompt: question.text, max_tokens: 14, temperature: 0 }
const running = useServer()
const textUrl = () => `${running().url}/v1/completions`

// biome-ignore lint/suspicious/noExplicitAny: tests look at what is really there
async function cacheOf(id: string, headers: Record<string, string> = {}): Promise<any> {
  const url = `${running().url}/v1/sessions/${encodeURIComponent(id)}/cache`
  const response = await fetch(url, { headers })
  return { status: response.status, body: await response.json() }
}

test('a conversation that is deleted is gone, and its memory free; a busy one is not', async () => {
  const remove = (id: string) =>
    fetch(`${running().url}/v1/sessions/${id}`, { method: 'DELETE' }).then(async (response) => [
      response.status,
      await response.json(),
    ])
  expect(await remove('gone')).toMatchObject([404, { error: { code: 'session_not_found' } }])
  const used = () => running().server.engine?.kvMemory.used
  const before = used()
  await post(textUrl(), body, { 'x-session-id': 'gone' })
  expect(used()).toBeGreaterThan(before as number)
  expect(await remove('gone')).toEqual([200, { id: 'gone', object: 'session', deleted: true }])
  expect(used()).toBe(before)
  expect((await cacheOf('gone')).status).toBe(404)
  const again = await post(textUrl(), body, { 'x-session-id': 'gone' })
  expect(again.body.usage.prompt_tokens_details.cached_tokens).toBe(0)

  const long = post(
    textUrl(),
    { ...body, max_tokens: 400, ignore_eos: true },
    { 'x-session-id': 'b' },
  )
  await until(async () => (await cacheOf('b')).status === 200)
  expect(await remove('b')).toMatchObject([409, { error: { code: 'session_busy' } }])
  expect((await long).status).toBe(200)
})

test('tokens, bits, shares and scores of a conversation', async () => {
  const { body: answer } = await post(textUrl(), body, { 'x-session-id': 'a/b ü' })
  const { status, body: cache } = await cacheOf('a/b ü')
  expect(status).toBe(200)
  expect(cache).toMatchObject({ object: 'session.cache', policy: 'zipcache', heads: 6 })
  const { kv_cache, prompt_tokens } = answer.usage
  expect(cache.bytes).toBe(kv_cache.bytes)
  expect(cache.bytes_by_class).toEqual(kv_cache.bytes_by_class)
  const bytes: number[] = Object.values(cache.bytes_by_class)
  expect(bytes.reduce((sum, own) => sum + own, 0)).toBe(cache.bytes)
  expect(cache.tail_start).toBe(prompt_tokens)
  const text = cache.tokens.map(({ text }: { text: string }) => text).join('')
  // The last token has not been through the model.
  expect(`${question.text}${answer.choices[0].text}`.startsWith(text)).toBe(true)
  const prompt = cache.tokens.slice(0, prompt_tokens)
  const tail = cache.tokens.slice(prompt_tokens)
  expect(tail).toHaveLength(13)
  for (const { bits, salient, score } of prompt) {
    expect(bits).toBeCloseTo(2 + 2 * salient, 1)
    expect(score).toBeGreaterThanOrEqual(0)
  }
  expect(tail[0]).toMatchObject({ bits: 16, salient: null, score: null })
})

test('no session, one of another key, no name', async () => {
  expect(await cacheOf('nobody')).toMatchObject({
    status: 404,
    body: { error: { code: 'session_not_found' } },
  })
  expect((await cacheOf('x'.repeat(257))).status).toBe(400)
  const strict = await startServer({ apiKeys: ['one', 'two'] })
  try {
    const bearer = (key: string) => ({ authorization: `Bearer ${key}` })
    const url = `${strict.url}/v1/completions`
    await post(url, body, { 'x-session-id': 's', ...bearer('one') })
    const statusFor = async (headers: Record<string, string>) =>
      (await fetch(`${strict.url}/v1/sessions/s/cache`, { headers })).status
    expect(await statusFor(bearer('one'))).toBe(200)
    expect(await statusFor(bearer('two'))).toBe(404)
    expect(await statusFor({})).toBe(401)
  } finally {
    await strict.close()
  }
})

test('a stream tells its usage in every chunk, and its cache can be seen meanwhile', async () => {
  const long = { ...body, max_tokens: 130, ignore_eos: true }
  const options = { include_usage: true, continuous_usage_stats: true }
  const asked = stream(textUrl(), { ...long, stream_options: options }, { 'x-session-id': 'long' })
  let seen = await cacheOf('long')
  await until(async () => {
    seen = await cacheOf('long')
    return seen.status === 200 && seen.body.tokens.length > seen.body.tail_start
  })
  expect(seen.body.tokens.at(-1).bits).toBe(16)
  const events = (await asked).slice(0, -1)
  const usages = events.map(({ usage }) => usage)
  const counts = usages.map(({ completion_tokens }) => completion_tokens)
  expect(counts).toEqual([...counts].sort((a, b) => a - b))
  expect(counts.at(-1)).toBe(130)
  const tails: number[] = usages.map(({ kv_cache }) => kv_cache.bytes_by_class.tail)
  // A window was compressed on the way.
  expect(tails.some((tail, i) => tail < (tails[i - 1] ?? 0))).toBe(true)
  expect(usages.every(({ kv_cache }) => kv_cache.bytes > 0 && kv_cache.ratio > 1)).toBe(true)
  const wrong = await post(textUrl(), {
    ...{ ...body, stream: true },
    stream_options: { continuous_usage_stats: true },
  })
  expect(wrong.body.error.param).toBe('stream_options.continuous_usage_stats')
})
