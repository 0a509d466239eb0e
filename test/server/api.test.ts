/** OpenAI's API as clients see it, over the shipped model. */
import { connect } from 'node:net'
import OpenAI from 'openai'
import { generateLineRetrieval } from '../../lib/index'
import { toApiError } from '../../lib/server/index'
import { PLAIN_EVENTS, serverSentEvents } from '../../lib/server/sse'
import { collect } from '../engine/running'
import { post, startServer, stream, until, useServer } from './running'
import { startScripted, tokenizerWith } from './scripted-model'

const question = generateLineRetrieval({ lines: 20, seed: 1 })
const chat = (content = question.text) => ({
  messages: [{ role: 'user', content }],
  max_tokens: 14,
  temperature: 0,
})
const answer = `${question.answerText} >`

const running = useServer()
const answerIds = async (ids: readonly number[]) =>
  (await collect(running().model.generate(ids, { maxTokens: 14 }))).ids
const chatUrl = () => `${running().url}/v1/chat/completions`
const textUrl = () => `${running().url}/v1/completions`

interface Logprobs {
  logprobs: { tokens: string[] } | null
}

describe('answers', () => {
  test('a chat completion says what the engine says, and what its cache takes', async () => {
    const { status, headers, body } = await post(chatUrl(), chat(), { 'x-request-id': 'mine-1' })
    expect(status).toBe(200)
    expect(headers.get('x-request-id')).toBe('mine-1')
    expect(body).toMatchObject({ object: 'chat.completion', model: 'zipcache' })
    const [choice] = body.choices
    expect(choice.message).toEqual({ role: 'assistant', content: answer, refusal: null })
    expect(choice.finish_reason).toBe('length')
    const { usage } = body
    expect(usage.completion_tokens).toBe(14)
    expect(usage.total_tokens).toBe(usage.prompt_tokens + 14)
    expect(usage.kv_cache.policy).toBe('zipcache')
    expect(usage.kv_cache.ratio).toBeCloseTo(usage.kv_cache.fp16_bytes / usage.kv_cache.bytes)
    expect(usage.kv_cache.ratio).toBeGreaterThan(2)
  })

  test('a stream says the same in pieces, then its usage', async () => {
    const events = await stream(chatUrl(), { ...chat(), stream_options: { include_usage: true } })
    expect(events.at(-1)).toBe('[DONE]')
    const chunks = events.slice(0, -1)
    const last = chunks.pop()
    expect(last).toMatchObject({ choices: [], usage: { completion_tokens: 14 } })
    expect(chunks.every(({ usage }) => usage === null)).toBe(true)
    expect(new Set(chunks.map(({ id }) => id)).size).toBe(1)
    expect(chunks[0].choices[0].delta).toEqual({ role: 'assistant', content: '' })
    expect(chunks.at(-1).choices[0]).toMatchObject({ delta: {}, finish_reason: 'length' })
    const text = chunks.map(({ choices: [{ delta }] }) => delta.content ?? '').join('')
    expect(text).toBe(answer)
  })

  test('a text completion takes texts, token ids, and several of them', async () => {
    const ids = running().model.tokenizer?.encode(question.text) as number[]
    const whole = async (prompt: unknown) =>
      (await post(textUrl(), { prompt, max_tokens: 14, temperature: 0 })).body.choices.map(
        ({ index, text }: { index: number; text: string }) => [index, text],
      )
    // The text goes on, space and all.
    expect(await whole(question.text)).toEqual([[0, ` ${answer}`]])
    expect(await whole(ids)).toEqual([[0, ` ${answer}`]])
    expect(await whole([ids, ids])).toEqual([
      [0, ` ${answer}`],
      [1, ` ${answer}`],
    ])
    const nothing = { prompt: '', max_tokens: 2, model: null, suffix: null }
    expect((await post(textUrl(), nothing)).body.usage).toMatchObject({ prompt_tokens: 1 })
    const echoed = await post(textUrl(), { prompt: 'line a', max_tokens: 0, echo: true })
    expect(echoed.body.choices[0]).toMatchObject({ text: 'line a', finish_reason: 'length' })
    const further = { prompt: question.text, max_tokens: 14, temperature: 0, echo: true }
    expect((await post(textUrl(), further)).body.choices[0].text).toBe(
      running().model.tokenizer?.decode([...ids, ...(await answerIds(ids))]),
    )
  })

  test('several choices share a prompt, and a seed gives them again', async () => {
    const body = { ...chat('<s> below is a record'), n: 4, temperature: 1.5, seed: 7 }
    const [first, again, other] = await Promise.all([
      post(chatUrl(), body),
      post(chatUrl(), body),
      post(chatUrl(), { ...body, seed: 8 }),
    ])
    const texts = ({ body }: typeof first) =>
      body.choices.map(({ message }: { message: { content: string } }) => message.content)
    expect(new Set(texts(first)).size).toBe(4)
    expect(texts(again)).toEqual(texts(first))
    expect(texts(other)).not.toEqual(texts(first))
    const alone = await collect(
      running().model.generate(`${body.messages[0].content} `, {
        maxTokens: 14,
        temperature: 1.5,
        seed: 9,
      }),
    )
    expect(texts(first)[2]).toBe(alone.text) // choice c draws with seed + c
    // Doubles are further apart than 1 here.
    const large = await post(chatUrl(), { ...body, seed: 2 ** 62 })
    expect(new Set(texts(large)).size).toBe(4)
  })

  test('what is drafted changes no answer, and saves steps where it is right', async () => {
    const counted = async () => {
      const metrics = await (await fetch(`${running().url}/metrics`)).text()
      const value = (name: string) =>
        Number(new RegExp(`^zipcache_${name} (\\d+)$`, 'm').exec(metrics)![1])
      return ['draft_tokens_total', 'accepted_tokens_total', 'decode_steps_total'].map(value)
    }
    /** What an answer says, and how much was drafted, was right and was run for it. */
    const said = async (more: object) => {
      const before = await counted()
      const { body } = await post(chatUrl(), { ...chat(), ...more })
      const after = await counted()
      return [
        body.choices.map(({ message }: { message: object }) => message),
        ...after.map((n, i) => n - before[i]),
      ]
    }
    const detailsOf = async (more: object) =>
      (await post(chatUrl(), { ...chat(), ...more })).body.usage.completion_tokens_details
    const [plain, ...none] = await said({})
    expect(none).toEqual([0, 0, 13])
    // Three, then seven; the last but one has none behind it.
    const prediction = { type: 'content', content: answer }
    expect(await said({ prediction })).toEqual([plain, 10, 10, 3])
    const parts = [
      { type: 'text', text: answer.slice(0, 9) },
      { type: 'text', text: answer.slice(9) },
    ]
    expect(await said({ prediction: { type: 'content', content: parts } })).toEqual([
      plain,
      10,
      10,
      3,
    ])
    expect(await detailsOf({})).toEqual({ reasoning_tokens: 0 })
    expect(await detailsOf({ prediction, n: 2 })).toEqual({
      reasoning_tokens: 0,
      accepted_prediction_tokens: 20,
      rejected_prediction_tokens: 2 * (14 - 10),
    })
    const wrong = { type: 'content', content: answer.replace(/\d/g, 'a') }
    const [same, drafted, right, steps] = await said({ prediction: wrong })
    expect(same).toEqual(plain)
    expect(drafted).toBeGreaterThan(right as number)
    expect(steps).toBe(13 - (right as number))
    expect(await said({ prediction, prompt_lookup: 0 })).toEqual([plain, 0, 0, 13])
    expect(await said({ prediction: { type: 'content', content: '' } })).toEqual([plain, 0, 0, 13])
    const looked = await said({ prompt_lookup: 4 })
    expect(looked[0]).toEqual(plain)
    expect(looked[3]).toBe(13 - (looked[2] as number))
  })

  test.each([
    [{ prompt_lookup: 16 }, 'prompt_lookup'],
    [{ prompt_lookup: 'yes' }, 'prompt_lookup'],
    [{ prediction: 'text' }, 'prediction'],
    [{ prediction: { content: 'text' } }, 'prediction.type'],
    [{ prediction: { type: 'other', content: 'text' } }, 'prediction.type'],
    [{ prediction: { type: 'content' } }, 'prediction.content'],
    [{ prediction: { type: 'content', content: [{ type: 'image' }] } }, 'prediction.content'],
    [{ prediction: { type: 'content', content: 'x', more: 1 } }, 'prediction.more'],
  ])('%j is refused', async (more, param) => {
    const { status, body } = await post(chatUrl(), { ...chat(), ...more })
    expect([status, body.error.param]).toEqual([400, param])
  })

  test('a prediction that is longer than a prompt may be is refused', async () => {
    const prediction = { type: 'content', content: 'line '.repeat(20_000) }
    const { status, body } = await post(chatUrl(), { ...chat(), prediction })
    expect([status, body.error.param]).toEqual([400, 'prediction'])
  })

  test('stop texts, stop tokens, log-probabilities', async () => {
    const stopped = await post(chatUrl(), { ...chat(), stop: [' REGISTER_CONTENT', 'never'] })
    expect(stopped.body.choices[0]).toMatchObject({
      finish_reason: 'stop',
      message: { content: answer.slice(0, answer.indexOf(' REGISTER')) },
    })
    const { body } = await post(chatUrl(), { ...chat(), logprobs: true })
    const { content } = body.choices[0].logprobs
    expect(content).toHaveLength(14)
    expect(content[0]).toMatchObject({ token: 'line', bytes: [...Buffer.from('line')] })
    expect(content[0].logprob).toBeLessThanOrEqual(0)
  })

  test('a stop token is not counted, whatever was held back when it came', async () => {
    const greater = running().model.tokenizer?.tokenId('>')
    const body = { prompt: question.text, temperature: 0, logprobs: 0, max_tokens: 14 }
    const stops = { stop_token_ids: [greater], stop: [`${question.number.at(-1)} !`] }
    for (const more of [{}, { stream: true }]) {
      const asked = { ...body, ...stops, ...more }
      const objects = 'stream' in more ? await stream(textUrl(), asked) : []
      const choices =
        objects.length > 0
          ? objects.slice(0, -1).map(({ choices }) => choices[0])
          : (await post(textUrl(), asked)).body.choices
      expect(choices.map(({ text }: { text: string }) => text).join('')).toBe(
        ` ${question.answerText}`,
      )
      const tokens = choices.flatMap(({ logprobs }: Logprobs) => logprobs?.tokens ?? [])
      expect(tokens).toHaveLength(13)
      expect(tokens).not.toContain('>')
    }
    const { usage } = (await post(textUrl(), { ...body, ...stops })).body
    expect(usage.completion_tokens).toBe(13)
  })

  test('the policy is the request’s choice', async () => {
    const { body } = await post(chatUrl(), { ...chat(), kv_cache: 'fp16' })
    expect(body.usage.kv_cache).toMatchObject({ policy: 'fp16' })
    expect(body.usage.kv_cache.ratio).toBeLessThan(1.01)
  })

  test('the openai client', async () => {
    const client = new OpenAI({ baseURL: `${running().url}/v1`, apiKey: 'none' })
    expect((await client.models.list()).data.map(({ id }) => id)).toEqual(['zipcache'])
    const asked = { model: 'zipcache', ...chat() } as const
    const messages = [{ role: 'user' as const, content: question.text }]
    const whole = await client.chat.completions.create({ ...asked, messages })
    expect(whole.choices[0]?.message.content).toBe(answer)
    let text = ''
    for await (const chunk of await client.chat.completions.create({
      ...asked,
      messages,
      stream: true,
    })) {
      text += chunk.choices[0]?.delta.content ?? ''
    }
    expect(text).toBe(answer)
    const wrong = client.chat.completions.create({ ...asked, messages, model: 'gpt-4' })
    await expect(wrong).rejects.toMatchObject({ status: 404, code: 'model_not_found' })
  })
})

test('a model by several names, one with a slash', async () => {
  const named = await startServer({ modelNames: ['org/model', 'alias'] })
  try {
    const model = async (name: string) =>
      ((await (await fetch(`${named.url}/v1/models/${name}`)).json()) as { id: string }).id
    expect(await model('org/model')).toBe('org/model')
    expect(await model('org%2Fmodel')).toBe('org/model')
    expect(await model('alias')).toBe('alias')
    const url = `${named.url}/v1/completions`
    const answeredBy = async (body: object) =>
      (await post(url, { prompt: 'line', max_tokens: 1, ...body })).body.model
    expect(await answeredBy({ model: 'alias' })).toBe('alias')
    expect(await answeredBy({})).toBe('org/model')
  } finally {
    await named.close()
  }
})

/** Requests for texts whose client went before it had its answer. */
async function countGone(url: string): Promise<number> {
  const metrics = await (await fetch(`${url}/metrics`)).text()
  const [, n = 0] =
    /http_requests_total\{route="\/v1\/completions",status="499"\} (\d+)/.exec(metrics) ?? []
  return Number(n)
}

describe('requests that make no sense are told why', () => {
  const bad: [string, object | string, number, string | null][] = [
    ['no JSON', '{', 400, null],
    ['no object', '[]', 400, null],
    ['empty', '', 400, null],
    ['deep', `${'['.repeat(100)}${']'.repeat(100)}`, 400, null],
    ['no messages', {}, 400, 'messages'],
    ['empty messages', { messages: [] }, 400, 'messages'],
    ['a message that is none', { messages: [1] }, 400, 'messages[0]'],
    ['no role', { messages: [{ content: 'a' }] }, 400, 'messages[0].role'],
    [
      'an image',
      { messages: [{ role: 'user', content: [{ type: 'image_url' }] }] },
      400,
      'messages[0].content',
    ],
    ['a message without a content', { messages: [{ role: 'user' }] }, 400, 'messages[0].content'],
    ['what the template refuses', { messages: [{ role: 'assistant' }] }, 400, 'messages'],
    ['a bias beyond the vocabulary', { ...chat(), logit_bias: { 5000: 1 } }, 400, 'logit_bias'],
    ['a stop token beyond it', { ...chat(), stop_token_ids: [5000] }, 400, 'stop_token_ids'],
    ['a stop token below 0', { ...chat(), stop_token_ids: [-1] }, 400, 'stop_token_ids'],
    [
      'JSON of a vocabulary of words',
      { ...chat(), response_format: { type: 'json_object' } },
      400,
      'response_format',
    ],
    ['a temperature', { ...chat(), temperature: 3 }, 400, 'temperature'],
    ['a type', { ...chat(), top_p: '1' }, 400, 'top_p'],
    ['a seed', { ...chat(), seed: 1.5 }, 400, 'seed'],
    ['a seed of more than 64 bits', { ...chat(), seed: 1e20 }, 400, 'seed'],
    ['an unknown field', { ...chat(), temprature: 1, functions: null }, 400, 'temprature'],
    ['too many choices', { ...chat(), n: 17 }, 400, 'n'],
    ['an empty stop', { ...chat(), stop: '' }, 400, 'stop'],
    ['another model', { ...chat(), model: 'x' }, 404, 'model'],
    ['an unknown policy', { ...chat(), kv_cache: 'zip' }, 400, 'kv_cache'],
    [
      'a policy with options',
      { ...chat(), kv_cache: { policy: 'zipcache', window: 5 } },
      403,
      'kv_cache',
    ],
    ['stream options without a stream', { ...chat(), stream_options: {} }, 400, 'stream_options'],
    [
      'a long prompt',
      { messages: [{ role: 'user', content: 'a '.repeat(9000) }] },
      400,
      'messages',
    ],
  ]
  test.each(bad)('%s', async (_, body, status, param) => {
    const response = await post(chatUrl(), body)
    expect(response.body).toEqual({
      error: expect.objectContaining({ type: 'invalid_request_error', param }),
    })
    expect(response.status).toBe(status)
    if (param !== null) expect(response.body.error.message).toMatch(`${param}: `)
  })

  test('bytes that are no UTF-8, other types, other paths, other methods, too much', async () => {
    const { url } = running()
    const send = async (path: string, init: RequestInit) => {
      const response = await fetch(url + path, init)
      const { error } = (await response.json()) as { error: { message: string } }
      return [response.status, error.message]
    }
    const headers = { 'content-type': 'application/json' }
    const body = Uint8Array.of(0x22, 0xff, 0x22)
    const posted = (body: string | Uint8Array, type: Record<string, string> = headers) =>
      send('/v1/completions', { method: 'POST', headers: type, body })
    expect(await posted(body)).toEqual([400, 'the body is no UTF-8'])
    // What curl sends without -H.
    const form = { 'content-type': 'application/x-www-form-urlencoded' }
    expect(await posted('a', form)).toEqual([
      415,
      'content-type: is "application/x-www-form-urlencoded", expected application/json',
    ])
    expect(await send('/v1/embeddings', { method: 'POST', headers, body: '{}' })).toEqual([
      404,
      'there is no "/v1/embeddings"; this server has /v1/responses, /v1/chat/completions, /v1/completions, /v1/models',
    ])
    expect(await send('/v1/models/other', {})).toEqual([
      404,
      'model: there is no "other", only zipcache',
    ])
    expect(await send('/v1/completions', {})).toEqual([
      405,
      'GET is no method of this path, POST is',
    ])
    expect((await send('/metrics', { method: 'DELETE' }))[0]).toBe(405)
    const large = ' '.repeat(2 ** 21 + 1)
    expect(await posted(large)).toEqual([413, 'the body has more than 2097152 bytes'])
  })
})

describe('sessions', () => {
  const turn = (messages: object[], id: string, more: object = {}) =>
    post(chatUrl(), { messages, max_tokens: 14, temperature: 0, ...more }, { 'x-session-id': id })

  test('a conversation goes on over its compressed cache, as Sequence.generate does', async () => {
    const second = generateLineRetrieval({ lines: 20, seed: 1, targetLine: 3 })
    const messages = [{ role: 'user', content: question.text }]
    const first = await turn(messages, 'talk')
    const said = first.body.choices[0].message.content
    const nextMessages = [
      ...messages,
      { role: 'assistant', content: said },
      { role: 'user', content: second.questionText },
    ]
    const next = await turn(nextMessages, 'talk')
    expect(next.body.choices[0].message.content).toContain(second.number.split('').join(' '))
    const { cached_tokens } = next.body.usage.prompt_tokens_details
    expect(cached_tokens).toBe(first.body.usage.total_tokens)

    const sequence = running().model.createSequence({ policy: 'zipcache' })
    const ask = async (prompt: string) =>
      (await collect(sequence.generate(prompt, { maxTokens: 14 }))).text
    expect(await ask(`${question.text} `)).toBe(said)
    expect(await ask(`\n${second.questionText} `)).toBe(next.body.choices[0].message.content)
    sequence.dispose()
  })

  test('another prompt, policy or name begins anew', async () => {
    await turn([{ role: 'user', content: question.text }], 'other')
    const cached = async (content: string, id: string, more: object = {}) => {
      const { body } = await turn([{ role: 'user', content }], id, more)
      return body.usage.prompt_tokens_details.cached_tokens
    }
    expect(await cached('line a', 'other')).toBe(0)
    expect(await cached('line a - b', 'another')).toBe(0)
    expect(await cached(`line a ${question.text}`, 'other', { kv_cache: 'fp16' })).toBe(0)
  })

  test('one is ended, also by clients that name the type of no body', async () => {
    await turn([{ role: 'user', content: question.text }], 'ended')
    const end = async () => {
      const headers = { 'content-type': 'application/json' }
      return fetch(`${running().url}/v1/sessions/ended`, { method: 'DELETE', headers })
    }
    expect(await (await end()).json()).toMatchObject({ id: 'ended', deleted: true })
    expect((await end()).status).toBe(404)
  })

  test('one request at a time', async () => {
    const messages = [{ role: 'user', content: question.text }]
    const both = await Promise.all([turn(messages, 'busy'), turn(messages, 'busy')])
    expect(both.map(({ status }) => status).sort()).toEqual([200, 409])
    expect((await turn(messages, 'busy', { n: 2 })).body.error.param).toBe('n')
  })
})

describe('limits', () => {
  test('whoever leaves is not computed for, and is counted', async () => {
    const { engine } = running().server
    const nGone = () => countGone(running().url)
    const before = await nGone()
    const controller = new AbortController()
    const left = fetch(textUrl(), {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ prompt: 'line', max_tokens: 8000, ignore_eos: true }),
      signal: controller.signal,
    })
    await until(() => engine?.stats().decoding === 1)
    controller.abort()
    await expect(left).rejects.toThrow()
    await until(() => engine?.stats().decoding === 0)
    expect(await nGone()).toBe(before + 1)
  })

  test('whoever stops reading is given up in time', async () => {
    const scripted = await startScripted(await tokenizerWith('{{ messages }}'), {
      requestTimeoutMs: 200,
    })
    scripted.script.next = { say: 'x'.repeat(100_000) } // more than sockets hold
    const { port } = new URL(scripted.url)
    const socket = connect(Number(port), '127.0.0.1').on('error', () => {})
    const body = JSON.stringify({ prompt: 'a', max_tokens: 4000, stream: true, logprobs: 0 })
    socket
      .pause()
      .write(
        `POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n` +
          `content-length: ${body.length}\r\n\r\n${body}`,
      )
    try {
      await until(() => scripted.open.size === 1)
      await until(() => scripted.open.size === 0)
    } finally {
      socket.destroy()
      await scripted.server.close()
    }
  })

  test('whoever leaves before the first token lets go of what was prepared', async () => {
    const small = await startServer({ maxBatch: 1, pingMs: 50 })
    const controller = new AbortController()
    try {
      const long = { prompt: 'line', max_tokens: 8000, ignore_eos: true, stream: true }
      const url = `${small.url}/v1/completions`
      const first = stream(url, long, {}, controller.signal).catch(() => {})
      const { engine } = small.server
      await until(() => engine?.stats().decoding === 1)
      const waiting = new AbortController()
      const second = stream(url, long, {}, waiting.signal).catch(() => {})
      await until(() => engine?.stats().queued === 1)
      waiting.abort()
      await until(() => engine?.stats().sequences === 1)
      expect(await countGone(small.url)).toBe(1)
      controller.abort()
      await Promise.all([first, second])
    } finally {
      await small.close()
    }
  })

  test('a stream that was late already begins with a ping', async () => {
    const never = new Promise<never>(() => {})
    const onError = toApiError
    async function* nothing() {}
    const how = { style: PLAIN_EVENTS, isLate: true, pingMs: 2 ** 30, onError }
    const events = serverSentEvents(nothing(), never, how)
    expect((await events.next()).value).toBe(': ping\n\n')
  })

  test('a full queue says when to come back', async () => {
    const small = await startServer({ maxBatch: 1, maxQueue: 0 })
    try {
      const long = { prompt: 'line', max_tokens: 500, ignore_eos: true }
      const url = `${small.url}/v1/completions`
      const first = post(url, long)
      await until(() => small.server.engine?.stats().decoding === 1)
      const second = await post(url, { ...long, stream: true })
      expect(second.status).toBe(429)
      expect(second.headers.get('retry-after')).toBe('1')
      expect(second.body.error).toMatchObject({ type: 'rate_limit_error', code: 'queue_full' })
      expect((await first).status).toBe(200)
    } finally {
      await small.close()
    }
  })

  test('keys, origins and times', async () => {
    const strict = await startServer({
      apiKeys: ['secret'],
      corsOrigins: ['https://a.example'],
      requestTimeoutMs: 100,
      pingMs: 20,
      policy: 'uniform4',
      allowedPolicies: [],
    })
    const url = `${strict.url}/v1/chat/completions`
    const right = { authorization: 'Bearer secret' }
    try {
      const none = await post(url, chat())
      expect(none.body.error.code).toBe('missing_api_key')
      expect(none.headers.get('www-authenticate')).toBe('Bearer')
      expect((await post(url, chat(), { authorization: 'Bearer secre' })).status).toBe(401)
      for (const path of ['/v1/models', '/%761/models', '/v%31/models', '/v1/none']) {
        expect((await fetch(strict.url + path)).status).toBe(401)
      }
      expect((await post(`${strict.url}/%761/completions`, '{')).status).toBe(401)
      expect((await fetch(`${strict.url}/health`)).status).toBe(200)
      expect((await post(url, { ...chat(), kv_cache: 'fp16' }, right)).status).toBe(403)

      const long = { ...chat('line'), max_tokens: 8000, ignore_eos: true }
      const late = await post(url, long, right)
      expect(late).toMatchObject({ status: 504, body: { error: { code: 'timeout' } } })
      // It would take as long again.
      const patient = new OpenAI({ baseURL: `${strict.url}/v1`, apiKey: 'secret', maxRetries: 2 })
      const nAsked = async () => {
        const metrics = await (await fetch(`${strict.url}/metrics`)).text()
        const [, n] = /route="\/v1\/chat\/completions",status="504"\} (\d+)/.exec(metrics) ?? []
        return Number(n)
      }
      const before = await nAsked()
      await expect(
        patient.post('/chat/completions', { body: long, maxRetries: 2 }),
      ).rejects.toMatchObject({ status: 504 })
      expect(await nAsked()).toBe(before + 1)
      const events = await stream(url, long, right)
      expect(events.at(-1)).toMatchObject({ error: { code: 'timeout' } })

      const asked = 'authorization,x-stainless-os'
      const preflight = async (origin: string) => {
        const headers = { origin, 'access-control-request-headers': asked }
        const response = await fetch(url, { method: 'OPTIONS', headers })
        return ['origin', 'headers'].map((what) =>
          response.headers.get(`access-control-allow-${what}`),
        )
      }
      expect(await preflight('https://a.example')).toEqual(['https://a.example', asked])
      expect(await preflight('https://b.example')).toEqual([null, null])
    } finally {
      await strict.close()
    }
  })
})
