/** The Responses API as its clients see it. */
import OpenAI from 'openai'
import { makeParseableResponseTool } from 'openai/lib/ResponsesParser'
import { generateLineRetrieval } from '../../lib/index'
import { StoredResponses } from '../../lib/server/stored-responses'
import { collect } from '../engine/running'
import { post, startServer, stream, until, useServer } from './running'
import { startScripted, tokenizerWith } from './scripted-model'

const clientOf = ({ url }: { url: string }, apiKey = 'none') =>
  new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 })

/** As Hermes' and Qwen's, in short: tools, messages, calls of earlier answers. */
const template = `{%- if tools %}{{ tools | tojson }}<tool_call>|{% endif -%}
{%- for message in messages %}{{ message.role }}:{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}[{{ call.function.name }} {{ call.function.arguments | tojson }}]{% endfor %};{% endfor -%}`

const weather = {
  type: 'function' as const,
  name: 'weather',
  description: 'of a city',
  strict: true,
  parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
}
const calling = '<tool_call>\n{"name": "weather", "arguments": {"city": "Tromsø"}}\n</tool_call>'

describe('answers', () => {
  let running: Awaited<ReturnType<typeof startScripted>>
  const url = () => `${running.url}/v1/responses`
  beforeAll(async () => {
    running = await startScripted(await tokenizerWith(template))
  })
  afterAll(() => running.server.close())
  const ask = { model: 'zipcache', input: 'Is it warm?' }

  test('a text, with what was asked for said again', async () => {
    running.script.next = { say: 'No, für now.' }
    const response = await clientOf(running).responses.create({
      ...ask,
      instructions: 'Be short.',
      metadata: { a: 'b' },
      max_output_tokens: 99,
      temperature: 0.5,
      prompt_cache_key: 'k',
      truncation: 'disabled',
      background: false,
      include: [],
      reasoning: { effort: null, summary: 'auto' },
      ...({ client_metadata: { session: 'c' } } as object),
    })
    expect(running.prompts.at(-1)).toBe('system:Be short.;user:Is it warm?;')
    const nTokens = response.usage?.output_tokens as number
    expect(nTokens).toBeGreaterThan(5)
    expect(response).toMatchObject({
      object: 'response',
      status: 'completed',
      model: 'zipcache',
      error: null,
      incomplete_details: null,
      instructions: 'Be short.',
      metadata: { a: 'b' },
      max_output_tokens: 99,
      temperature: 0.5,
      top_p: 1,
      store: true,
      previous_response_id: null,
      parallel_tool_calls: true,
      tool_choice: 'auto',
      tools: [],
      text: { format: { type: 'text' } },
      truncation: 'disabled',
      output_text: 'No, für now.',
      usage: {
        input_tokens_details: { cached_tokens: 0 },
        total_tokens: (response.usage?.input_tokens as number) + nTokens,
        kv_cache: { policy: 'zipcache', bytes: 100, fp16_bytes: 400, ratio: 4 },
      },
    })
    expect(response.id).toMatch(/^resp_[0-9a-f]{32}$/)
    const { id, ...message } = response.output[0] as { id: string }
    expect(id).toMatch(/^msg_/)
    expect(message).toEqual({
      type: 'message',
      status: 'completed',
      role: 'assistant',
      content: [{ type: 'output_text', text: 'No, für now.', annotations: [], logprobs: [] }],
    })
    const { output_text: _, ...stored } = response
    const { output_text: __, ...kept } = await clientOf(running).responses.retrieve(response.id)
    expect(kept).toEqual(stored)
  })

  test('the events of a stream: text, then two calls, each item whole before the next', async () => {
    const second = '<tool_call>{"name": "time"}</tool_call>'
    running.script.next = { say: `I look.${calling}${second}` }
    const asked = { ...ask, tools: [weather] }
    const stream = await clientOf(running).responses.create({ ...asked, stream: true })
    const events: OpenAI.Responses.ResponseStreamEvent[] = []
    for await (const event of stream) events.push(event)
    expect(events.map(({ sequence_number }) => sequence_number)).toEqual([...events.keys()])
    const call = [
      'response.output_item.added',
      'response.function_call_arguments.delta',
      'response.function_call_arguments.done',
      'response.output_item.done',
    ]
    const isDelta = (type: string) => type === 'response.output_text.delta'
    const types = events.map(({ type }) => type)
    expect(types.filter((type, i) => !isDelta(type) || !isDelta(types[i - 1] as string))).toEqual([
      'response.created',
      'response.in_progress',
      'response.output_item.added',
      'response.content_part.added',
      'response.output_text.delta',
      'response.output_text.done',
      'response.content_part.done',
      'response.output_item.done',
      ...call,
      ...call,
      'response.completed',
    ])
    const last = events.at(-1) as OpenAI.Responses.ResponseCompletedEvent
    const { output } = last.response
    expect(output).toMatchObject([
      { type: 'message', content: [{ text: 'I look.' }] },
      { type: 'function_call', name: 'weather', arguments: '{"city": "Tromsø"}' },
      { type: 'function_call', name: 'time', arguments: '{}' },
    ])
    // Each event belongs to the item that it is about.
    for (const event of events) {
      if ('item_id' in event) expect(event.item_id).toBe(output[event.output_index]?.id)
      if (event.type === 'response.output_item.done') {
        expect(event.item).toEqual(output[event.output_index])
      }
    }
    const deltas = events.flatMap((event) =>
      event.type === 'response.output_text.delta' ? [event.delta] : [],
    )
    expect(deltas.join('')).toBe('I look.')
    const first = events[0] as OpenAI.Responses.ResponseCreatedEvent
    expect(first.response).toMatchObject({ status: 'in_progress', output: [], usage: null })

    // As bytes: named, and without the end that completions have.
    const response = await fetch(url(), {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ ...asked, stream: true }),
    })
    const text = await response.text()
    expect(text).toMatch(/^event: response\.created\ndata: \{"type":"response\.created",/)
    expect(text).not.toContain('[DONE]')
  })

  test('what the client makes of a stream is what is answered whole', async () => {
    running.script.next = { say: `I look.${calling}` }
    const client = clientOf(running)
    const tool = makeParseableResponseTool(weather, { parser: JSON.parse, callback: undefined })
    const streamed = await client.responses.stream({ ...ask, tools: [tool] }).finalResponse()
    const whole = await client.responses.parse({ ...ask, tools: [tool] })
    const said = ({ output }: { output: object[] }) =>
      output.map((item) => ({ ...item, id: 0, call_id: 0 }))
    expect(said(streamed)).toEqual(said(whole))
    expect(streamed.output_text).toBe('I look.')
    expect(streamed.output[1]).toMatchObject({ parsed_arguments: { city: 'Tromsø' } })
  })

  test('a call, and an answer to its result: with items, with a reference, with the response', async () => {
    const client = clientOf(running)
    const asked = { model: 'zipcache', tools: [weather] }
    const user = { role: 'user' as const, content: 'Is it warm?' }
    running.script.next = { say: `I look.${calling}` }
    const first = await client.responses.create({ ...asked, input: [user] })
    const [message, call] = first.output as [
      OpenAI.Responses.ResponseOutputMessage,
      OpenAI.Responses.ResponseFunctionToolCall,
    ]
    expect(running.prompts.at(-1)).toContain('"function": {"name": "weather"')
    expect(running.prompts.at(-1)).not.toContain('strict')

    running.script.next = { say: '' }
    const result = {
      type: 'function_call_output' as const,
      call_id: call.call_id,
      output: [{ type: 'input_text' as const, text: '-3' }],
    }
    const reference = (id: string) => ({ type: 'item_reference' as const, id })
    const reasoning = { type: 'reasoning' as const, id: 'rs_1', summary: [] }
    const ways: OpenAI.Responses.ResponseCreateParamsNonStreaming[] = [
      { input: [user, reasoning, ...first.output, result] as OpenAI.Responses.ResponseInput },
      { input: [user, reference(message.id), reference(call.id as string), result] },
      { input: [result], previous_response_id: first.id },
    ]
    const prompts: unknown[] = []
    for (const way of ways) {
      const { output } = await client.responses.create({ ...asked, ...way })
      expect(output).toMatchObject([{ type: 'message', content: [{ text: '' }] }])
      prompts.push(running.prompts.at(-1)?.split('|')[1])
    }
    const expected = 'user:Is it warm?;assistant:I look.[weather {"city": "Tromsø"}];tool:-3;'
    expect(prompts).toEqual([expected, expected, expected])
  })

  test('a conversation goes on without its old instructions; the system speaks once', async () => {
    running.script.next = { say: 'A.' }
    const client = clientOf(running)
    const first = await client.responses.create({ ...ask, instructions: 'Old.' })
    const input = [
      { role: 'developer' as const, content: 'B.' },
      { role: 'user' as const, content: [{ type: 'input_text' as const, text: 'C?' }] },
    ]
    const asked = { ...ask, instructions: 'New.' }
    await client.responses.create({ ...asked, input, previous_response_id: first.id })
    expect(running.prompts.at(-1)).toBe(
      'system:New.;user:Is it warm?;assistant:A.;system:B.;user:C?;',
    )
    await client.responses.create({ ...asked, input })
    expect(running.prompts.at(-1)).toBe('system:New.\n\nB.;user:C?;')
  })

  test('log-probabilities of the text alone', async () => {
    running.script.next = { say: `für 😀${calling}` }
    const asked = { ...ask, tools: [weather], include: ['message.output_text.logprobs' as const] }
    const stream = await clientOf(running).responses.create({ ...asked, stream: true })
    const deltas: object[] = []
    let part: OpenAI.Responses.ResponseOutputText | undefined
    for await (const event of stream) {
      if (event.type === 'response.output_text.delta') deltas.push(...event.logprobs)
      if (event.type === 'response.content_part.done') part = event.part as typeof part
    }
    const bytes = part?.logprobs?.flatMap(({ bytes }) => bytes) as number[]
    expect(Buffer.from(bytes).toString()).toBe('für 😀')
    expect(part?.logprobs).toEqual(deltas)
    expect(part?.logprobs?.[0]).toMatchObject({ token: 'f', logprob: -1, top_logprobs: [] })
  })

  test('a call that is asked for', async () => {
    running.script.next = { say: '{"city": "Oslo"}' }
    const tool_choice = { type: 'function' as const, name: 'weather' }
    const asked = { ...ask, tools: [weather], tool_choice }
    const response = await clientOf(running).responses.create(asked)
    expect(response.output).toMatchObject([
      { type: 'function_call', name: 'weather', arguments: '{"city": "Oslo"}' },
    ])
    expect(response.tool_choice).toEqual(tool_choice)
  })

  test('what was said before it is told item by item, and may be named', async () => {
    const call = { type: 'function_call', call_id: 'c1', name: 'look', arguments: '{"line":3}' }
    const input = [
      { role: 'user' as const, content: 'one' },
      { ...call, type: 'function_call' as const },
      { type: 'function_call_output' as const, call_id: 'c1', output: 'seen' },
      { role: 'user' as const, content: 'two' },
    ]
    const { model } = ask
    running.script.next = { say: 'Yes.' }
    const first = await clientOf(running).responses.create({ model, input })
    const prompt = running.prompts.at(-1)
    const items = clientOf(running).responses.inputItems
    const newestFirst = await items.list(first.id)
    const said = newestFirst.data.toReversed()
    expect(said).toMatchObject([
      { type: 'message', role: 'user', content: [{ type: 'input_text', text: 'one' }] },
      call,
      { type: 'function_call_output', call_id: 'c1', output: 'seen' },
      { type: 'message', role: 'user', content: [{ type: 'input_text', text: 'two' }] },
    ])
    const pages: unknown[] = []
    for await (const item of items.list(first.id, { order: 'asc', limit: 3 })) pages.push(item)
    expect(pages).toEqual(said)
    running.script.next = { say: 'No.' }
    const next = await clientOf(running).responses.create({
      ...{ model, input: 'three', previous_response_id: first.id },
    })
    const all = await items.list(next.id, { order: 'asc' })
    const texts = all.data.map((item) => [item.type, 'role' in item ? item.role : null])
    expect(texts).toEqual([
      ...said.map((item) => [item.type, 'role' in item ? item.role : null]),
      ...['assistant', 'user'].map((role) => ['message', role]),
    ])
    running.script.next = { say: 'Yes.' }
    await clientOf(running).responses.create({
      model,
      input: said.map(({ id }) => ({ type: 'item_reference' as const, id: id! })),
    })
    expect(running.prompts.at(-1)).toBe(prompt)
    const at = async (query: string, id = first.id) => {
      const answer = await fetch(`${running.url}/v1/responses/${id}/input_items${query}`)
      const { error } = (await answer.json()) as { error?: { param: string } }
      return [answer.status, error?.param]
    }
    expect(await at('?limit=101')).toEqual([400, 'limit'])
    expect(await at('?limit=a')).toEqual([400, 'limit'])
    expect(await at('?order=up')).toEqual([400, 'order'])
    expect(await at('?after=msg_1')).toEqual([400, 'after'])
    expect((await at('', 'resp_gone'))[0]).toBe(404)
  })

  test('an error before the first token has its status, one after it ends the stream', async () => {
    const fail = new Error('an engine that is broken')
    const nKept = running.open.size
    running.script.next = { say: '', fail }
    for (const stream of [false, true]) {
      const { status, body } = await post(url(), { ...ask, stream })
      expect([status, body.error.type]).toEqual([500, 'server_error'])
    }
    running.script.next = { say: 'Half', fail }
    const events = await stream(url(), ask)
    const message = 'The server failed; its log says why.'
    const [first, last] = events.slice(-2)
    expect(first).toMatchObject({
      type: 'error',
      sequence_number: events.length - 2,
      message,
      error: { type: 'server_error', message },
    })
    expect(last).toMatchObject({
      type: 'response.failed',
      sequence_number: events.length - 1,
      response: {
        status: 'failed',
        error: { code: 'server_error', message },
        output: [{ status: 'incomplete', content: [{ text: 'Half' }] }],
      },
    })
    // OpenAI's client throws at the first of the two; those that read on look for the second.
    const read = async () => {
      for await (const _ of await clientOf(running).responses.create({ ...ask, stream: true }));
    }
    await expect(read()).rejects.toMatchObject({ type: 'server_error', message })
    const { status } = await fetch(`${url()}/${last.response.id}`)
    expect(status).toBe(404)
    await until(() => running.open.size === nKept)
  })

  test('an error that comes late, before the first token, is an event of its own', async () => {
    const busy = await startServer({ maxBatch: 1, requestTimeoutMs: 100, pingMs: 20 })
    const other = busy.server.engine?.generate('line', { maxTokens: 8000, ignoreEos: true })
    try {
      await other?.next()
      const response = await fetch(`${busy.url}/v1/responses`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ input: 'line', stream: true }),
      })
      expect(await response.text()).toMatch(
        /^(: ping\n\n)+event: error\ndata: \{"type":"error","sequence_number":0,"code":"timeout",.*\}\n\n$/,
      )
      // Clients look for the object that other errors are, which OpenAI's reference does not have here.
      const asked = { model: 'zipcache', input: 'line', stream: true } as const
      const read = async () => {
        for await (const _ of await clientOf(busy).responses.create(asked));
      }
      await expect(read()).rejects.toMatchObject({ code: 'timeout', type: 'server_error' })
    } finally {
      await other?.return()
      await busy.close()
    }
  })

  const image = { type: 'input_image', image_url: 'data:' }
  test.each<[string, object, number, string]>([
    ['no input', {}, 400, 'input'],
    ['an empty input', { input: [] }, 400, 'input'],
    ['an input that is none', { input: 1 }, 400, 'input'],
    ['an item that is none', { input: ['a'] }, 400, 'input[0]'],
    ['a role', { input: [{ role: 'tool', content: 'a' }] }, 400, 'input[0].role'],
    ['no content', { input: [{ role: 'user' }] }, 400, 'input[0].content'],
    ['an image', { input: [{ role: 'user', content: [image] }] }, 400, 'input[0].content[0]'],
    ['a call of a tool', { input: [{ type: 'web_search_call' }] }, 400, 'input[0].type'],
    ['no call id', { input: [{ type: 'function_call', name: 'a' }] }, 400, 'input[0].call_id'],
    [
      'arguments',
      { input: [{ type: 'function_call', name: 'a', call_id: 'b', arguments: '[]' }] },
      400,
      'input[0].arguments',
    ],
    [
      'the output of no call',
      { input: [{ type: 'function_call_output', call_id: 'b', output: 'c' }] },
      400,
      'input',
    ],
    [
      'a reference to nothing',
      { input: [{ type: 'item_reference', id: `msg_${'0'.repeat(32)}_0` }] },
      404,
      'input[0].id',
    ],
    ['a response that is not there', { previous_response_id: 'x' }, 400, 'previous_response_id'],
    ['a built-in tool', { tools: [{ type: 'web_search' }] }, 400, 'tools[0].type'],
    ['no name', { tools: [{ type: 'function' }] }, 400, 'tools[0].name'],
    [
      'a field of a tool',
      { tools: [{ ...weather, defer_loading: true }] },
      400,
      'tools[0].defer_loading',
    ],
    ['a choice', { tool_choice: { type: 'function', name: 'b' } }, 400, 'tool_choice'],
    [
      'a schema that cannot be held to',
      { tools: [{ ...weather, parameters: { not: {} } }], tool_choice: 'required' },
      400,
      'tools[0].parameters',
    ],
    ['a format', { text: { format: { type: 'xml' } } }, 400, 'text.format.type'],
    [
      'no schema',
      { text: { format: { type: 'json_schema', name: 'a' } } },
      400,
      'text.format.schema',
    ],
    ['verbosity', { text: { verbosity: 'low' } }, 400, 'text.verbosity'],
    ['effort', { reasoning: { effort: 'low' } }, 400, 'reasoning.effort'],
    ['more work', { reasoning: { mode: 'pro' } }, 400, 'reasoning.mode'],
    ['no call', { max_tool_calls: 0 }, 400, 'max_tool_calls'],
    ['background', { background: true }, 400, 'background'],
    ['truncation', { truncation: 'auto' }, 400, 'truncation'],
    ['a conversation', { conversation: 'c' }, 400, 'conversation'],
    ['a prompt of OpenAI’s', { prompt: { id: 'p' } }, 400, 'prompt'],
    ['a seed', { seed: 1 }, 400, 'seed'],
    ['stop texts', { stop: 'a' }, 400, 'stop'],
    ['what to include', { include: ['message.thoughts'] }, 400, 'include'],
    ['top_logprobs alone', { top_logprobs: 2 }, 400, 'top_logprobs'],
    ['metadata', { metadata: { a: 1 } }, 400, 'metadata'],
    ['no tokens', { max_output_tokens: 0 }, 400, 'max_output_tokens'],
    ['another model', { model: 'gpt-5' }, 404, 'model'],
    ['a misspelt field', { max_tokens: 5 }, 400, 'max_tokens'],
  ])('%s is refused by its name', async (_, wrong, status, param) => {
    const isInput = 'input' in wrong || param === 'input'
    const answer = await post(url(), isInput ? wrong : { ...ask, ...wrong })
    expect(answer).toMatchObject({ status, body: { error: { param } } })
    expect(answer.body.error.message).toContain(param)
  })
})

describe('responses that are kept', () => {
  const question = generateLineRetrieval({ lines: 20, seed: 1 })
  const second = generateLineRetrieval({ lines: 20, seed: 1, targetLine: 3 })
  const running = useServer()
  const client = () => clientOf(running())
  const asked = { model: 'zipcache', max_output_tokens: 14, temperature: 0 }
  const ask = (input: string, more: object = {}) =>
    client().responses.create({ ...asked, ...more, input })
  const cachedOf = ({ usage }: OpenAI.Responses.Response) =>
    usage?.input_tokens_details.cached_tokens

  test('they go on over their compressed caches, as Sequence.generate does, again and again', async () => {
    const first = await ask(question.text)
    expect(first).toMatchObject({
      status: 'incomplete',
      incomplete_details: { reason: 'max_output_tokens' },
      output: [{ status: 'incomplete' }],
    })
    expect(first.output_text).toContain(question.answerText)
    const goOn = () => ask(second.questionText, { previous_response_id: first.id })
    const next = await goOn()
    expect(next.output_text).toContain(second.number.split('').join(' '))
    expect(cachedOf(next)).toBe(first.usage?.total_tokens)
    expect(next.previous_response_id).toBe(first.id)

    const sequence = running().model.createSequence({ policy: 'zipcache' })
    const say = async (prompt: string) =>
      (await collect(sequence.generate(prompt, { maxTokens: 14 }))).text
    expect(await say(`${question.text} `)).toBe(first.output_text)
    expect(await say(`\n${second.questionText} `)).toBe(next.output_text)
    sequence.dispose()

    // The first one is as it was: others may go on from it, also at a time.
    const others = await Promise.all([goOn(), goOn()])
    for (const other of others) {
      expect(other.output_text).toBe(next.output_text)
      expect(cachedOf(other)).toBe(cachedOf(next))
    }
    const third = await ask(question.questionText, { previous_response_id: next.id })
    expect(third.output_text).toContain(question.answerText)
    expect(cachedOf(third)).toBe(next.usage?.total_tokens)
  })

  test('one whose items are said again, or referred to, lends its cache; store: false leaves nothing', async () => {
    const first = await ask(question.text)
    const before = running().server.engine?.stats().sequences
    const next = await client().responses.create({
      ...asked,
      store: false,
      input: [
        { role: 'user', content: question.text },
        { type: 'item_reference', id: first.output[0]?.id as string },
        { role: 'user', content: second.questionText },
      ],
    })
    expect(cachedOf(next)).toBe(first.usage?.total_tokens)
    const again = await client().responses.create({
      ...asked,
      store: false,
      input: [
        { role: 'user', content: question.text },
        ...(first.output as OpenAI.Responses.ResponseOutputMessage[]),
        { role: 'user', content: second.questionText },
      ],
    })
    expect(cachedOf(again)).toBe(first.usage?.total_tokens)
    expect(running().server.engine?.stats().sequences).toBe(before)
    await expect(client().responses.retrieve(next.id)).rejects.toMatchObject({ status: 404 })
    await expect(ask('', { previous_response_id: next.id })).rejects.toMatchObject({
      status: 400,
      code: 'previous_response_not_found',
      param: 'previous_response_id',
    })
  })

  test('its cache can be seen, another policy begins anew, DELETE frees it', async () => {
    const used = () => running().server.engine?.kvMemory.used
    const before = used() as number
    const first = await ask(question.text)
    const cache = await fetch(`${running().url}/v1/sessions/${first.id}/cache`)
    expect(await cache.json()).toMatchObject({ object: 'session.cache', policy: 'zipcache' })
    const other = { previous_response_id: first.id, kv_cache: 'fp16', store: false }
    expect(cachedOf(await ask(second.questionText, other))).toBe(0)
    expect(used()).toBeGreaterThan(before)
    await client().responses.delete(first.id)
    expect(used()).toBe(before)
    const url = `${running().url}/v1/responses/${first.id}`
    for (const method of ['GET', 'DELETE']) {
      const gone = await fetch(url, { method })
      expect([gone.status, await gone.json()]).toMatchObject([
        404,
        { error: { code: 'response_not_found' } },
      ])
    }
    expect((await fetch(`${url}?stream=true`)).status).toBe(400)
  })

  test('with a session the cache is the session’s, the words are the response’s', async () => {
    const before = running().server.engine?.stats().sequences as number
    const options = { headers: { 'x-session-id': 'mine' } }
    const first = await client().responses.create({ ...asked, input: question.text }, options)
    const body = { ...asked, input: second.questionText, previous_response_id: first.id }
    const next = await client().responses.create(body, options)
    expect(cachedOf(next)).toBe(first.usage?.total_tokens)
    expect(running().server.engine?.stats().sequences).toBe(before + 1)
  })

  test('one whose client has gone leaves nothing', async () => {
    const { engine } = running().server
    const before = engine?.stats().sequences
    const long = { ...asked, input: 'line', max_output_tokens: 8000, ignore_eos: true }
    for (const stream of [true, false]) {
      const controller = new AbortController()
      const left = fetch(`${running().url}/v1/responses`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ ...long, stream }),
        signal: controller.signal,
      }).then((response) => response.text())
      await until(() => engine?.stats().decoding === 1)
      controller.abort()
      await expect(left).rejects.toThrow()
      await until(() => engine?.stats().sequences === before)
    }
  })

  test('what memory takes is the cache alone: the conversation is run again', async () => {
    const small = await startServer({ kvMemory: 2 ** 20 })
    try {
      const create = (input: string, more: object = {}) =>
        clientOf(small).responses.create({ ...asked, ...more, input })
      const first = await create(question.text)
      const hasCache = async () =>
        (await fetch(`${small.url}/v1/sessions/${first.id}/cache`)).status === 200
      let last = await create(question.text)
      while (await hasCache()) last = await create(question.text)
      const goOn = (previous_response_id: string) =>
        create(second.questionText, { previous_response_id })
      const again = await goOn(first.id)
      expect(cachedOf(again)).toBe(0)
      expect(again.output_text).toContain(second.number.split('').join(' '))
      expect(cachedOf(await goOn(last.id))).toBe(last.usage?.total_tokens)
    } finally {
      await small.close()
    }
  })

  test('they belong to the key that they came with', async () => {
    const strict = await startServer({ apiKeys: ['one', 'two'] })
    try {
      const one = clientOf(strict, 'one').responses
      const two = clientOf(strict, 'two').responses
      const { id } = await one.create({ ...asked, input: 'line a' })
      await expect(two.retrieve(id)).rejects.toMatchObject({ status: 404 })
      await expect(two.delete(id)).rejects.toMatchObject({ status: 404 })
      const body = { ...asked, input: 'b', previous_response_id: id }
      await expect(two.create(body)).rejects.toMatchObject({ status: 400 })
      expect((await one.create(body)).previous_response_id).toBe(id)
    } finally {
      await strict.close()
    }
  })

  test('none are kept where sessions are not, and whoever insists is told', async () => {
    const none = await startServer({ maxSessions: 0 })
    try {
      const create = (more: object = {}) =>
        clientOf(none).responses.create({ ...asked, ...more, input: 'line a' })
      const response = await create()
      expect((response as unknown as { store: boolean }).store).toBe(false)
      await expect(clientOf(none).responses.retrieve(response.id)).rejects.toThrow(/no response/)
      await expect(create({ store: true })).rejects.toMatchObject({ status: 400, param: 'store' })
    } finally {
      await none.close()
    }
  })

  test('of too many those go that nobody asks for, and those whose time is over', () => {
    let now = 0
    const limits = { maxSessions: 2, sessionTtlMs: 10 }
    const stored = new StoredResponses(limits, () => now, 1000)
    const name = (id: string) => ({ id, owner: '' })
    const one = { response: {}, conversation: [], nOutput: 0 }
    const has = (id: string) => stored.find(name(id)) !== null
    stored.keep(name('a'), one)
    stored.keep(name('b'), one)
    now = 4
    expect(has('a')).toBe(true) // which makes b the one that was used least
    stored.keep(name('c'), one)
    expect([stored.size, has('b')]).toEqual([2, false])
    now = 8
    expect(has('c')).toBe(true)
    now = 14
    expect([has('a'), has('c'), stored.size]).toEqual([false, true, 1])
    expect(stored.find({ id: 'c', owner: 'other' })).toBe(null)
    // What is kept has a bound of its own.
    const text = 'x'.repeat(600)
    const large = { ...one, conversation: [{ kind: 'message' as const, role: 'user', text }] }
    stored.keep(name('d'), large)
    expect([has('c'), has('d'), stored.size]).toEqual([true, true, 2])
    stored.keep(name('e'), large)
    expect([has('d'), has('e'), stored.size]).toEqual([false, true, 1])
  })
})
