/** Calls of functions: found in what a model says, asked for, and over HTTP. */
import fc from 'fast-check'
import OpenAI from 'openai'
import {
  makeForcedParser,
  makeToolCallParser,
  type ToolFormat,
  toolFormatOf,
} from '../../lib/chat/tool-calls'
import { withToolCalls } from '../../lib/server/answers'
import { CHAT_TOOLS, forcedSchema } from '../../lib/server/tools'
import { propertyRuns } from '../support/properties'
import { post, stream } from './running'
import { startScripted, tokenizerWith } from './scripted-model'

const names = new Set(['weather', 'time'])
const parametersOf = () => undefined
/** What that of Granite 3 does with tools and messages. */
const graniteTemplate = `{%- if tools and not available_tools %}{%- set available_tools = tools %}{%- endif %}
{%- if available_tools %}{{- '<|start_of_role|>system<|end_of_role|>Respond only with <|tool_call|> followed by a JSON list of tools used.<|end_of_text|>\n<|start_of_role|>available_tools<|end_of_role|>' }}{{- available_tools | tojson(indent=4) }}{{- '<|end_of_text|>\n' }}{%- endif %}
{%- for message in messages %}{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\n' }}{%- if loop.last and add_generation_prompt %}{{- '<|start_of_role|>assistant' }}{%- if controls %}{{- ' ' + controls | tojson() }}{%- endif %}{{- '<|end_of_role|>' }}{%- endif %}{%- endfor %}`
/** Phi-4-mini's own. */
const phiTemplate = `{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}`
const kMarks = ['[TOOL_CALLS]', '[ARGS]', '<|python_tag|>', '<|tool_call|>', '<|/tool_call|>']
/** Qwen2.5's, but for what it says of tools. */
const qwenTemplate = `{%- if tools %}
    {{- '<|im_start|>system\\nYou are Qwen.\\n<tools>' }}
    {%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{%- endfor %}
    {{- '\\n</tools> within <tool_call></tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system") or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}`

interface Answer {
  text: string
  calls: [string, unknown][]
}

/** What a parser makes of a text that comes in pieces; marks are special tokens, or plain text. */
function read(format: ToolFormat, pieces: readonly string[], areSpecial = false): Answer {
  const specialId = (mark: string) => (areSpecial ? 1000 + kMarks.indexOf(mark) : undefined)
  const parser = makeToolCallParser(format, { names, parametersOf, specialId })
  const said = pieces.map((piece) =>
    areSpecial && kMarks.includes(piece)
      ? parser.push(1000 + kMarks.indexOf(piece), '')
      : parser.push(1, piece),
  )
  said.push(parser.end())
  const calls = said.flatMap(({ calls }) => calls)
  for (const { id } of calls) expect(id).toMatch(/^[A-Za-z0-9]{9}$/)
  return {
    text: said.map(({ text }) => text).join(''),
    calls: calls.map(({ name, arguments: args }) => [name, JSON.parse(args)]),
  }
}

describe('what a model says', () => {
  const oslo = { city: 'Oslo', nested: { a: ['}', '</tool'] } }
  const call = (key: string, name = 'weather') => JSON.stringify({ name, [key]: oslo })
  const cases: [string, ToolFormat, string, string, number][] = [
    ['nothing', 'hermes', '', '', 0],
    ['text alone', 'hermes', 'a < b, <tool_cal', 'a < b, <tool_cal', 0],
    ['a call', 'hermes', `<tool_call>\n${call('arguments')}\n</tool_call>`, '', 1],
    [
      'text, then two calls',
      'hermes',
      `I look.\n<tool_call>${call('arguments')}</tool_call>\n<tool_call>${call('parameters')}</tool_call>\n`,
      'I look.',
      2,
    ],
    [
      'text, then what is no call',
      'hermes',
      ' I \n <tool_call>x</tool_call> \n ',
      ' I \n <tool_call>x</tool_call> \n ',
      0,
    ],
    [
      'a call behind what is said of its mark',
      'hermes',
      `The <tool_call> mark: <tool_call>${call('arguments')}</tool_call>`,
      'The <tool_call> mark:',
      1,
    ],
    ['a call without its end', 'hermes', `<tool_call>${call('arguments')}`, '', 1],
    ['a call that is cut', 'hermes', '<tool_call>{"name": "w', '<tool_call>{"name": "w', 0],
    ['no JSON', 'hermes', '<tool_call>x</tool_call>!', '<tool_call>x</tool_call>!', 0],
    ['text alone', 'phi', 'a <|tool_cal', 'a <|tool_cal', 0],
    [
      'text and calls',
      'phi',
      `So.<|tool_call|>[${call('arguments')}, ${call('arguments')}]<|/tool_call|>`,
      'So.',
      2,
    ],
    ['a call that is no list', 'phi', `<|tool_call|>${call('arguments')}<|/tool_call|>`, '', 1],
    ['calls without their end', 'phi', `<|tool_call|>[${call('arguments')}]`, '', 1],
    ['no calls', 'phi', '<|tool_call|>[]<|/tool_call|>', '<|tool_call|>[]<|/tool_call|>', 0],
    [
      'a call and what is none',
      'phi',
      `<|tool_call|>[${call('arguments')}, 1]<|/tool_call|>`,
      `<|tool_call|>[${call('arguments')}, 1]<|/tool_call|>`,
      0,
    ],
    ['text alone', 'mistral', 'a [TOOL', 'a [TOOL', 0],
    ['JSON that is none', 'mistral', '{"a": 1}', '{"a": 1}', 0],
    ['calls', 'mistral', `[TOOL_CALLS][${call('arguments')}, ${call('arguments')}]`, '', 2],
    ['text and calls', 'mistral', `So.[TOOL_CALLS] [${call('arguments')}]`, 'So.', 1],
    [
      'calls of later versions',
      'mistral',
      `[TOOL_CALLS]weather[ARGS]${JSON.stringify(oslo)}[TOOL_CALLS]weather${JSON.stringify(oslo)}`,
      '',
      2,
    ],
    ['calls that are cut', 'mistral', '[TOOL_CALLS][{"na', '[TOOL_CALLS][{"na', 0],
    ['text alone', 'llama', 'so {"a": 1}', 'so {"a": 1}', 0],
    ['a call', 'llama', ` ${call('parameters')} `, '', 1],
    ['two calls', 'llama', `${call('parameters')}; ${call('parameters')}`, '', 2],
    ['a marked call', 'llama', `<|python_tag|>${call('parameters')}`, '', 1],
    ['JSON that is no call', 'llama', '{"name": "x", "a": 1}', '{"name": "x", "a": 1}', 0],
    [
      'a function that is none',
      'llama',
      call('parameters', 'other'),
      call('parameters', 'other'),
      0,
    ],
    ['JSON and more', 'llama', `${call('parameters')} is it`, `${call('parameters')} is it`, 0],
  ]
  test.each(cases)('%s, as %s: %j', (_, format, said, text, nCalls) => {
    const expected = { text, calls: new Array(nCalls).fill(['weather', oslo]) }
    // However it is cut into tokens.
    expect(read(format, [said])).toEqual(expected)
    expect(read(format, [...said])).toEqual(expected)
    const pieces = said.split(/(\[TOOL_CALLS\]|\[ARGS\]|<\|python_tag\|>|<\|\/?tool_call\|>)/)
    expect(read(format, pieces, true)).toEqual(expected)
  })

  test.each<[ToolFormat, (args: string) => string]>([
    ['hermes', (args) => `<tool_call>{"name": "time", "arguments": ${args}}</tool_call>`],
    ['hermes', (args) => `<tool_call>{"arguments":${args} ,"name":"time"}`],
    ['phi', (args) => `<|tool_call|>[{"name": "time", "arguments": ${args}}]<|/tool_call|>`],
    ['mistral', (args) => `[TOOL_CALLS][{"name": "time", "arguments": ${args}}]`],
    ['mistral', (args) => `[TOOL_CALLS]time[ARGS]${args}`],
    ['llama', (args) => `{"name": "time", "parameters": ${args} }`],
  ])('arguments are handed on as they were written, by %s', (format, call) => {
    const args = [
      '{"id": 9838881662715881, "x": [1.0, -0, 1e999], "a": {"id": 2}}',
      '{"a": "\\"}, </tool_call> [TOOL_CALLS] \\\\", "b": "é\\u00e9"}',
      '{}',
    ]
    for (const written of args) {
      const parser = makeToolCallParser(format, { names, parametersOf, specialId: () => undefined })
      const said = [...call(written)].map((letter) => parser.push(1, letter))
      const calls = [...said, parser.end()].flatMap((one) => one.calls)
      expect(calls.map((one) => one.arguments)).toEqual([written])
    }
    const forced = makeForcedParser('time')
    forced.push(1, args[0] as string)
    expect(forced.end().calls[0]?.arguments).toBe(args[0])
  })

  test('a call that is cut within a string does not take the next one with it', () => {
    const said = '<tool_call>{"name": "w</tool_call>so<tool_call>{"name": "time"}</tool_call>'
    expect(read('hermes', [...said])).toEqual({
      text: '<tool_call>{"name": "w</tool_call>so',
      calls: [['time', {}]],
    })
  })

  test('what never becomes a call takes no longer the more of it there is', () => {
    for (const [format, bit] of [
      ['hermes', '<tool_call>{\\"</tool_call>'],
      ['hermes', '{"</tool_call>'],
      ['qwen-coder', '<tool_call>{\\"</tool_call>'],
      ['qwen-coder', '<tool_call>x</tool_call>'],
      ['mistral', '[TOOL_CALLS]"'],
    ] as const) {
      const said = `<tool_call>${bit.repeat(2000)}`
      const start = performance.now()
      expect(read(format, said.match(/.{1,20}/gs) as string[]).calls).toEqual([])
      // Minutes, when each mark was looked at anew.
      expect(performance.now() - start).toBeLessThan(4000)
    }
  })

  test('no text is lost, whatever is said', () => {
    const bits = [
      '<tool_call>',
      '</tool_call>',
      '<|tool_call|>',
      '<|/tool_call|>',
      '[TOOL_CALLS]',
      '<|python_tag|>',
      '[',
      '{',
      ' x',
      '<t',
      '"',
      '[]',
    ]
    fc.assert(
      fc.property(
        fc.constantFrom<ToolFormat>('hermes', 'qwen-coder', 'glm', 'phi', 'mistral', 'llama'),
        fc.array(fc.constantFrom(...bits)),
        (format, said) => {
          const { text, calls } = read(format, said)
          expect(calls).toEqual([])
          // An end without a beginning included.
          expect(text).toBe(said.join(''))
        },
      ),
      propertyRuns(300),
    )
  })

  test('the format is the chat template’s', () => {
    expect(toolFormatOf("{{ '<tool_call>' }}")).toBe('hermes')
    expect(toolFormatOf(phiTemplate)).toBe('phi')
    expect(toolFormatOf(graniteTemplate)).toBe('phi')
    expect(toolFormatOf("{{ '[TOOL_CALLS] [' }}")).toBe('mistral')
    expect(toolFormatOf('{"name": function name, "parameters": dictionary}')).toBe('llama')
    expect(toolFormatOf('{{ messages }}')).toBe(null)
  })
})

const tools = [
  {
    type: 'function' as const,
    function: {
      name: 'weather',
      parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
    },
  },
]
/** As Hermes' and Qwen's, in short: tools, messages, calls of earlier answers. */
const template = `{%- if tools %}{{ tools | tojson }}<tool_call>|{% endif -%}
{%- for message in messages %}{{ message.role }}:{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}[{{ call.function.name }} {{ call.function.arguments | tojson }}]{% endfor %};{% endfor -%}`

describe('over HTTP', () => {
  const said =
    'I look.<tool_call>\n{"name": "weather", "arguments": {"city": "Tromsø"}}\n</tool_call>'
  const messages = [{ role: 'user' as const, content: 'Is it warm?' }]
  let running: Awaited<ReturnType<typeof startScripted>>
  const url = () => `${running.url}/v1/chat/completions`
  beforeAll(async () => {
    running = await startScripted(await tokenizerWith(template))
  })
  afterAll(() => running.server.close())

  test('a call, whole and streamed; the answer to it goes to the template', async () => {
    running.script.next = { say: said }
    const client = new OpenAI({ baseURL: `${running.url}/v1`, apiKey: 'none' })
    const asked = { model: 'zipcache', messages, tools }
    const whole = await client.chat.completions.create(asked)
    const [choice] = whole.choices
    expect(choice?.finish_reason).toBe('tool_calls')
    expect(choice?.message).toMatchObject({
      content: 'I look.',
      tool_calls: [
        { type: 'function', function: { name: 'weather', arguments: '{"city": "Tromsø"}' } },
      ],
    })
    expect(running.prompts.at(-1)).toContain('"weather"')

    const runner = client.chat.completions.stream(asked)
    const final = await runner.finalChatCompletion()
    expect(final.choices[0]?.finish_reason).toBe('tool_calls')
    expect(final.choices[0]?.message.content).toBe('I look.')
    expect(final.choices[0]?.message.tool_calls?.[0]?.function).toMatchObject({
      name: 'weather',
      arguments: '{"city": "Tromsø"}',
    })

    running.script.next = { say: 'No.' }
    const { message } = choice!
    const result = {
      role: 'tool' as const,
      tool_call_id: message.tool_calls![0]!.id,
      content: '-3',
    }
    const next = await client.chat.completions.create({
      ...asked,
      messages: [...messages, message, result],
    })
    expect(next.choices[0]).toMatchObject({ finish_reason: 'stop', message: { content: 'No.' } })
    expect(next.choices[0]?.message.tool_calls).toBeUndefined()
    expect(running.prompts.at(-1)).toContain('[weather {"city": "Tromsø"}];tool:-3;')
  })

  test('the pieces of a stream: text, calls by their number, then the reason', async () => {
    running.script.next = { say: `${said}<tool_call>{"name": "time"}</tool_call>` }
    const events = await stream(url(), { messages, tools, logprobs: true })
    const choices = events.slice(0, -1).map(({ choices: [choice] }) => choice)
    const calls = choices.flatMap(({ delta }) => delta.tool_calls ?? [])
    expect(calls).toMatchObject([
      { index: 0, function: { name: 'weather' } },
      { index: 1, function: { name: 'time', arguments: '{}' } },
    ])
    expect(calls[0].id).not.toBe(calls[1].id)
    expect(choices.map(({ delta }) => delta.content ?? '').join('')).toBe('I look.')
    expect(choices.at(-1).finish_reason).toBe('tool_calls')
  })

  test('log-probabilities: the tokens, with their spaces and bytes, make up the text', async () => {
    running.script.next = { say: 'für die 😀 ' }
    const { body } = await post(url(), { messages, logprobs: true })
    const entries: { token: string; bytes: number[] }[] = body.choices[0].logprobs.content
    expect(Buffer.from(entries.flatMap(({ bytes }) => bytes)).toString()).toBe('für die 😀 ')
    // Half of a character has its own bytes, not those of the sign for what cannot be read.
    expect(
      entries.every(
        ({ bytes }) => Buffer.from(bytes).toString() !== '\ufffd' || bytes.length === 1,
      ),
    ).toBe(true)
  })

  test('log-probabilities of text completions tell parts of characters apart', async () => {
    running.script.next = { say: 'ü😀' }
    const texts = `${running.url}/v1/completions`
    const { body } = await post(texts, { prompt: 'a', logprobs: 0 })
    const { tokens } = body.choices[0].logprobs as { tokens: string[] }
    expect(tokens.join('')).toContain('bytes:\\xf0bytes:\\x9fbytes:\\x98bytes:\\x80')
  })

  test('parallel_tool_calls false: the first call alone, whole and streamed', async () => {
    running.script.next = { say: `${said}<tool_call>{"name": "time"}</tool_call>` }
    const callsOf = (own: readonly { function: { name: string } }[] = []) =>
      own.map((call) => call.function.name)
    for (const [parallel_tool_calls, names] of [
      [undefined, ['weather', 'time']],
      [true, ['weather', 'time']],
      [false, ['weather']],
    ] as const) {
      const body = { messages, tools, parallel_tool_calls }
      const [{ message, finish_reason }] = (await post(url(), body)).body.choices
      expect(callsOf(message.tool_calls)).toEqual(names)
      expect([message.content, finish_reason]).toEqual(['I look.', 'tool_calls'])
      const pieces = (await stream(url(), body)).slice(0, -1)
      const calls = pieces.flatMap(({ choices: [{ delta }] }) => delta.tool_calls ?? [])
      expect(callsOf(calls)).toEqual(names)
      expect(pieces.at(-1).choices[0].finish_reason).toBe('tool_calls')
    }
  })

  test('without tools, or with tool_choice none, what is said stays text', async () => {
    running.script.next = { say: said }
    for (const body of [{ messages }, { messages, tools, tool_choice: 'none' }]) {
      const { choices } = (await post(url(), body)).body
      expect(choices[0]).toMatchObject({ finish_reason: 'stop', message: { content: said } })
      expect(running.prompts.at(-1)).not.toContain('weather')
    }
  })

  const named = { type: 'function', function: { name: 'weather' } }
  test('a function by its name: the answer is its arguments', async () => {
    running.script.next = { say: '{"city": "Oslo"}' }
    const { body } = await post(url(), { messages, tools, tool_choice: named })
    expect(body.choices[0]).toMatchObject({
      finish_reason: 'stop', // as OpenAI has it
      message: {
        content: null,
        tool_calls: [{ function: { name: 'weather', arguments: '{"city": "Oslo"}' } }],
      },
    })
    running.script.next = { say: '{"name": "weather", "arguments": {"city": "Oslo"}}' }
    const required = await post(url(), { messages, tools, tool_choice: 'required' })
    expect(required.body.choices[0]).toMatchObject({
      finish_reason: 'tool_calls',
      message: { tool_calls: [{ function: { name: 'weather' } }] },
    })
  })

  test('some of the tools, by both APIs', async () => {
    const time = { name: 'time', parameters: { type: 'object' } }
    const chatTools = [...tools, { type: 'function', function: time }]
    const ask = async (path: string, body: object) => {
      running.script.next = { say: '{"name": "time", "arguments": {}}' }
      const { status, body: answer } = await post(`${running.url}/v1/${path}`, body)
      return [status, answer.error?.param ?? running.prompts.at(-1)?.includes('"weather"')]
    }
    const json = () => running.asked.at(-1)?.json
    const chat = (mode: string, ...allowed: string[]) => {
      const some = allowed.map((name) => ({ type: 'function', function: { name } }))
      const tool_choice = { type: 'allowed_tools', allowed_tools: { mode, tools: some } }
      return ask('chat/completions', { messages, tools: chatTools, tool_choice })
    }
    const respond = (mode: string, ...allowed: string[]) => {
      const some = allowed.map((name) => ({ type: 'function', name }))
      const flat = chatTools.map(({ type, function: own }) => ({ type, ...own }))
      const tool_choice = { type: 'allowed_tools', mode, tools: some }
      return ask('responses', { input: 'Warm?', tools: flat, tool_choice })
    }
    for (const choose of [chat, respond]) {
      expect(await choose('auto', 'time')).toEqual([200, false])
      expect(json()).toBeUndefined()
      expect(await choose('auto', 'time', 'weather')).toEqual([200, true])
      expect(await choose('required', 'time')).toEqual([200, false])
      expect(json()).toMatchObject({ anyOf: [{ properties: { name: { const: 'time' } } }] })
      const wrongs: [string, ...string[]][] = [['auto'], ['auto', 'other'], ['none', 'time']]
      for (const wrong of wrongs) {
        expect(await choose(...wrong)).toEqual([400, 'tool_choice'])
      }
    }
  })

  test('a function whose parameters do not say what they are takes an object', () => {
    const schemaOf = (parameters: unknown, forced: string | null) => {
      const tool = { type: 'function', function: { name: 'f', parameters } }
      const how = { isParallel: true, style: CHAT_TOOLS }
      const request = { tools: [tool], names: new Set(['f']), forced, ...how }
      return forcedSchema(request)
    }
    for (const none of [undefined, null, {}])
      expect(schemaOf(none, 'f')).toEqual({ type: 'object' })
    const properties = { a: { type: 'null' } }
    expect(schemaOf({ properties }, 'f')).toEqual({ type: 'object', properties })
    expect(schemaOf({ description: 'none' }, null)).toMatchObject({
      anyOf: [{ properties: { arguments: { type: 'object' } } }],
    })
    expect(schemaOf({ anyOf: [{ type: 'object' }] }, 'f')).toEqual({ anyOf: [{ type: 'object' }] })
  })

  test.each([
    ['a choice', { tool_choice: 'any' }, 'tool_choice'],
    ['no tools', { tools: [], tool_choice: 'required' }, 'tool_choice'],
    [
      'another function',
      { tool_choice: { type: 'function', function: { name: 'x' } } },
      'tool_choice',
    ],
    ['how many calls', { parallel_tool_calls: 1 }, 'parallel_tool_calls'],
    ['a tool', { tools: [{ type: 'function' }] }, 'tools[0]'],
    [
      'a name',
      { tools: [{ type: 'function', function: { name: 'a b' } }] },
      'tools[0].function.name',
    ],
    [
      'parameters',
      { tools: [{ type: 'function', function: { name: 'a', parameters: 1 } }] },
      'tools[0].function.parameters',
    ],
    [
      'two wishes',
      { tool_choice: 'required', response_format: { type: 'json_object' } },
      'response_format',
    ],
    ['calls', { messages: [{ role: 'assistant', tool_calls: [{}] }] }, 'messages[0].tool_calls'],
    [
      'their arguments',
      {
        messages: [
          { role: 'assistant', tool_calls: [{ function: { name: 'a', arguments: '{' } }] },
        ],
      },
      'messages[0].tool_calls',
    ],
  ])('%s that makes no sense', async (_, wrong, param) => {
    const { status, body } = await post(url(), { messages, tools, ...wrong })
    expect({ status, param: body.error?.param }).toEqual({ status: 400, param })
  })
})

test.each([
  ['Qwen2.5', qwenTemplate, ['<|im_end|>'], 'I look.\n'],
  ['Phi-4-mini', phiTemplate, ['<|tool_call|>', '<|/tool_call|>'], ''],
  ['Granite 3', graniteTemplate, ['<|tool_call|>'], ''],
])(
  '%s is told its calls as it wrote them, so that their cache can be gone on over',
  async (_, source, specials, spoken) => {
    const call = (city: string) => `{"name": "weather", "arguments": {"city": "${city}"}}`
    const said =
      spoken === ''
        ? `<|tool_call|>[${call('Oslo')}, ${call('Tromsø')}]${specials[1] ?? ''}`
        : `${spoken}<tool_call>\n${call('Oslo')}\n</tool_call>\n<tool_call>\n${call('Tromsø')}\n</tool_call>`
    const running = await startScripted(await tokenizerWith(source, specials))
    try {
      running.script.next = { say: said }
      const functions = tools.map(({ type, function: own }) => ({ type, ...own }))
      const asked = { tools: functions, input: 'Warm?' }
      const { id, output } = (await post(`${running.url}/v1/responses`, asked)).body
      const results = output
        .filter(({ type }: { type: string }) => type === 'function_call')
        .map(({ call_id }: { call_id: string }) => ({
          type: 'function_call_output',
          call_id,
          output: '-3',
        }))
      expect(results).toHaveLength(2)
      const next = { tools: functions, input: results, previous_response_id: id }
      await post(`${running.url}/v1/responses`, next)
      const [first, second] = running.prompts as [string, string]
      expect(second.slice(0, first.length + said.length)).toBe(first + said)
    } finally {
      await running.server.close()
    }
  },
)

test('a developer is the system to a template that knows none', async () => {
  const template = '{% for own in messages %}{{ own.role }}:{{ own.content }};{% endfor %}'
  const messages = [{ role: 'developer', content: 'Be short.' }]
  const asked = async (source: string) => {
    const running = await startScripted(await tokenizerWith(source))
    try {
      await post(`${running.url}/v1/chat/completions`, { messages })
      return running.prompts.at(-1)
    } finally {
      await running.server.close()
    }
  }
  expect(await asked(template)).toBe('system:Be short.;')
  expect(await asked(`${template}{# as developer #}`)).toBe('developer:Be short.;')
})

test('Phi-4-mini is told its tools with the system’s message, and its own calls as it wrote them', async () => {
  const marks = ['<|tool_call|>', '<|/tool_call|>']
  const running = await startScripted(await tokenizerWith(phiTemplate, marks))
  const url = `${running.url}/v1/chat/completions`
  try {
    const said = '<|tool_call|>[{"name": "weather", "arguments": {"city": "Oslo"}}]<|/tool_call|>'
    running.script.next = { say: said }
    const user = { role: 'user', content: 'Warm?' }
    const functions = JSON.stringify(tools.map((tool) => tool.function))
    const first = await post(url, { messages: [user], tools })
    const [choice] = first.body.choices
    expect(choice.message.tool_calls).toMatchObject([
      { function: { name: 'weather', arguments: '{"city": "Oslo"}' } },
    ])
    const system = 'You are a helpful assistant with some tools.'
    const [before, told, after] = (running.prompts.at(-1) as string).split(/<\|\/?tool\|>/)
    expect([before, after]).toEqual([
      `<|system|>${system}`,
      '<|end|><|user|>Warm?<|end|><|assistant|>',
    ])
    expect(JSON.stringify(JSON.parse(told as string))).toBe(functions)
    expect(told).toContain('[{"name": "weather", "parameters": {"type": "object", ')

    running.script.next = { say: 'No.' }
    const result = { role: 'tool', tool_call_id: choice.message.tool_calls[0].id, content: '-3' }
    const messages = [{ role: 'developer', content: 'Be short.' }, user, choice.message, result]
    await post(url, { messages, tools })
    expect(running.prompts.at(-1)).toBe(
      `<|system|>Be short.<|tool|>${told}<|/tool|><|end|><|user|>Warm?<|end|>` +
        `<|assistant|>${said}<|end|><|tool|>-3<|end|><|assistant|>`,
    )
    await post(url, { messages, tools, tool_choice: 'none' })
    expect(running.prompts.at(-1)).toMatch(/^<\|system\|>Be short\.<\|end\|>/)
  } finally {
    await running.server.close()
  }
})

test('what an argument is, where a model writes texts alone, its function says', async () => {
  const running = await startScripted(await tokenizerWith("{{ '<tool_call><function=' }}"))
  try {
    const argument = (name: string) => `<parameter=${name}>\n7\n</parameter>\n`
    const args = argument('city') + argument('days').replace('7', 'None')
    running.script.next = {
      say: `<tool_call>\n<function=weather>\n${args}</function>\n</tool_call>`,
    }
    const properties = { city: { type: 'string' }, days: { type: 'integer', nullable: true } }
    const asked = { name: 'weather', parameters: { type: 'object', properties } }
    const body = {
      messages: [{ role: 'user', content: 'Warm?' }],
      tools: [{ type: 'function', function: asked }],
    }
    const answer = await post(`${running.url}/v1/chat/completions`, body)
    const [call] = answer.body.choices[0].message.tool_calls
    expect(call.function).toEqual({ name: 'weather', arguments: '{"city": "7", "days": null}' })
  } finally {
    await running.server.close()
  }
})

test('without parallel calls each choice has its first one', async () => {
  const call = (name: string) => `<tool_call>{"name": "${name}"}</tool_call>`
  async function* events() {
    for (const [choice, text] of [call('a'), call('b'), call('c'), call('d')].entries()) {
      yield { kind: 'token', choice: choice % 2, token: { id: 1, logprob: 0, text } } as const
    }
  }
  const makeParser = () =>
    makeToolCallParser('hermes', { names, parametersOf, specialId: () => undefined })
  const found: [number, string][] = []
  const how = { isNamed: false, isParallel: false }
  for await (const event of withToolCalls(events(), makeParser, how)) {
    if (event.kind === 'call') found.push([event.choice, event.call.name])
  }
  expect(found).toEqual([
    [0, 'a'],
    [1, 'b'],
  ])
})

test('marks that are special tokens have no text, and are seen', async () => {
  const mistral = await tokenizerWith("{{ '[TOOL_CALLS]' }}", ['[TOOL_CALLS]', '[ARGS]'])
  const running = await startScripted(mistral)
  try {
    running.script.next = { say: '[TOOL_CALLS]weather[ARGS]{"city": "Oslo"}' }
    const body = { messages: [{ role: 'user', content: 'Warm?' }], tools }
    const answer = await post(`${running.url}/v1/chat/completions`, body)
    expect(answer.body.choices[0].message.tool_calls[0].function).toEqual({
      name: 'weather',
      arguments: '{"city": "Oslo"}',
    })
  } finally {
    await running.server.close()
  }
})
