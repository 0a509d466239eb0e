/** Answers whose model thinks between `<think>` and `</think>`, read and over HTTP. */
import fc from 'fast-check'
import OpenAI from 'openai'
import { type ThoughtMarks, ThoughtParser, thoughtMarks } from '../../lib/chat/thoughts'
import type { ChoiceEvent } from '../../lib/server/generation'
import { type ThoughtEvent, withThoughts } from '../../lib/server/thoughts'
import { propertyRuns } from '../support/properties'
import { post, stream } from './running'
import { startScripted, tokenizerWith } from './scripted-model'

const marks = thoughtMarks('</think>') as ThoughtMarks
const tokenizer = { tokenId: () => undefined, specialIds: new Set<number>() }

/** What an answer in these pieces, each of a token, turns out to be; `events` as they are given out. */
async function read(pieces: readonly string[], prompt = '', rest = '', stop: string[] = []) {
  async function* answer(): AsyncGenerator<ChoiceEvent> {
    for (const [id, text] of pieces.entries()) {
      yield { kind: 'token', choice: 0, token: { id, text, logprob: -1 } }
    }
    if (rest !== '') yield { kind: 'text', choice: 0, text: rest }
    yield { kind: 'end', choice: 0, finishReason: 'stop' }
  }
  const events: ThoughtEvent[] = []
  let counted = 0
  const stopped: number[] = []
  const reading = {
    makeParser: () => new ThoughtParser({ marks, tokenizer, prompt }),
    stop,
    stopChoice: (choice: number) => stopped.push(choice),
    countReasoning: () => counted++,
  }
  for await (const event of withThoughts(answer(), reading)) events.push(event)
  const saidOf = (event: ThoughtEvent) => {
    if (event.kind === 'token') return event.token.text
    return event.kind === 'text' ? event.text : ''
  }
  const thought = events.map((event) => (event.kind === 'reasoning' ? event.text : '')).join('')
  return { thought, said: events.map(saidOf).join(''), counted, events, stopped }
}

const plain = (said: string) => ({ thought: '', said })

describe('what an answer thinks and says', () => {
  test.each<[string, string, string, { thought: string; said: string }]>([
    [
      'a thought',
      '',
      '<think>\nSo.\n\nYes?\n</think>\n\nYes.',
      { thought: 'So.\n\nYes?', said: 'Yes.' },
    ],
    ['white space before it', '', '\n <think>So.</think>Yes.', { thought: 'So.', said: 'Yes.' }],
    ['an empty thought', '', '<think>\n\n</think>\n\nYes.', plain('Yes.')],
    ['none', '', '\n Yes, <think> and </think>.', plain('\n Yes, <think> and </think>.')],
    [
      'one that the prompt begins',
      '…<think>\n',
      'So.</think> Yes.',
      { thought: 'So.', said: 'Yes.' },
    ],
    ['one that the prompt has whole', '<think>\n\n</think>\n\n', 'Yes.', plain('Yes.')],
    ['one that does not end', '', '<think> So </thi', { thought: 'So </thi', said: '' }],
    ['one without anything', '', ' <think>', plain('')],
    ['what begins like one', '', '<thin', plain('<thin')],
    [
      'what is said of the marks',
      '',
      '<think>a</think>b</think>c',
      { thought: 'a', said: 'b</think>c' },
    ],
    [
      'what looks like its end',
      '',
      '<think>a </th </think >b</think>\n',
      { thought: 'a </th </think >b', said: '' },
    ],
    ['nothing', '', '', plain('')],
  ])('%s', async (_, prompt, text, expected) => {
    expect(await read([text], prompt)).toMatchObject(expected)
    expect(await read([...text], prompt)).toMatchObject(expected)
    expect(await read([], prompt, text)).toMatchObject(expected)
  })

  test('the same however it comes in pieces, and no mark or part of one is thought', async () => {
    const part = fc.constantFrom('<think>', '</think>', '<', '</', 'think>', ' ', '\n', 'a', 'é')
    const piece = fc.array(part, { maxLength: 4 }).map((parts) => parts.join(''))
    await fc.assert(
      fc.asyncProperty(fc.array(piece, { maxLength: 9 }), fc.boolean(), async (pieces, isOpen) => {
        const prompt = isOpen ? '<think>' : ''
        const text = pieces.join('')
        const { thought, said, events } = await read(pieces, prompt)
        expect(await read([...text], prompt)).toMatchObject({ thought, said })
        expect(events.at(-1)?.kind).toBe('end')
        // The plain way.
        const begun = prompt + text
        const thinks = /^\s*<think>\s*(.*?)\s*<\/think>\s*(.*)$/s.exec(begun)
        const open = /^\s*<think>\s*(.*?)\s*$/s.exec(begun)
        if (thinks) expect([thought, said]).toEqual([thinks[1], thinks[2]])
        else if (open) expect([thought, said]).toEqual([open[1], ''])
        else expect([thought, said]).toEqual(['', text])
      }),
      propertyRuns(300),
    )
  })

  test('tokens of a thought are counted, and are none of what it says', async () => {
    const { counted, events } = await read([
      '<think>',
      '\n',
      'So',
      '.',
      '</think>',
      '\n',
      'Yes',
      '.',
    ])
    expect(counted).toBe(3)
    const ids = events.flatMap((event) => (event.kind === 'token' ? [event.token.id] : []))
    expect(ids).toEqual([5, 6, 7])
  })

  test.each<[string, string, { thought: string; said: string; stopped: number[] }]>([
    ['in a thought', '<think>a.b</think>c', { thought: 'a.b', said: 'c', stopped: [] }],
    ['behind it', '<think>a.b</think>c.d', { thought: 'a.b', said: 'c', stopped: [0] }],
    ['without one', 'c.d', { thought: '', said: 'c', stopped: [0] }],
    ['in what looks like one', '<thi.', { thought: '', said: '<thi', stopped: [0] }],
    ['that might come', '<think>a</think>c;', { thought: 'a', said: 'c;', stopped: [] }],
  ])('a text that ends the answer: %s', async (_, text, expected) => {
    for (const pieces of [[text], [...text]]) {
      const { events, ...read_ } = await read(pieces, '', '', ['.', ';;'])
      expect(read_).toMatchObject(expected)
      expect(events.at(-1)).toMatchObject({ kind: 'end', finishReason: 'stop' })
    }
  })

  test('marks that are special tokens have no text of their own', () => {
    const ids = new Map([
      ['<think>', 1],
      ['</think>', 2],
    ])
    const own = { tokenId: (mark: string) => ids.get(mark), specialIds: new Set([1, 2]) }
    const parser = new ThoughtParser({ marks, tokenizer: own, prompt: '' })
    const said: [number, string][] = [
      [1, ''],
      [5, 'Hm.'],
      [2, ''],
      [6, 'Yes.'],
    ]
    const parts = [...said.flatMap(([id, text]) => parser.push(id, text)), ...parser.end()]
    expect(parts).toEqual([
      { kind: 'reasoning', text: 'Hm.' },
      { kind: 'text', text: 'Yes.' },
    ])
  })

  test('by the template', () => {
    expect(thoughtMarks("{% if '</think>' in content %}")).toEqual(marks)
    expect(thoughtMarks('{{ content }}')).toBe(null)
    // Magistral's has an example of a thought in its system message; Seed-OSS's names its marks.
    const magistral = thoughtMarks('[SYSTEM_PROMPT]First draft: [THINK]…[/THINK]Here, …')
    expect(magistral).toEqual({ open: '[THINK]', close: '[/THINK]' })
    const seed = thoughtMarks("{%- set think_end_token = '</seed:think>' -%}")
    expect(seed).toEqual({ open: '<seed:think>', close: '</seed:think>' })
  })
})

/** As Qwen 3's: thoughts of earlier answers, calls, and a prompt that may begin one. */
const template = `{%- for message in messages -%}
[{{ message.role }}]{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}{{ message.content }}
{%- endfor -%}
{%- if tools %}<tool_call>{% endif -%}
[assistant]{% if thinks %}<think>
{% endif %}`

describe('over HTTP', () => {
  let running: Awaited<ReturnType<typeof startScripted>>
  beforeAll(async () => {
    running = await startScripted(await tokenizerWith(template))
  })
  afterAll(() => running.server.close())
  const url = () => `${running.url}/v1/chat/completions`
  const messages = [{ role: 'user' as const, content: 'Well?' }]
  const name = 'weather'
  const tools = [{ type: 'function' as const, function: { name, parameters: { type: 'object' } } }]
  const call = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'

  test('whole and streamed, with what was thought counted', async () => {
    running.script.next = { say: '<think>\nHm.\n</think>\n\nYes.' }
    const { choices, usage } = (await post(url(), { messages, logprobs: true })).body
    expect(choices[0]).toMatchObject({
      finish_reason: 'stop',
      message: { content: 'Yes.', reasoning_content: 'Hm.' },
    })
    const said = choices[0].logprobs.content.map(({ token }: { token: string }) => token).join('')
    expect(said.trimStart()).toBe('Yes.')
    const { reasoning_tokens } = usage.completion_tokens_details
    expect(reasoning_tokens).toBeGreaterThan(0)
    expect(reasoning_tokens).toBeLessThan(usage.completion_tokens - 3)
    const deltas = (await stream(url(), { messages }))
      .slice(0, -1)
      .map(({ choices: [{ delta }] }) => delta)
    const all = (key: string) => deltas.map((delta) => delta[key] ?? '').join('')
    expect([all('reasoning_content'), all('content')]).toEqual(['Hm.', 'Yes.'])
  })

  test('a prompt that begins the thought', async () => {
    running.script.next = { say: 'Hm.</think>Yes.' }
    const own = { messages, chat_template_kwargs: { thinks: true } }
    const message = { content: 'Yes.', reasoning_content: 'Hm.' }
    expect((await post(url(), own)).body.choices[0]).toMatchObject({ message })
    const { message: other } = (await post(url(), { messages })).body.choices[0]
    expect(other.content).toBe('Hm.</think>Yes.')
    expect(other.reasoning_content).toBeUndefined()
  })

  test('stop is looked for in what it says alone', async () => {
    running.script.next = { say: '<think>No. Yes.</think>Yes. No.', finishReason: 'length' }
    const { choices } = (await post(url(), { messages, stop: '. ' })).body
    expect(choices[0]).toMatchObject({
      finish_reason: 'stop',
      message: { content: 'Yes', reasoning_content: 'No. Yes.' },
    })
    expect(running.asked.at(-1)?.stop).toBeUndefined()
  })

  test('a call that is thought of is none, one behind the thought is', async () => {
    running.script.next = { say: `<think>${call}?</think>${call}` }
    const { choices } = (await post(url(), { messages, tools })).body
    expect(choices[0]).toMatchObject({
      finish_reason: 'tool_calls',
      message: { content: null, reasoning_content: `${call}?` },
    })
    expect(choices[0].message.tool_calls).toHaveLength(1)
  })

  test('JSON comes behind thoughts, as does what a tool_choice asks for', async () => {
    const format = { response_format: { type: 'json_object' } }
    const forced = { tools, tool_choice: { type: 'function', function: { name } } }
    const thinks = { chat_template_kwargs: { thinks: true } }
    running.script.next = { say: 'Hm.</think>\n\n{"a": 1}' }
    const { message } = (await post(url(), { messages, ...thinks, ...format })).body.choices[0]
    expect(message).toMatchObject({ content: '{"a": 1}', reasoning_content: 'Hm.' })
    expect(running.asked.at(-1)).toMatchObject({ json: true, thoughts: { close: '</think>' } })

    running.script.next = { say: 'Hm.</think>{}' }
    const called = (await post(url(), { messages, ...thinks, ...forced })).body.choices[0].message
    expect(called.tool_calls[0].function).toEqual({ name, arguments: '{}' })
    expect(called.reasoning_content).toBe('Hm.')
    expect(running.asked.at(-1)?.thoughts).toEqual({ close: '</think>' })

    // Marks that are no tokens are not known before they are whole.
    running.script.next = { say: '{"a": 1}' }
    const other = (await post(url(), { messages, ...format })).body.choices[0].message
    expect(other.content).toBe('{"a": 1}')
    expect(running.asked.at(-1)?.thoughts).toBeUndefined()
  })

  test('JSON, where the answer may begin with a thought, and where the prompt has one that is empty', async () => {
    const end =
      '{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}'
    const own = await startScripted(await tokenizerWith(template + end, ['<think>', '</think>']))
    const url = `${own.url}/v1/chat/completions`
    const body = { messages, response_format: { type: 'json_object' } }
    try {
      own.script.next = { say: '<think>Hm.</think>{"a": 1}' }
      const { message } = (await post(url, body)).body.choices[0]
      expect(message).toMatchObject({ content: '{"a": 1}', reasoning_content: 'Hm.' })
      expect(own.asked.at(-1)?.thoughts).toEqual({ open: '<think>', close: '</think>' })
      own.script.next = { say: '{"a": 1}' }
      const { message: other } = (await post(url, { ...body, reasoning_effort: 'none' })).body
        .choices[0]
      expect(other.content).toBe('{"a": 1}')
      expect(own.asked.at(-1)?.thoughts).toBeUndefined()
      await post(url, { messages })
      expect(own.asked.at(-1)?.thoughts).toBeUndefined()
    } finally {
      await own.server.close()
    }
  })

  test('an answer that nobody said the length of has more room where the model thinks', async () => {
    await post(url(), { messages })
    expect(running.asked.at(-1)?.maxTokens).toBe(16_384)
    await post(url(), { messages, max_completion_tokens: 7 })
    expect(running.asked.at(-1)?.maxTokens).toBe(7)
    const plain = await startScripted(await tokenizerWith("{{ messages[0]['content'] }}"))
    const short = await startScripted(await tokenizerWith(template), { defaultMaxTokens: 9 })
    try {
      for (const [own, maxTokens] of [
        [plain, 4096],
        [short, 9],
      ] as const) {
        await post(`${own.url}/v1/chat/completions`, { messages })
        expect(own.asked.at(-1)?.maxTokens).toBe(maxTokens)
      }
    } finally {
      await Promise.all([plain.server.close(), short.server.close()])
    }
  })

  test('a text completion is what the model wrote', async () => {
    running.script.next = { say: '<think>Hm.</think>Yes.' }
    const { choices } = (await post(`${running.url}/v1/completions`, { prompt: 'Well?' })).body
    expect(choices[0].text).toBe('<think>Hm.</think>Yes.')
  })

  test('a response has an item of it, which the next turn gives back to the template', async () => {
    running.script.next = { say: '<think>Hm.</think>Yes.' }
    const client = new OpenAI({ baseURL: `${running.url}/v1`, apiKey: 'none' })
    const first = await client.responses.create({ model: 'zipcache', input: 'Well?' })
    expect(first.output_text).toBe('Yes.')
    expect(first.output).toMatchObject([
      { type: 'reasoning', content: [{ type: 'reasoning_text', text: 'Hm.' }] },
      { type: 'message', status: 'completed' },
    ])
    await client.responses.create({
      model: 'zipcache',
      input: 'And?',
      previous_response_id: first.id,
    })
    expect(running.prompts.at(-1)).toContain(
      '[user]Well?[assistant]<think>Hm.</think>Yes.[user]And?',
    )
  })

  test('carried as what clients take for encrypted, without its text', async () => {
    running.script.next = { say: '<think>Hm… 😀</think>Yes.' }
    const client = new OpenAI({ baseURL: `${running.url}/v1`, apiKey: 'none' })
    const include = ['reasoning.encrypted_content' as const]
    const asked = { model: 'zipcache', store: false, include }
    const { output } = await client.responses.create({ ...asked, input: 'Well?' })
    const [{ content, ...reasoning }, message] = output as [
      OpenAI.Responses.ResponseReasoningItem,
      OpenAI.Responses.ResponseOutputMessage,
    ]
    expect(content).toEqual([{ type: 'reasoning_text', text: 'Hm… 😀' }])
    const ask = async (item: OpenAI.Responses.ResponseReasoningItem) => {
      const user = (content: string) => ({ role: 'user' as const, content })
      await client.responses.create({
        ...asked,
        input: [user('Well?'), item, message, user('And?')],
      })
      return running.prompts.at(-1)
    }
    const thought = '[user]Well?[assistant]<think>Hm… 😀</think>Yes.[user]And?[assistant]'
    const none = '[user]Well?[assistant]Yes.[user]And?[assistant]'
    expect(await ask(reasoning)).toBe(thought)
    expect(await ask({ ...reasoning, content: [] })).toBe(thought)
    // Of another server.
    expect(await ask({ ...reasoning, encrypted_content: 'gAAAA' })).toBe(none)
    // By the id of one that is kept.
    const kept = await client.responses.create({ model: 'zipcache', input: 'Well?' })
    const { id } = kept.output[0] as OpenAI.Responses.ResponseReasoningItem
    expect(await ask({ type: 'reasoning', id, summary: [] })).toBe(thought)
    expect(await ask({ ...reasoning, encrypted_content: null })).toBe(none)
  })

  test('its summary, where one is asked for, is all of it, whole and streamed', async () => {
    running.script.next = { say: '<think>Hm. So.</think>Yes.' }
    const client = new OpenAI({ baseURL: `${running.url}/v1`, apiKey: 'none' })
    const asked = { model: 'zipcache', input: 'Well?', reasoning: { summary: 'auto' as const } }
    const text = 'Hm. So.'
    const item = {
      type: 'reasoning',
      status: 'completed',
      summary: [{ type: 'summary_text', text }],
      content: [{ type: 'reasoning_text', text }],
    }
    const whole = await client.responses.create(asked)
    expect(whole).toMatchObject({ output: [item, {}], reasoning: { summary: 'auto' } })
    const stream = client.responses.stream(asked)
    const told: [string, unknown][] = []
    for await (const event of stream) {
      if (!event.type.startsWith('response.reasoning_summary')) continue
      const { type, sequence_number: _, ...own } = event as typeof event & { delta?: string }
      told.push([type.slice('response.reasoning_summary_'.length), own])
    }
    const final = await stream.finalResponse()
    expect(final.output).toMatchObject([item, { type: 'message' }])
    const place = { item_id: final.output[0]?.id, output_index: 0, summary_index: 0 }
    const part = (said: string) => ({ ...place, part: { type: 'summary_text', text: said } })
    expect(told[0]).toEqual(['part.added', part('')])
    expect(told.slice(-2)).toEqual([
      ['text.done', { ...place, text }],
      ['part.done', part(text)],
    ])
    const deltas = told.slice(1, -2)
    expect(deltas.every(([type]) => type === 'text.delta')).toBe(true)
    expect(deltas.map(([, own]) => (own as { delta: string }).delta).join('')).toBe(text)
    // An item with both is the model's thought once.
    await client.responses.create({
      model: 'zipcache',
      input: [
        { role: 'user', content: 'Well?' },
        ...final.output,
      ] as OpenAI.Responses.ResponseInput,
      store: false,
    })
    expect(running.prompts.at(-1)).toContain('[assistant]<think>Hm. So.</think>Yes.')
  })
})

/** As Qwen 3 has it: an assistant's thoughts are told until the user speaks again. */
const forgetful = `{%- set turn = namespace(begin=0) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{%- set turn.begin = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
[{{ message.role }}]
{%- if message.reasoning_content and loop.index0 > turn.begin -%}
{{- '<think>' + message.reasoning_content + '</think>' -}}
{%- endif -%}
{{- message.content or '' -}}
{%- for call in message.tool_calls or [] -%}
{{- '<tool_call>' + (call.function | tojson) + '</tool_call>' -}}
{%- endfor -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '[assistant]<think>' -}}{%- endif -%}`

describe('a conversation whose template forgets thoughts', () => {
  const name = 'weather'
  const tools = [{ type: 'function' as const, function: { name, parameters: { type: 'object' } } }]
  const call = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
  const begun = '[assistant]<think>'
  let running: Awaited<ReturnType<typeof startScripted>>
  /** Tokens that begin an answer. */
  let nBegun: number
  beforeEach(async () => {
    const own = await tokenizerWith(forgetful)
    nBegun = own.encode(begun, { addSpecialTokens: false }).length
    running = await startScripted(own)
  })
  afterEach(() => running.server.close())
  const say = (text: string) => {
    running.script.next = { say: text }
  }
  const ask = async (messages: object[], id?: string) => {
    const url = `${running.url}/v1/chat/completions`
    const { status, body } = await post(url, { messages, tools }, id ? { 'x-session-id': id } : {})
    expect(status).toBe(200)
    const { prompt_tokens: length, prompt_tokens_details } = body.usage
    const prompt = running.prompts.at(-1) as string
    const { message } = body.choices[0]
    return { message, prompt, length, cached: prompt_tokens_details.cached_tokens }
  }
  const user = (content: string) => ({ role: 'user', content })

  test('goes on from where its last question ended', async () => {
    say('Hm.</think>Yes.')
    const first = await ask([user('Well?')], 'a')
    const talk = [user('Well?'), first.message, user('And?')]
    const second = await ask(talk, 'a')
    expect(second.cached).toBe(first.length - nBegun)
    expect(second.prompt).toBe(`[user]Well?[assistant]Yes.[user]And?${begun}`)
    expect((await ask([...talk, second.message, user('So?')], 'a')).cached).toBe(
      second.length - nBegun,
    )
  })

  test('in a turn of calls over what was said, then from before that turn', async () => {
    say(`Hm.</think>${call}`)
    const first = await ask([user('Well?')], 'a')
    expect(first.message.tool_calls).toHaveLength(1)
    const [{ id }] = first.message.tool_calls
    const turn = [user('Well?'), first.message, { role: 'tool', tool_call_id: id, content: '-3' }]
    say('So.</think>Cold.')
    const second = await ask(turn, 'a')
    // How the template writes a call is not how the model did.
    expect(second.prompt).toContain('<think>Hm.</think><tool_call>{"name": "weather"')
    const next = [...turn, second.message, user('And?')]
    const third = await ask(next, 'a')
    expect(third.cached).toBe(first.length - nBegun)
    expect(third.prompt).not.toContain('Hm.')
    expect(third.prompt).toBe((await ask(next)).prompt)
  })

  test('from one response on, more than once', async () => {
    const client = new OpenAI({ baseURL: `${running.url}/v1`, apiKey: 'none' })
    say('Hm.</think>Yes.')
    const asked = { model: 'zipcache' }
    const first = await client.responses.create({ ...asked, input: 'Well?' })
    const nFirst = (first.usage?.input_tokens ?? 0) - nBegun
    for (const input of ['And?', 'Really?']) {
      const own = { ...asked, input, previous_response_id: first.id }
      const next = await client.responses.create(own)
      expect(running.prompts.at(-1)).toBe(`[user]Well?[assistant]Yes.[user]${input}${begun}`)
      expect(next.usage?.input_tokens_details.cached_tokens).toBe(nFirst)
      const last = { ...asked, input: 'So?', previous_response_id: next.id }
      const { usage } = await client.responses.create(last)
      const nNext = (next.usage?.input_tokens ?? 0) - nBegun
      expect(usage?.input_tokens_details.cached_tokens).toBe(nNext)
      await client.responses.delete(next.id)
    }
  })

  test('from a response on into one that is not stored, of which nothing is left', async () => {
    const client = new OpenAI({ baseURL: `${running.url}/v1`, apiKey: 'none' })
    say('Hm.</think>Yes.')
    const { id } = await client.responses.create({ model: 'zipcache', input: 'Well?' })
    const nOpen = running.open.size
    let nAnswering = 0
    running.script.next = {
      get say() {
        nAnswering = running.open.size
        return 'Hm.</think>No.'
      },
    }
    const own = { model: 'zipcache', input: 'And?', previous_response_id: id, store: false }
    await client.responses.create(own)
    expect([nAnswering, running.open.size]).toEqual([nOpen + 1, nOpen])
  })

  test('nothing is kept of it once it is deleted', async () => {
    say('Hm.</think>Yes.')
    const first = await ask([user('Well?')], 'a')
    await ask([user('Well?'), first.message, user('And?')], 'a')
    await ask([user('Else?')], 'a')
    expect(running.open.size).toBe(2) // it, and what it held before its answer
    await fetch(`${running.url}/v1/sessions/a`, { method: 'DELETE' })
    expect(running.open.size).toBe(0)
  })
})
