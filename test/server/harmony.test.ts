/** Answers in OpenAI's harmony format: what they think, say and call, read and over HTTP. */
import fc from 'fast-check'
import OpenAI from 'openai'
import { HarmonyParser, type HarmonyPart } from '../../lib/chat/harmony'
import { type HarmonyMarks, harmonyMarks, isHarmonyTemplate } from '../../lib/model/harmony'
import type { ModelTokenizer } from '../../lib/model/tokenizer'
import { inTemplateWords, toolsInTemplateWords } from '../../lib/server/template-messages'
import { propertyRuns } from '../support/properties'
import { post, stream } from './running'
import { startScripted, tokenizerWith } from './scripted-model'

const kSpecials = ['<|channel|>', '<|message|>', '<|call|>', '<|constrain|>', '<|return|>']

/** What gpt-oss's template writes of messages and calls, and of tools their names. */
const template = `<|start|>system<|message|>Reasoning: {{ reasoning_effort or 'medium' }}<|end|>
{%- if tools %}<|start|>developer<|message|>{% for tool in tools %}// {{ tool.function.description + ';' }}{{ tool.function.name }}{% endfor %}<|end|>{% endif %}
{%- set last = namespace(name=none) %}
{%- for message in messages %}
{%- if message.role == 'assistant' and message.tool_calls is defined %}
{%- if message.content and message.thinking %}{{ raise_exception('both') }}{% endif %}
{%- if message.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ message.thinking }}<|end|>{% endif %}
{%- set call = message.tool_calls[0].function %}{% set last.name = call.name -%}
<|start|>assistant to=functions.{{ call.name }}<|channel|>commentary json<|message|>{{ call.arguments | tojson }}<|call|>
{%- elif message.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ message.content + '<|end|>' }}
{%- elif message.role == 'tool' %}<|start|>functions.{{ last.name }} to=assistant<|channel|>commentary<|message|>{{ message.content | tojson }}<|end|>
{%- else %}<|start|>{{ message.role }}<|message|>{{ message.content }}<|end|>{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}`

let tokenizer: ModelTokenizer
let marks: HarmonyMarks
beforeAll(async () => {
  tokenizer = await tokenizerWith(template, kSpecials)
  marks = harmonyMarks(tokenizer)!
})

const encode = (text: string) => tokenizer.encode(text, { addSpecialTokens: false })

interface Answer {
  text: string
  reasoning: string
  calls: [string, string][]
}

interface Reading {
  names?: readonly string[]
  isCut?: boolean
  prompt?: string
  ids?: readonly number[]
}

/** What a parser makes of an answer. */
function read(said: string, reading: Reading = {}): Answer {
  const { names = ['weather'], isCut = false, prompt = '<|start|>assistant' } = reading
  const context = { marks, tokenizer, names: new Set(names), separator: '\n' }
  const parser = new HarmonyParser({ ...context, prompt: encode(prompt) })
  const parts = (reading.ids ?? encode(said)).flatMap((id) => parser.push(id))
  return answerOf([...parts, ...parser.end(isCut)])
}

function answerOf(parts: readonly HarmonyPart[]): Answer {
  const answer: Answer = { text: '', reasoning: '', calls: [] }
  for (const part of parts) {
    if (part.kind === 'text') answer.text += part.text
    else if (part.kind === 'reasoning') answer.reasoning += part.text
    else if (part.kind === 'call') answer.calls.push([part.call.name, part.call.arguments])
  }
  return answer
}

const thought = '<|channel|>analysis<|message|>They ask.<|end|>'
const final = '<|start|>assistant<|channel|>final<|message|>2 + 2 = 4.'
const oslo = '{"city": "Oslo"}'

describe('what an answer says', () => {
  test.each<[string, string, Partial<Answer>]>([
    [
      'a reasoning and an answer',
      `${thought}${final}<|return|>`,
      { reasoning: 'They ask.', text: '2 + 2 = 4.' },
    ],
    ['an answer alone', '<|channel|>final<|message|>Hi', { text: 'Hi' }],
    [
      'a call, its function with the channel',
      `${thought}<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>${oslo}<|call|>`,
      { reasoning: 'They ask.', calls: [['weather', oslo]] },
    ],
    [
      'a call whose end was a stop token',
      `<|channel|>commentary to=functions.weather<|constrain|>json<|message|>${oslo}`,
      { calls: [['weather', oslo]] },
    ],
    [
      'a call, its function with the role',
      `${thought}<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>${oslo}<|call|>`,
      { reasoning: 'They ask.', calls: [['weather', oslo]] },
    ],
    [
      'a call right behind the prompt',
      ` to=functions.weather<|channel|>commentary<|message|>${oslo}<|call|>`,
      { calls: [['weather', oslo]] },
    ],
    [
      'a call in the channel of thoughts',
      `<|channel|>analysis to=functions.weather code<|message|>${oslo}<|call|>`,
      { calls: [['weather', oslo]] },
    ],
    [
      'a call without the namespace',
      `<|channel|>commentary to=weather<|message|>${oslo}<|call|>`,
      { calls: [['weather', oslo]] },
    ],
    [
      'a call of a function without parameters',
      '<|channel|>commentary to=functions.weather<|message|><|call|>',
      { calls: [['weather', '{}']] },
    ],
    [
      'text before a call',
      `${thought}<|start|>assistant<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.weather<|message|>${oslo}<|call|>`,
      { reasoning: 'They ask.', text: 'I look.', calls: [['weather', oslo]] },
    ],
    [
      'text twice, thoughts twice',
      `${thought}<|start|>assistant${thought}<|start|>assistant<|channel|>commentary<|message|>So.<|end|>${final}`,
      { reasoning: 'They ask.\nThey ask.', text: 'So.\n2 + 2 = 4.' },
    ],
    [
      'a call of a tool that is not there',
      '<|channel|>analysis to=browser.search<|message|>{"query": "x"}<|call|>',
      { reasoning: '{"query": "x"}' },
    ],
    [
      'a call that is no JSON',
      '<|channel|>commentary to=functions.weather<|message|>Oslo<|call|>',
      { text: 'Oslo' },
    ],
    ['another channel', '<|channel|>other<|message|>Hi<|end|>', { text: 'Hi' }],
    ['no channel', '<|message|>Hi<|end|>', { text: 'Hi' }],
    ['no mark at all', 'assistant to= final', { text: 'assistant to= final' }],
    ['no message mark', '<|channel|>final Hi there<|return|>', { text: ' Hi there' }],
    [
      'no message mark in a thought',
      `<|channel|>analysisHm<|end|>${final}`,
      {
        reasoning: 'Hm',
        text: '2 + 2 = 4.',
      },
    ],
    [
      'no message mark in a call',
      `<|channel|>commentary to=functions.weather<|constrain|>json${oslo}<|call|>`,
      { calls: [['weather', oslo]] },
    ],
    [
      'no start mark',
      `${thought}assistant<|channel|>final<|message|>Hi`,
      {
        reasoning: 'They ask.',
        text: 'Hi',
      },
    ],
    [
      'no end mark',
      '<|channel|>analysis<|message|>Hm<|channel|>final<|message|>Hi',
      {
        reasoning: 'Hm',
        text: 'Hi',
      },
    ],
    ['text behind a message', `${thought}Hi`, { reasoning: 'They ask.', text: 'Hi' }],
    [
      'marks where they mean nothing',
      '<|channel|>final<|message|>a<|message|>b<|constrain|>c',
      {
        text: 'abc',
      },
    ],
  ])('%s', (_, said, expected) => {
    expect(read(said)).toEqual({ text: '', reasoning: '', calls: [], ...expected })
  })

  test('without functions, what would be a call is text', () => {
    const said = `<|channel|>commentary to=functions.weather<|message|>${oslo}<|call|>`
    expect(read(said, { names: [] })).toEqual({ text: oslo, reasoning: '', calls: [] })
  })

  test('marks that are written out, not meant, are text', () => {
    const spelt = [...'<|end|>'].flatMap((letter) => encode(letter))
    const ids = [...encode('<|channel|>final<|message|>It is '), ...spelt, ...encode('.')]
    expect(read('', { ids }).text).toBe('It is <|end|>.')
  })

  test('an answer goes on with the prompt’s last message', () => {
    const prompt =
      '<|start|>user<|message|>Hi<|end|><|start|>assistant<|channel|>final<|message|>So'
    expect(read(' it is.<|return|>', { prompt }).text).toBe(' it is.')
    expect(read(`${final.slice('<|start|>'.length)}`, { prompt: '<|start|>' }).text).toBe(
      '2 + 2 = 4.',
    )
  })

  test('half a character ends where its message does', () => {
    const half = encode('é').slice(0, 1)
    const ids = [
      ...encode('<|channel|>analysis<|message|>a'),
      ...half,
      ...encode(`<|end|>${final}`),
    ]
    expect(read('', { ids })).toEqual({ reasoning: 'a\uFFFD', text: '2 + 2 = 4.', calls: [] })
  })

  const whole = `${thought}<|start|>assistant<|channel|>commentary<|message|>Für dich.<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>${oslo}`

  test('wherever an answer is cut, it gives what is there, and no header', () => {
    const ids = encode(whole)
    const all = read(whole)
    for (let n = 0; n <= ids.length; n++) {
      const { text, reasoning, calls } = read('', { ids: ids.slice(0, n), isCut: true })
      expect('They ask.'.startsWith(reasoning)).toBe(true)
      if (calls.length > 0) expect({ text, calls }).toEqual({ text: all.text, calls: all.calls })
      // A call that is cut is text, as far as it is there.
      else expect(`Für dich.\n${oslo}`.startsWith(text.replace('\uFFFD', ''))).toBe(true)
    }
  })

  test('however it is cut into tokens, it says the same', () => {
    const pieces = whole.split(/(<\|[a-z]+\|>)/)
    fc.assert(
      fc.property(fc.array(fc.nat({ max: 12 }), { minLength: 1 }), (cuts) => {
        let c = 0
        const ids = pieces.flatMap((piece) => {
          if (piece.startsWith('<|')) return encode(piece)
          const parts: number[] = []
          for (let at = 0; at < piece.length; ) {
            const n = (cuts[c++ % cuts.length] as number) + 1
            parts.push(...encode(piece.slice(at, at + n)))
            at += n
          }
          return parts
        })
        expect(read('', { ids })).toEqual(read(whole))
      }),
      propertyRuns(100),
    )
  })

  test('no text of a message is lost, whatever stands around it', () => {
    const bits = [
      ...kSpecials,
      '<|start|>',
      '<|end|>',
      'assistant',
      'analysis',
      'final',
      ' to=x',
      'X1 ',
    ]
    fc.assert(
      fc.property(fc.array(fc.constantFrom(...bits)), fc.boolean(), (said, isCut) => {
        const ids = said.flatMap((bit) => encode(bit))
        const { text, reasoning } = read('', { ids, isCut })
        expect(text + reasoning).not.toContain('<|')
        // What comes behind a message mark, up to the next header.
        const spoken = said.join('').split('<|message|>').slice(1)
        const words = spoken.map((one) => one.split(/<\|(?:start|channel|end|call|return)\|>/)[0])
        const count = words.join('').split('X1').length - 1
        expect((text + reasoning).split('X1').length - 1).toBeGreaterThanOrEqual(count)
      }),
      propertyRuns(300),
    )
  })

  test('the format is told by the template and the special tokens', async () => {
    expect(isHarmonyTemplate(template)).toBe(true)
    expect(isHarmonyTemplate(template.replaceAll('<|call|>', ''))).toBe(false)
    expect(isHarmonyTemplate('<|start|>{{ messages }}<|end|>')).toBe(false)
    expect(marks).toMatchObject({ start: 301, end: 300, channel: 302, constrain: 305, return: 306 })
    const without = await tokenizerWith(template, ['<|channel|>', '<|message|>'])
    expect(harmonyMarks(without)).toBe(null)
    const least = await tokenizerWith(template, kSpecials.slice(0, 3))
    expect(harmonyMarks(least)).toMatchObject({ constrain: null, return: null })
  })
})

describe('messages in the words of gpt-oss’s template', () => {
  const call = (id: string, name = 'weather') => ({
    id,
    type: 'function',
    function: { name, arguments: { city: id } },
  })
  const words = (messages: { role: string; content: unknown; [key: string]: unknown }[]) =>
    inTemplateWords(template, messages, [])

  test('calls of one message come one by one, each with its result', () => {
    const result = (id: string) => ({ role: 'tool', tool_call_id: id, content: `is ${id}` })
    const asked = { role: 'assistant', content: null, tool_calls: [call('a'), call('b')] }
    expect(words([asked, result('b'), result('a'), { role: 'user', content: 'x' }])).toEqual([
      { role: 'assistant', content: '', thinking: '', tool_calls: [call('a')] },
      result('a'),
      { role: 'assistant', content: '', thinking: '', tool_calls: [call('b')] },
      result('b'),
      { role: 'user', content: 'x' },
    ])
    // A result of a call that nobody made is not lost.
    expect(words([{ ...asked, tool_calls: [call('a')] }, result('z')]).at(-1)).toEqual(result('z'))
  })

  test('what was thought before a call, and said', () => {
    const asked = { role: 'assistant', content: 'I look.', tool_calls: [call('a')] }
    const [only] = words([{ ...asked, reasoning_content: 'Hm.' }])
    expect(only).toMatchObject({ content: '', thinking: 'Hm.\nI look.' })
    const [said] = words([{ role: 'assistant', content: 'Hi', reasoning_content: 'Hm.' }])
    expect(said).toEqual({ role: 'assistant', content: 'Hi', thinking: 'Hm.' })
    const [none] = words([{ role: 'assistant', content: 'Hi', tool_calls: [] }])
    expect(none).toEqual({ role: 'assistant', content: 'Hi' })
  })

  test('systems at the beginning are one', () => {
    const system = (content: string) => ({ role: 'system', content })
    const user = { role: 'user', content: 'x' }
    expect(words([system('a'), { role: 'developer', content: 'b' }, user])).toEqual([
      system('a\n\nb'),
      user,
    ])
    expect(words([user])).toEqual([user])
  })

  test('a function without a description', () => {
    const tool = { type: 'function', function: { name: 'f' } }
    expect(toolsInTemplateWords(template, [tool])).toEqual([
      { type: 'function', function: { name: 'f', description: '' } },
    ])
    expect(toolsInTemplateWords('{{ tools }}', [tool])).toEqual([tool])
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
const messages = [{ role: 'user' as const, content: 'Is it warm?' }]
const called = `${thought}<|start|>assistant<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>${oslo}<|call|>`
const answered = `${thought}${final}<|return|>`

describe('chat completions', () => {
  let running: Awaited<ReturnType<typeof startScripted>>
  const url = () => `${running.url}/v1/chat/completions`
  beforeAll(async () => {
    running = await startScripted(tokenizer)
  })
  afterAll(() => running.server.close())

  test('an answer, whole and streamed', async () => {
    running.script.next = { say: answered }
    const { body } = await post(url(), { messages, logprobs: true })
    const [{ message, finish_reason, logprobs }] = body.choices
    expect(finish_reason).toBe('stop')
    expect(message).toEqual({
      role: 'assistant',
      content: '2 + 2 = 4.',
      refusal: null,
      reasoning_content: 'They ask.',
    })
    const tokens: { token: string }[] = logprobs.content
    expect(tokens.map(({ token }) => token).join('')).toBe('2 + 2 = 4.')
    const nThought = encode('They ask.').length
    expect(body.usage.completion_tokens_details).toEqual({ reasoning_tokens: nThought })
    expect(running.asked.at(-1)?.stopTokens).toEqual([marks.call, marks.return])

    const events = await stream(url(), { messages })
    const deltas = events.slice(0, -1).map(({ choices: [{ delta }] }) => delta)
    expect(deltas.map(({ reasoning_content = '' }) => reasoning_content).join('')).toBe('They ask.')
    expect(deltas.map(({ content = '' }) => content).join('')).toBe('2 + 2 = 4.')
    expect(events.at(-2).choices[0].finish_reason).toBe('stop')
    expect(JSON.stringify(events)).not.toMatch(/<\||analysis|"assistant".*final/)
  })

  test('a call, whole and streamed, and the answer to its result', async () => {
    running.script.next = { say: called }
    const client = new OpenAI({ baseURL: `${running.url}/v1`, apiKey: 'none' })
    const asked = { model: 'zipcache', messages, tools }
    const [choice] = (await client.chat.completions.create(asked)).choices
    expect(choice?.finish_reason).toBe('tool_calls')
    expect(choice?.message).toMatchObject({
      content: 'I look.',
      reasoning_content: 'They ask.',
      tool_calls: [{ type: 'function', function: { name: 'weather', arguments: oslo } }],
    })
    const streamed = await client.chat.completions.stream(asked).finalChatCompletion()
    expect(streamed.choices[0]).toMatchObject({
      finish_reason: 'tool_calls',
      message: {
        content: 'I look.',
        tool_calls: [{ function: { name: 'weather', arguments: oslo } }],
      },
    })

    running.script.next = { say: answered }
    const { message } = choice!
    const tool_call_id = message.tool_calls![0]!.id
    const result = { role: 'tool' as const, tool_call_id, content: '-3' }
    const next = await client.chat.completions.create({
      ...asked,
      messages: [...messages, message, result],
    })
    expect(next.choices[0]).toMatchObject({
      finish_reason: 'stop',
      message: { content: '2 + 2 = 4.' },
    })
    expect(running.prompts.at(-1)).toBe(
      '<|start|>system<|message|>Reasoning: medium<|end|>' +
        '<|start|>developer<|message|>// ;weather<|end|>' +
        '<|start|>user<|message|>Is it warm?<|end|>' +
        '<|start|>assistant<|channel|>analysis<|message|>They ask.\nI look.<|end|>' +
        `<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>${oslo}<|call|>` +
        '<|start|>functions.weather to=assistant<|channel|>commentary<|message|>"-3"<|end|>' +
        '<|start|>assistant',
    )
  })

  test('an answer that is cut', async () => {
    running.script.next = { say: '<|channel|>analysis<|message|>They', finishReason: 'length' }
    const { choices } = (await post(url(), { messages })).body
    expect(choices[0]).toMatchObject({
      finish_reason: 'length',
      message: { content: '', reasoning_content: 'They' },
    })
    const say = '<|channel|>commentary to=functions.weather<|message|>{"ci'
    running.script.next = { say, finishReason: 'length' }
    const cut = (await post(url(), { messages, tools })).body.choices[0]
    expect(cut).toMatchObject({ finish_reason: 'length', message: { content: '{"ci' } })
    expect(cut.message.tool_calls).toBeUndefined()
  })

  test('a text that ends the answer is looked for in what it says alone', async () => {
    const say = `<|channel|>analysis<|message|>So = so.<|end|>${final} And more, and more.`
    running.script.next = { say, finishReason: 'length' }
    for (const [stop, content] of [
      ['= 4', '2 + 2 '],
      ['s', '2 + 2 = 4. And more, and more.'],
      [['final', ' And'], '2 + 2 = 4.'],
    ] as const) {
      const { choices } = (await post(url(), { messages, stop })).body
      const isFound = stop !== 's'
      expect(choices[0]).toMatchObject({
        finish_reason: isFound ? 'stop' : 'length',
        message: { content, reasoning_content: 'So = so.' },
      })
      expect(running.asked.at(-1)?.stop).toBeUndefined()
      // What would come behind it is not computed, but for a token under way.
      if (isFound) expect(running.said.count).toBeLessThan(encode(say).length - 5)
      const events = (await stream(url(), { messages, stop })).slice(0, -1)
      expect(events.map(({ choices: [{ delta }] }) => delta.content ?? '').join('')).toBe(content)
    }
  })

  test('choices are read each by itself, and end each by itself', async () => {
    running.script.next = { say: answered }
    const { choices } = (await post(url(), { messages, n: 3, stop: '=' })).body
    const message = { content: '2 + 2 ', reasoning_content: 'They ask.' }
    expect(choices).toMatchObject([{ message }, { message }, { message }])
  })

  test('a text completion is what the model wrote', async () => {
    running.script.next = { say: answered }
    const { choices } = (await post(`${running.url}/v1/completions`, { prompt: 'a' })).body
    expect(choices[0].text).toBe('analysisThey ask.assistantfinal2 + 2 = 4.')
  })

  test('reasoning_effort goes to the template', async () => {
    running.script.next = { say: answered }
    await post(url(), { messages, reasoning_effort: 'high' })
    expect(running.prompts.at(-1)).toContain('Reasoning: high')
    const { status, body } = await post(url(), { messages, reasoning_effort: 'much' })
    expect({ status, param: body.error.param }).toEqual({ status: 400, param: 'reasoning_effort' })
    expect(body.error.message).toContain('low, medium, high')
  })

  test('JSON and calls that are asked for are told to the engine, behind the thoughts', async () => {
    const schema = { type: 'object', properties: { a: { type: 'integer' } }, required: ['a'] }
    const response_format = { type: 'json_schema', json_schema: { name: 'x', schema } }
    const say = `${thought}<|start|>assistant<|channel|>final<|message|>{"a": 1}`
    running.script.next = { say }
    const [{ message }] = (await post(url(), { messages, response_format })).body.choices
    expect(message).toMatchObject({ content: '{"a": 1}', reasoning_content: 'They ask.' })
    expect(running.asked.at(-1)).toMatchObject({ harmony: { final: schema, calls: {} } })
    expect(running.asked.at(-1)?.json).toBeUndefined()
    await post(url(), { messages, tools, response_format })
    expect(running.asked.at(-1)?.harmony).toEqual({ final: schema, calls: { weather: true } })

    running.script.next = { say: called }
    const { parameters } = tools[0]!.function
    const named = { type: 'function', function: { name: 'weather' } }
    for (const [tool_choice, finish_reason] of [
      ['required', 'tool_calls'],
      [named, 'stop'],
    ] as const) {
      const [choice] = (await post(url(), { messages, tools, tool_choice })).body.choices
      expect(choice).toMatchObject({
        finish_reason,
        message: { tool_calls: [{ function: { name: 'weather', arguments: oslo } }] },
      })
      expect(running.asked.at(-1)?.harmony).toEqual({ calls: { weather: parameters } })
    }
  })
})

test('a template that reads no reasoning_effort', async () => {
  const running = await startScripted(await tokenizerWith('{{ messages[0].content }}'))
  try {
    const asked = { messages, reasoning_effort: 'low' }
    const { status, body } = await post(`${running.url}/v1/chat/completions`, asked)
    expect({ status, param: body.error.param }).toEqual({ status: 400, param: 'reasoning_effort' })
  } finally {
    await running.server.close()
  }
})

test('JSON behind a prompt that has begun the answer', async () => {
  const begun = `${template}{{ '<|channel|>final<|message|>' }}`
  const running = await startScripted(tokenizer, { chatTemplate: begun })
  try {
    const url = `${running.url}/v1/chat/completions`
    const response_format = { type: 'json_object' }
    const { status, body } = await post(url, { messages, response_format })
    expect({ status, param: body.error.param }).toEqual({ status: 400, param: 'response_format' })
    running.script.next = { say: '2 + 2 = 4.' }
    const { choices } = (await post(url, { messages })).body
    expect(choices[0].message).toEqual({ role: 'assistant', content: '2 + 2 = 4.', refusal: null })
  } finally {
    await running.server.close()
  }
})

test('a session goes on from before the answer whose thoughts are left out', async () => {
  const running = await startScripted(tokenizer)
  try {
    const url = `${running.url}/v1/chat/completions`
    const ask = async (said: object[], headers = {}) => {
      const { status, body } = await post(url, { messages: said, tools }, headers)
      expect(status).toBe(200)
      const { prompt_tokens, prompt_tokens_details } = body.usage
      const prompt = running.prompts.at(-1)
      const { message } = body.choices[0]
      return { message, prompt, length: prompt_tokens, cached: prompt_tokens_details.cached_tokens }
    }
    const session = { 'x-session-id': 'a' }
    const begun = encode('<|start|>assistant').length
    running.script.next = { say: answered }
    const first = await ask(messages, session)
    // A second try of the same.
    expect(await ask(messages, session)).toMatchObject({ cached: first.length - begun })
    const talk = [...messages, first.message, { role: 'user', content: 'Is it warm?' }]
    running.script.next = { say: called }
    const second = await ask(talk, session)
    expect(second.cached).toBe(first.length - begun)
    expect(second.prompt).not.toContain('They ask.')
    expect(second.prompt).toBe((await ask(talk)).prompt)

    // A call and its thoughts are told again, but not as they were said.
    const [call] = second.message.tool_calls
    const result = { role: 'tool', tool_call_id: call.id, content: '-3' }
    const turn = [...talk, second.message, result]
    running.script.next = { say: answered }
    const third = await ask(turn, session)
    expect(third.cached).toBe(second.length - begun)
    expect(third.prompt).toContain('They ask.')
    expect(third.prompt).toBe((await ask(turn)).prompt)
    // The next prompt leaves out what was thought behind the result.
    const last = [...turn, third.message, { role: 'user', content: 'Thanks.' }]
    const fourth = await ask(last, session)
    expect(fourth.cached).toBe(third.length - begun)
    expect(fourth.prompt).toBe((await ask(last)).prompt)
    // What somebody else says begins anew.
    expect(await ask([{ role: 'user', content: 'Hi' }], session)).toMatchObject({ cached: 0 })
    await fetch(`${running.url}/v1/sessions/a`, { method: 'DELETE' })
    expect(running.open.size).toBe(0)
  } finally {
    await running.server.close()
  }
})

describe('responses', () => {
  let running: Awaited<ReturnType<typeof startScripted>>
  let client: OpenAI
  beforeAll(async () => {
    running = await startScripted(tokenizer)
    client = new OpenAI({ baseURL: `${running.url}/v1`, apiKey: 'none' })
  })
  afterAll(() => running.server.close())
  const asked = {
    model: 'zipcache',
    tools: [{ type: 'function' as const, strict: false, ...tools[0]!.function }],
  }

  test('items of a reasoning, a message and a call; the next response goes on with them', async () => {
    running.script.next = { say: called }
    const first = await client.responses.create({ ...asked, input: 'Is it warm?' })
    expect(first.output).toMatchObject([
      { type: 'reasoning', summary: [], content: [{ type: 'reasoning_text', text: 'They ask.' }] },
      { type: 'message', content: [{ type: 'output_text', text: 'I look.' }] },
      { type: 'function_call', name: 'weather', arguments: oslo },
    ])
    expect(first.output[0]?.id).toMatch(/^rs_/)
    expect(first.usage?.output_tokens_details.reasoning_tokens).toBe(encode('They ask.').length)

    running.script.next = { say: answered }
    const [, , call] = first.output as [unknown, unknown, OpenAI.Responses.ResponseFunctionToolCall]
    const result = { type: 'function_call_output' as const, call_id: call.call_id, output: '-3' }
    const next = await client.responses.create({
      ...asked,
      previous_response_id: first.id,
      input: [result],
    })
    expect(next.output_text).toBe('2 + 2 = 4.')
    const prompt = running.prompts.at(-1)
    expect(prompt).toContain(
      '<|start|>assistant<|channel|>analysis<|message|>They ask.\nI look.<|end|>' +
        `<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>${oslo}<|call|>` +
        '<|start|>functions.weather to=assistant',
    )
    // The same, said by the client, and by references.
    const user = { role: 'user' as const, content: 'Is it warm?' }
    for (const items of [
      first.output,
      first.output.map(({ id }) => ({ type: 'item_reference' as const, id: id as string })),
    ]) {
      const input = [user, ...items, result] as OpenAI.Responses.ResponseInput
      await client.responses.create({ ...asked, input })
      expect(running.prompts.at(-1)).toBe(prompt)
    }
  })

  test('the events of a stream', async () => {
    running.script.next = { say: answered }
    const types: string[] = []
    const deltas = { reasoning: '', text: '' }
    const events = await client.responses.create({ ...asked, input: 'Hi', stream: true })
    for await (const event of events) {
      if (types.at(-1) !== event.type) types.push(event.type)
      if (event.type === 'response.reasoning_text.delta') deltas.reasoning += event.delta
      if (event.type === 'response.output_text.delta') deltas.text += event.delta
      if (event.type === 'response.completed') {
        expect(event.response.output.map(({ type }) => type)).toEqual(['reasoning', 'message'])
      }
    }
    expect(deltas).toEqual({ reasoning: 'They ask.', text: '2 + 2 = 4.' })
    expect(types).toEqual([
      'response.created',
      'response.in_progress',
      'response.output_item.added',
      'response.content_part.added',
      'response.reasoning_text.delta',
      'response.reasoning_text.done',
      'response.content_part.done',
      'response.output_item.done',
      'response.output_item.added',
      'response.content_part.added',
      'response.output_text.delta',
      'response.output_text.done',
      'response.content_part.done',
      'response.output_item.done',
      'response.completed',
    ])
  })

  test('OpenAI’s client puts a stream together', async () => {
    running.script.next = { say: called }
    const whole = await client.responses.stream({ ...asked, input: 'Hi' }).finalResponse()
    expect(whole.output).toMatchObject([
      { type: 'reasoning', content: [{ text: 'They ask.' }] },
      { type: 'message', content: [{ text: 'I look.' }] },
      { type: 'function_call', name: 'weather', arguments: oslo },
    ])
    // Thoughts that come one after the other are items of their own.
    running.script.next = { say: `${thought}<|start|>assistant${answered}` }
    const { output } = await client.responses.create({ ...asked, input: 'Hi' })
    expect(output.map(({ type }) => type)).toEqual(['reasoning', 'reasoning', 'message'])
  })

  test('a reasoning that is cut, and how much there is to be', async () => {
    running.script.next = { say: '<|channel|>analysis<|message|>They', finishReason: 'length' }
    const cut = await client.responses.create({
      ...asked,
      input: 'Hi',
      reasoning: { effort: 'low' },
    })
    expect(running.prompts.at(-1)).toContain('Reasoning: low')
    expect(cut.reasoning?.effort).toBe('low')
    expect(cut.status).toBe('incomplete')
    expect(cut.output).toMatchObject([
      { type: 'reasoning', status: 'incomplete', content: [{ text: 'They' }] },
    ])
    const much = { ...asked, input: 'Hi', reasoning: { effort: 'minimal' as const } }
    await expect(client.responses.create(much)).rejects.toMatchObject({
      status: 400,
      param: 'reasoning.effort',
    })
  })
})
