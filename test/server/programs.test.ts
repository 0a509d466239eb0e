/** Requests as known programs write them, by their sources: each is answered. */
import { connect } from 'node:net'
import OpenAI from 'openai'
import { eventsOf, post } from './running'
import { startScripted, tokenizerWith } from './scripted-model'

/** As Hermes' and Qwen's, in short: tools, messages, calls of earlier answers. */
const template = `{%- if tools %}{{ tools | tojson }}<tool_call>|{% endif -%}
{%- for message in messages %}{{ message.role }}:{{ message.content or '' }}
{%- if 'tool_calls' in message %}{% for call in message.tool_calls %}[{{ call.function.name }} {{ call.function.arguments | tojson }}]{% endfor %}{% endif %};{% endfor -%}`

const model = 'zipcache'
const stream_options = { include_usage: true }
const parameters = {
  $schema: 'https://json-schema.org/draft/2020-12/schema',
  type: 'object',
  properties: { path: { type: 'string', description: 'where' } },
  required: ['path'],
  additionalProperties: false,
}
const description = 'Reads a file.'
const read = { name: 'read_file', description, parameters }
const tools = [{ type: 'function', function: read }]
const system = { role: 'system', content: 'You code.' }
const user = { role: 'user', content: 'Look.' }
const text = (said: string, more: object = {}) => ({ type: 'text', text: said, ...more })
const call = (args: string) => ({
  id: 'call_1',
  type: 'function',
  function: { name: 'read_file', arguments: args },
})
const result = { role: 'tool', tool_call_id: 'call_1', content: 'empty' }

let running: Awaited<ReturnType<typeof startScripted>>
beforeAll(async () => {
  running = await startScripted(await tokenizerWith(template))
})
afterAll(() => running.server.close())

const told = '[{"type": "function", "function": {"name": "read_file"'

const chats: [program: string, body: object, prompt: string | RegExp][] = [
  [
    'Open WebUI',
    {
      stream: true,
      model,
      messages: [user],
      stream_options,
      temperature: 0.8,
      top_p: 0.9,
      top_k: 40,
      min_p: 0,
      max_tokens: 128,
      frequency_penalty: 0,
      presence_penalty: 0,
      seed: 42,
      stop: ['\n\nUser'],
      logit_bias: {},
    },
    'user:Look.;',
  ],
  [
    'LibreChat, with caching asked for',
    {
      model,
      temperature: 1,
      top_p: 1,
      presence_penalty: 0,
      frequency_penalty: 0,
      stop: ['||>', '\nUser:'],
      user: '6578f39b',
      stream: true,
      stream_options,
      prompt_cache_options: { mode: 'explicit', ttl: '30m' },
      safety_identifier: 'id',
      messages: [
        {
          role: 'system',
          content: [text('You code.', { prompt_cache_breakpoint: { mode: 'explicit' } })],
        },
        user,
      ],
    },
    'system:You code.;user:Look.;',
  ],
  [
    'Continue',
    {
      messages: [system, user, { role: 'assistant', content: ' ', tool_calls: [call('')] }, result],
      model,
      max_tokens: 100,
      temperature: 0,
      stream: true,
      stop: [],
      tools,
    },
    /^\[.*\|system:You code.;user:Look.;assistant: \[read_file \{\}\];tool:empty;$/,
  ],
  [
    'Cline',
    {
      model,
      messages: [
        system,
        { role: 'user', content: [text('<task>'), text('<environment>')] },
        { role: 'assistant', content: 'I look.', tool_calls: [call('{"path":"a"}')] },
        { ...result, content: [text('empty')] },
        { role: 'user', content: [{ type: 'text', text: 'Go on.' }] },
      ],
      temperature: 0,
      max_tokens: 100,
      stream: true,
      stream_options,
      tools: tools.map((tool) => ({ ...tool, function: { ...tool.function, strict: false } })),
      tool_choice: 'auto',
      parallel_tool_calls: false,
    },
    /user:<task><environment>;assistant:I look.\[read_file \{"path": "a"\}\];tool:empty;user:Go on.;$/,
  ],
  [
    'Roo Code, with caching asked for',
    {
      model,
      temperature: 0,
      messages: [
        {
          role: 'system',
          content: [text('You code.', { cache_control: { type: 'ephemeral' } })],
        },
        { role: 'user', content: [text('Look.', { cache_control: { type: 'ephemeral' } })] },
      ],
      stream: true,
      stream_options,
      max_completion_tokens: 100,
    },
    'system:You code.;user:Look.;',
  ],
  [
    'Zed',
    {
      model,
      messages: [
        { role: 'system', content: 'You code.' },
        { role: 'user', content: 'Look.' },
        { role: 'assistant', content: null, tool_calls: [call('{}')] },
        { role: 'tool', content: 'empty', tool_call_id: 'call_1' },
      ],
      stream: true,
      stream_options,
      max_completion_tokens: 100,
      temperature: 1,
      parallel_tool_calls: false,
      tools,
      prompt_cache_key: 'thread',
      reasoning_effort: 'none',
    },
    /assistant:\[read_file \{\}\];tool:empty;$/,
  ],
  [
    'a pydantic object of OpenAI’s client, dumped',
    {
      model,
      messages: [
        user,
        {
          content: 'No.',
          refusal: null,
          role: 'assistant',
          annotations: null,
          audio: null,
          function_call: null,
          tool_calls: null,
        },
        user,
      ],
    },
    'user:Look.;assistant:No.;user:Look.;',
  ],
  [
    'an earlier answer without calls, and one that was a refusal',
    {
      model,
      messages: [
        user,
        { role: 'assistant', content: 'No.', tool_calls: [] },
        user,
        { role: 'assistant', content: [{ type: 'refusal', refusal: 'Never.' }] },
        user,
      ],
    },
    'user:Look.;assistant:No.;user:Look.;assistant:Never.;user:Look.;',
  ],
  [
    'all of OpenAI’s fields that change no answer',
    {
      model,
      messages: [user],
      stream: true,
      stream_options: { ...stream_options, include_obfuscation: false },
      store: true,
      metadata: { a: 'b' },
      service_tier: 'flex',
      user: 'u',
      safety_identifier: 's',
      prompt_cache_key: 'k',
      prompt_cache_retention: '24h',
      prompt_cache_options: { mode: 'implicit' },
      modalities: ['text'],
      verbosity: 'medium',
      response_format: { type: 'text' },
      tools: [],
      tool_choice: 'none',
      parallel_tool_calls: true,
      logprobs: false,
      n: 1,
    },
    'user:Look.;',
  ],
]

/** What an answer of completions says, streamed or not. */
function textOf(answer: string): string {
  if (!answer.startsWith('data: ')) return JSON.parse(answer).choices[0].message.content
  const chunks = eventsOf(answer).slice(0, -1)
  return chunks.map(({ choices: [choice] }) => choice?.delta.content ?? '').join('')
}

test.each(chats)('%s', async (_, body, prompt) => {
  running.script.next = { say: 'Done.' }
  const response = await fetch(`${running.url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', authorization: 'Bearer anything' },
    body: JSON.stringify(body),
  })
  const answer = await response.text()
  expect([response.status, response.ok ? textOf(answer) : answer]).toEqual([200, 'Done.'])
  const last = running.prompts.at(-1) as string
  if (typeof prompt === 'string') expect(last).toBe(prompt)
  else expect(last).toMatch(prompt)
  // What the server is told of a function is nothing to the model.
  expect(last).not.toContain('strict')
  if (last.startsWith('[')) expect(last.startsWith(told)).toBe(true)
})

const input = (said: string, role = 'user', type = 'input_text') => ({
  type: 'message',
  role,
  content: [{ type, text: said }],
})

const responses: [program: string, body: object, prompt: RegExp][] = [
  [
    'Codex',
    {
      model,
      instructions: 'You code.',
      input: [
        input('Sandboxed.', 'developer'),
        input('Look.'),
        { type: 'reasoning', id: 'rs_1', summary: [], content: null, encrypted_content: 'x' },
        { type: 'function_call', name: 'shell', arguments: '{"command":["ls"]}', call_id: 'c1' },
        { type: 'function_call_output', call_id: 'c1', output: 'empty' },
      ],
      tools: [{ type: 'function', name: 'shell', description, strict: false, parameters }],
      tool_choice: 'auto',
      parallel_tool_calls: false,
      reasoning: null,
      store: false,
      stream: true,
      include: ['reasoning.encrypted_content'],
      prompt_cache_key: 'thread',
      text: { verbosity: 'medium' },
      client_metadata: { 'x-codex-installation-id': 'id' },
    },
    /\|system:You code.\n\nSandboxed.;user:Look.;assistant:\[shell \{"command": \["ls"\]\}\];tool:empty;$/,
  ],
  [
    'Zed',
    {
      model,
      input: [
        input('Look.'),
        {
          type: 'message',
          role: 'assistant',
          content: [
            { type: 'output_text', text: 'No', annotations: [] },
            { type: 'refusal', refusal: ' and no.' },
          ],
        },
        input('Please.'),
      ],
      stream: true,
      max_output_tokens: 100,
      parallel_tool_calls: true,
      tools: [{ type: 'function', name: 'read_file', description: null, parameters }],
      reasoning: { effort: 'none', summary: 'auto' },
    },
    /\|user:Look.;assistant:No and no.;user:Please.;$/,
  ],
  [
    'VS Code',
    {
      model,
      input: [
        { role: 'system', content: [{ type: 'input_text', text: 'You code.' }] },
        { role: 'user', content: [{ type: 'input_text', text: 'Look.' }] },
        { type: 'reasoning', id: 'rs_2', summary: [], encrypted_content: 'gAAAA' },
        {
          role: 'assistant',
          content: [{ type: 'output_text', text: 'I look.', annotations: [] }],
          id: 'msg_123',
          status: 'completed',
          type: 'message',
        },
        { type: 'function_call', name: 'shell', arguments: '', call_id: 'c1' },
        { type: 'function_call_output', call_id: 'c1', output: '' },
      ],
      stream: true,
      tools: [{ name: 'shell', description, type: 'function', strict: false, parameters: {} }],
      tool_choice: 'auto',
      store: true,
      truncation: 'disabled',
      reasoning: { effort: 'medium', summary: 'detailed' },
      include: ['reasoning.encrypted_content'],
    },
    /\|system:You code.;user:Look.;assistant:I look.\[shell \{\}\];tool:;$/,
  ],
  [
    'Home Assistant',
    {
      model,
      input: [
        { type: 'message', role: 'developer', content: 'You code.' },
        { type: 'message', role: 'user', content: 'Look.' },
      ],
      max_output_tokens: 100,
      user: 'conversation',
      service_tier: 'auto',
      store: false,
      stream: true,
      text: { verbosity: 'medium' },
      top_p: 1,
      temperature: 1,
    },
    /^system:You code.;user:Look.;$/,
  ],
  [
    'all of OpenAI’s fields that change no answer',
    {
      model,
      input: 'Look.',
      include: [
        'file_search_call.results',
        'web_search_call.results',
        'web_search_call.action.sources',
        'code_interpreter_call.outputs',
        'computer_call_output.output.image_url',
        'message.input_image.image_url',
      ],
      max_tool_calls: 4,
      prompt_cache_retention: 'in_memory',
      prompt_cache_options: {},
      reasoning: { effort: 'none', summary: 'auto', mode: 'standard', context: 'auto' },
      text: { format: { type: 'text' }, verbosity: 'medium' },
      truncation: 'disabled',
      background: false,
      conversation: null,
      safety_identifier: 's',
    },
    /^user:Look.;$/,
  ],
]

test.each(responses)('%s, by the Responses API', async (_, body, prompt) => {
  running.script.next = { say: 'Done.' }
  const response = await fetch(`${running.url}/v1/responses`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  })
  const answer = await response.text()
  expect({ status: response.status, answer }).toEqual({
    status: 200,
    answer: expect.stringContaining('Done.'),
  })
  expect(running.prompts.at(-1)).toMatch(prompt)
})

test.each([
  ['a web search', { web_search_options: {} }, 'web_search_options'],
  ['speech', { modalities: ['text', 'audio'] }, 'modalities'],
  ['short answers', { verbosity: 'low' }, 'verbosity'],
  ['moderation', { moderation: { model: 'omni-moderation-latest' } }, 'moderation'],
  ['functions as they once were', { functions: [read] }, 'functions'],
  [
    'a schema beside a text',
    { response_format: { type: 'text', schema: {} } },
    'response_format.schema',
  ],
  ['an effort that is none', { reasoning_effort: 'much' }, 'reasoning_effort'],
  ['thoughts of a model that has none', { enable_thinking: true }, 'enable_thinking'],
  [
    'a budget for thoughts',
    { thinking: { type: 'enabled', budget_tokens: 9 } },
    'thinking.budget_tokens',
  ],
])('%s cannot be had, which is said', async (_, wrong, param) => {
  const { status, body } = await post(`${running.url}/v1/chat/completions`, {
    messages: [user],
    ...wrong,
  })
  expect({ status, param: body.error?.param }).toEqual({ status: 400, param })
})

test('a picture is refused by its name', async () => {
  const content = [text('What is it?'), { type: 'image_url', image_url: { url: 'data:' } }]
  const { body } = await post(`${running.url}/v1/chat/completions`, {
    messages: [{ role: 'user', content }],
  })
  expect(body.error.message).toBe(
    'messages[0].content: holds "image_url"; this model reads texts only',
  )
})

test('too much is told in the words that programs look for', async () => {
  const long = { role: 'user', content: 'a '.repeat(70_000) }
  const { status, body } = await post(`${running.url}/v1/chat/completions`, { messages: [long] })
  expect([status, body.error.code]).toEqual([400, 'context_length_exceeded'])
  // LiteLLM, Cline, opencode and others go by these, and not by the code.
  expect(body.error.message).toMatch(/this model's maximum context length is 32768 tokens/)
})

test('a base URL with a slash, or without its /v1', async () => {
  running.script.next = { say: 'Done.' }
  const ask = async (baseURL: string) => {
    const client = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0 })
    expect((await client.models.list()).data[0]?.id).toBe(model)
    expect((await client.models.retrieve(model)).id).toBe(model)
    const { choices } = await client.chat.completions.create({
      model,
      messages: [{ role: 'user', content: 'Look.' }],
    })
    const { id } = await client.responses.create({ model, input: 'Look.' })
    expect((await client.responses.retrieve(id)).id).toBe(id)
    return choices[0]?.message.content
  }
  for (const path of ['', '/', '/v1', '/v1/', '/v1//']) {
    expect(await ask(`${running.url}${path}`)).toBe('Done.')
  }
  // Programs that take the path to be a folder.
  const asked = { messages: [user] }
  expect((await post(`${running.url}/v1/chat/completions/?api-version=1`, asked)).status).toBe(200)
  expect((await fetch(`${running.url}/v1/models/`)).status).toBe(200)
  for (const path of ['/completion', '/modelsx', '/v2/models', '/api/chat/completions']) {
    expect((await fetch(running.url + path)).status).toBe(404)
  }
})

test('keys are asked for by whatever path', async () => {
  const guarded = await startScripted(await tokenizerWith(template), { apiKeys: ['secret'] })
  try {
    const headers = { authorization: 'Bearer secret' }
    for (const path of ['/models', '//models', '/v1//models', '//v1/models/', '/models/']) {
      const url = guarded.url + path
      expect([path, (await fetch(url)).status]).toEqual([path, 401])
      expect([path, (await fetch(url, { headers })).status]).toEqual([path, 200])
    }
    for (const path of ['/chat/completions', '/completions', '/responses', '//v1//responses']) {
      const answer = await post(guarded.url + path, { messages: [user] })
      expect([path, answer.status]).toEqual([path, 401])
    }
  } finally {
    await guarded.server.close()
  }
})

test.each(['content-length', 'chunked'])(
  'a client that offers HTTP/2, as Java’s does, is answered in HTTP/1.1 (%s)',
  async (how) => {
    running.script.next = { say: 'Done.' }
    const body = JSON.stringify({ messages: [user] })
    const length = Buffer.byteLength(body)
    const sent =
      how === 'chunked'
        ? ['transfer-encoding: chunked', `${length.toString(16)}\r\n${body}\r\n0\r\n\r\n`]
        : [`content-length: ${length}`, body]
    const socket = connect(Number(new URL(running.url).port), '127.0.0.1')
    const head = [
      'POST /v1/chat/completions HTTP/1.1',
      'connection: Upgrade, HTTP2-Settings',
      'upgrade: h2c',
      'http2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA',
      'host: x',
      'content-type: application/json',
      sent[0],
    ]
    socket.write(`${head.join('\r\n')}\r\n\r\n${sent[1]}`)
    let answer = ''
    for await (const chunk of socket) {
      answer += String(chunk)
      if (answer.includes('"usage"')) break
    }
    expect(answer).toMatch(/^HTTP\/1\.1 200 OK\r\n/)
    expect(answer).toContain('"content":"Done."')
  },
)

test('several turns of one speaker are one to a template that takes them so alone', async () => {
  // As Gemma's and Mistral's: who speaks has to change.
  const strict = `{%- for message in messages -%}
{%- if loop.index0 > 0 and message.role == messages[loop.index0 - 1].role -%}{{ raise_exception('roles must alternate') }}{%- endif -%}
{{ message.role }}:{{ message.content }};{%- endfor -%}{{ 'assistant:' if add_generation_prompt }}`
  const say = (role: string, content: string) => ({ role, content })
  const [a, b, c] = ['A', 'B', 'C'].map((said) => say('user', said))
  const systems = [say('system', 'S'), say('developer', 'T')]
  const own = await startScripted(await tokenizerWith(strict))
  own.script.next = { say: 'Yes.' }
  const ask = async (messages: unknown[], headers = {}) => {
    const { status, body } = await post(`${own.url}/v1/chat/completions`, { messages }, headers)
    return status === 200 ? own.prompts.at(-1) : body.error
  }
  try {
    const assistant = say('assistant', 'Yes.')
    expect(await ask([a, assistant, b])).toBe('user:A;assistant:Yes.;user:B;assistant:')
    expect(await ask([...systems, a, b, assistant, c, a])).toBe(
      'system:S\n\nT;user:A\n\nB;assistant:Yes.;user:C\n\nA;assistant:',
    )
    expect(await ask([a, assistant, assistant, b, c])).toMatchObject({
      code: 'invalid_prompt',
      message: expect.stringContaining('roles must alternate'),
    })
    // The beginning of a conversation is written as it was.
    const headers = { 'x-session-id': 'talk' }
    await ask([a, b], headers)
    const next = { messages: [a, b, assistant, c] }
    const { usage } = (await post(`${own.url}/v1/chat/completions`, next, headers)).body
    expect(usage.prompt_tokens_details.cached_tokens).toBeGreaterThan(10)
  } finally {
    await own.server.close()
  }
  // Others are told each.
  running.script.next = { say: 'Yes.' }
  await post(`${running.url}/v1/chat/completions`, { messages: [systems[0], systems[0], a, b] })
  expect(running.prompts.at(-1)).toBe('system:S;system:S;user:A;user:B;')
})

describe('whether to think', () => {
  const reading = (source: string) => `${source}{{ messages[0].content }}`
  const qwen = "{{ '</think>' }}{{ enable_thinking | default('as ever') }}:"
  const deepseek =
    "{% if not thinking is defined %}{% set thinking = false %}{% endif %}{{ '</think>' }}{{ thinking }}:"
  const always = "{{ '</think>' }}"
  const both = `${qwen}{{ reasoning_effort | default('usual') }}:`
  test.each<[string, object, string | number]>([
    [qwen, {}, '</think>as ever:Look.'],
    [qwen, { reasoning_effort: 'none' }, '</think>false:Look.'],
    [qwen, { reasoning_effort: 'low' }, 400],
    [qwen, { reasoning_effort: 'medium' }, '</think>true:Look.'],
    [qwen, { reasoning_effort: 'medium', enable_thinking: false }, '</think>false:Look.'],
    [
      qwen,
      { reasoning_effort: 'medium', chat_template_kwargs: { enable_thinking: false } },
      '</think>false:Look.',
    ],
    [qwen, { reasoning_effort: 'none', reasoning: { effort: 'high' } }, '</think>false:Look.'],
    [deepseek, { reasoning_effort: 'medium' }, '</think>true:Look.'],
    [always, { reasoning_effort: 'medium' }, '</think>Look.'],
    ['', { reasoning_effort: 'medium' }, 'Look.'],
    [both, { reasoning_effort: 'medium' }, '</think>as ever:medium:Look.'],
    [qwen, { enable_thinking: false }, '</think>false:Look.'],
    [qwen, { enable_thinking: true }, '</think>true:Look.'],
    [qwen, { thinking: { type: 'disabled' } }, '</think>false:Look.'],
    [qwen, { thinking: { type: 'enabled' } }, '</think>true:Look.'],
    [qwen, { thinking: { type: 'adaptive' } }, 400],
    [qwen, { reasoning: { enabled: false } }, '</think>false:Look.'],
    [qwen, { reasoning: { effort: 'none' } }, '</think>false:Look.'],
    [qwen, { reasoning: { max_tokens: 9 } }, 400],
    [deepseek, { enable_thinking: true }, '</think>true:Look.'],
    [deepseek, {}, '</think>false:Look.'],
    [always, { enable_thinking: true }, '</think>Look.'],
    [always, { reasoning_effort: 'none' }, 400],
    [both, { reasoning_effort: 'none' }, '</think>false:usual:Look.'],
    [both, { reasoning_effort: 'xhigh' }, '</think>as ever:xhigh:Look.'],
    ['', { reasoning_effort: 'none' }, 'Look.'],
    ['', { enable_thinking: false }, 'Look.'],
    ['', { reasoning_effort: 'minimal' }, 400],
  ])('%j, asked %j', async (source, asked, expected) => {
    const own = await startScripted(await tokenizerWith(reading(source)))
    try {
      const { status } = await post(`${own.url}/v1/chat/completions`, {
        messages: [user],
        ...asked,
      })
      expect(status === 200 ? own.prompts.at(-1) : status).toBe(expected)
    } finally {
      await own.server.close()
    }
  })
})
