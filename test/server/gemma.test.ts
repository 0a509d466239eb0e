/** Chats of Gemma 4: what its template is given, and what its models think, say and call. */
import fc from 'fast-check'
import OpenAI from 'openai'
import { ThoughtParser, thoughtMarks } from '../../lib/chat/thoughts'
import { makeToolCallParser, toolFormatOf } from '../../lib/chat/tool-calls'
import { withThoughts } from '../../lib/server/thoughts'
import { propertyRuns } from '../support/properties'
import { kFirstGemmaTemplate, kGemmaMarks, kGemmaTemplate } from './gemma-template'
import { post, stream } from './running'
import { startScripted, tokenizerWith } from './scripted-model'

const q = (text: string) => `<|"|>${text}<|"|>`
const parameters = {
  type: 'object',
  properties: {
    city: { type: 'string' },
    days: { type: ['integer', 'null'] },
    near: { anyOf: [{ type: 'string' }, { type: 'null' }] },
    at: {},
  },
}
const weather = { type: 'function', function: { name: 'weather', description: 'W.', parameters } }

/** What a parser of calls makes of a text; marks are special tokens, or plain text. */
function read(text: string, areSpecial: boolean) {
  const idOf = (mark: string) => 1000 + kGemmaMarks.indexOf(mark)
  const parser = makeToolCallParser('gemma', {
    names: new Set(['weather', 'time']),
    parametersOf: (name) => (name === 'weather' ? parameters : undefined),
    specialId: (mark) => (areSpecial && kGemmaMarks.includes(mark) ? idOf(mark) : undefined),
  })
  const marks = kGemmaMarks.map((mark) => mark.replace(/[|]/g, '\\|')).join('|')
  const pieces = areSpecial ? text.split(new RegExp(`(${marks})`)) : [...text]
  const said = pieces.map((piece) =>
    areSpecial && kGemmaMarks.includes(piece)
      ? parser.push(idOf(piece), '')
      : parser.push(1, piece),
  )
  said.push(parser.end())
  return {
    text: said.map((one) => one.text).join(''),
    calls: said.flatMap(({ calls }) => calls.map((call) => [call.name, call.arguments])),
  }
}

describe('calls', () => {
  const call = (args: string, name = 'weather') => `<|tool_call>call:${name}{${args}}<tool_call|>`

  test.each<[string, string, string]>([
    ['nothing', '', '{}'],
    ['a text', `city:${q('Oslo')}`, '{"city": "Oslo"}'],
    ['an empty text', `city:${q('')}`, '{"city": ""}'],
    [
      'a text of what is no sign there',
      `city:${q('{"a": [1, 2]},\n\\ <tool_call|> }')}`,
      '{"city": "{\\"a\\": [1, 2]},\\n\\\\ <tool_call|> }"}',
    ],
    ['other values', 'a:3,b:-1.50,c:true,d:null', '{"a": 3, "b": -1.50, "c": true, "d": null}'],
    ['a number as it is written', 'a:12345678901234567890', '{"a": 12345678901234567890}'],
    [
      'values within each other',
      `a:[${q('x')},{b:{c:[]},d:${q('y')}}],e:{}`,
      '{"a": ["x", {"b": {"c": []}, "d": "y"}], "e": {}}',
    ],
    ['white space', ` a : 1 ,\n b:[ 1 , ${q(' x ')} ] `, '{"a": 1, "b": [1, " x "]}'],
    ['keys as texts', `${q('a:b')}:1,"c":2`, '{"a:b": 1, "c": 2}'],
    ['a key of other signs', 'a b-c.$d:1', '{"a b-c.$d": 1}'],
    ['texts as JSON has them', 'city:"\\"O\\", {",a:"\\d"', '{"city": "\\"O\\", {", "a": "\\\\d"}'],
    [
      'bare words',
      'city:New York,at:on Monday,a:[b]',
      '{"city": "New York", "at": "on Monday", "a": ["b"]}',
    ],
    ['a number where there is a text', 'city:5,days:5', '{"city": "5", "days": 5}'],
    ["Python's words", 'days:None,a:True', '{"days": null, "a": true}'],
  ])('%s', (_, args, expected) => {
    for (const areSpecial of [true, false]) {
      const calls = [['weather', expected]]
      expect(read(call(args), areSpecial)).toEqual({ text: '', calls })
      // Some leave marks out.
      for (const text of [
        `call:weather{${args}}<tool_call|>`,
        `<|tool_call>call:weather{${args}}`,
      ]) {
        expect(read(text, areSpecial)).toEqual({ text: '', calls })
      }
      expect(read(`<|tool_call>:weather{${args}}<tool_call|>`, areSpecial)).toEqual({
        text: '',
        calls,
      })
    }
  })

  test('text, then several', () => {
    const text = `I look.\n${call(`city:${q('Oslo')}`)}${call('', 'time')}`
    const calls = [
      ['weather', '{"city": "Oslo"}'],
      ['time', '{}'],
    ]
    for (const areSpecial of [true, false]) {
      expect(read(text, areSpecial)).toEqual({ text: 'I look.', calls })
    }
  })

  test.each([
    '<|tool_call>call:weather{city:<|"|>Os',
    call('city:'),
    call('city'),
    call(':1'),
    call('a:1,'),
    call('a:1}'),
    call('a:[1'),
    call('a:{b:1'),
    call(`a:${q('x')}${q('y')}`),
    call('a:a<b'),
    call('"\\x":1,"a'),
    call(`${'a:{'.repeat(600)}${'}'.repeat(600)}`),
    '<|tool_call>call:weather<tool_call|>',
    '<|tool_call>call:weather(city)<tool_call|>',
    'The <|tool_call> mark, and call:me{}',
  ])('what is none stays text: %s', (text) => {
    for (const areSpecial of [true, false])
      expect(read(text, areSpecial)).toEqual({ text, calls: [] })
  })

  test('any object comes through', () => {
    const key = fc
      .stringMatching(/^[\w.$ -]*[\w.$-]$/)
      .filter((own) => !/^\s|^__proto__$/.test(own))
    const text = fc.string({ unit: 'binary' }).filter((own) => !own.includes('<|"|>'))
    const { tree } = fc.letrec((tie) => ({
      tree: fc.oneof(
        { maxDepth: 4 },
        text,
        fc.integer(),
        fc.double({ noNaN: true, noDefaultInfinity: true }),
        fc.boolean(),
        fc.constant(null),
        fc.array(tie('tree'), { maxLength: 3 }),
        fc.dictionary(key, tie('tree'), { maxKeys: 3 }),
      ),
    }))
    const written = (value: unknown): string => {
      if (typeof value === 'string') return q(value)
      if (Array.isArray(value)) return `[${value.map(written).join(',')}]`
      if (typeof value !== 'object' || value === null) return JSON.stringify(value)
      return `{${Object.entries(value)
        .map(([own, one]) => `${own}:${written(one)}`)
        .join(',')}}`
    }
    fc.assert(
      fc.property(fc.dictionary(key, tree, { maxKeys: 4 }), fc.boolean(), (args, areSpecial) => {
        const { text: said, calls } = read(
          `<|tool_call>call:f${written(args)}<tool_call|>`,
          areSpecial,
        )
        expect(said).toBe('')
        expect(JSON.parse(calls[0]?.[1] ?? '')).toEqual(JSON.parse(JSON.stringify(args)))
      }),
      propertyRuns(300),
    )
  })

  test('many marks within a text take no time', () => {
    const text = '<tool_call|>'.repeat(20_000)
    expect(read(call(`city:${q(text)}`), true).calls).toEqual([
      ['weather', JSON.stringify({ city: text }).replace(':', ': ')],
    ])
  })
})

describe('thoughts', () => {
  const marks = thoughtMarks(kGemmaTemplate)!
  const ids = new Map([...kGemmaMarks.entries()].map(([i, mark]) => [mark, 1000 + i]))
  const special = { tokenId: (mark: string) => ids.get(mark), specialIds: new Set(ids.values()) }
  const plain = { tokenId: () => undefined, specialIds: new Set<number>() }

  /** What is thought and said, of pieces that are a token each. */
  async function tell(pieces: readonly string[], prompt: string, tokenizer = special) {
    async function* answer() {
      for (const piece of pieces) {
        const id = tokenizer.tokenId(piece)
        const text = id === undefined ? piece : ''
        yield { kind: 'token' as const, choice: 0, token: { id: id ?? 1, text, logprob: -1 } }
      }
      yield { kind: 'end' as const, choice: 0, finishReason: 'stop' as const }
    }
    const told = { thought: '', said: '', tokens: [] as string[], counted: 0 }
    const reading = {
      makeParser: () => new ThoughtParser({ marks, tokenizer, prompt }),
      stop: [],
      stopChoice() {},
      countReasoning: () => told.counted++,
    }
    for await (const event of withThoughts(answer(), reading)) {
      if (event.kind === 'reasoning') told.thought += event.text
      else if (event.kind === 'text') told.said += event.text
      else if (event.kind === 'token') {
        told.said += event.token.text
        told.tokens.push(event.token.text)
      }
    }
    return told
  }

  test.each<[string, string, string, string, string]>([
    ['one', '', '<|channel>thought\nHm.\n\nSo.\n<channel|>Yes.', 'Hm.\n\nSo.', 'Yes.'],
    ['an empty one', '', '<|channel>thought\n<channel|>Yes.', '', 'Yes.'],
    ['one that is but its name', '', '<|channel>thought<channel|>Yes.', '', 'Yes.'],
    ['one without a name', '', '<|channel>Hm.<channel|>Yes.', 'Hm.', 'Yes.'],
    ['one that begins like its name', '', '<|channel>thou art<channel|>Yes.', 'thou art', 'Yes.'],
    ['none', '', 'Yes.', '', 'Yes.'],
    ['one that the prompt begins', '<|channel>thought\n', 'Hm.<channel|>Yes.', 'Hm.', 'Yes.'],
    [
      'one that the prompt begins without a name',
      '<|channel>',
      'thought\nHm.<channel|>Yes.',
      'Hm.',
      'Yes.',
    ],
    ['one that the prompt has whole', '<|channel>thought\n<channel|>', 'Yes.', '', 'Yes.'],
    [
      'several',
      '',
      '<|channel>thought\nA.\n<channel|>B.<|channel>thought\n<channel|> C.<|channel>thought\nD.<channel|>',
      'A.\nD.',
      'B.C.',
    ],
    ['one behind what is said', '', 'B.<|channel>thought\nA.', 'A.', 'B.'],
    ['one that does not end', '', '<|channel>thought\nHm', 'Hm', ''],
    ['one that is its name, and does not end', '', '<|channel>thought', '', ''],
    [
      'a call within one',
      '',
      '<|channel>thought\nHm.<|tool_call>call:f{}',
      'Hm.',
      '<|tool_call>call:f{}',
    ],
  ])('%s', async (_, prompt, text, thought, said) => {
    const split = (pattern: RegExp) => text.split(pattern).filter((piece) => piece !== '')
    const marked = await tell(split(/(<\|?\w+\|?>|\s)/), prompt)
    expect(marked).toMatchObject({ thought, said })
    expect(await tell([...text], prompt, plain)).toMatchObject({ thought, said })
    expect(await tell([text], prompt, plain)).toMatchObject({ thought, said })
  })

  test('a mark of an end alone says nothing; tokens keep their texts, and those of thoughts are counted', async () => {
    const pieces = [
      'Yes',
      '.',
      '<channel|>',
      ' No',
      '<|channel>',
      'thought',
      '\n',
      'Hm',
      '<channel|>',
      '!',
    ]
    expect(await tell(pieces, '')).toMatchObject({
      thought: 'Hm',
      said: 'Yes. No!',
      tokens: ['Yes', '.', '', ' No', '', '!'],
      counted: 3,
    })
  })
})

describe('over HTTP', () => {
  let running: Awaited<ReturnType<typeof startScripted>>
  const ask = (body: object) =>
    post(`${running.url}/v1/chat/completions`, {
      model: 'zipcache',
      messages: [{ role: 'user', content: 'Oslo?' }],
      tools: [weather],
      ...body,
    })
  const say = (text: string) => {
    running.script.next = { say: text }
  }
  const calling = `<|channel>thought\nHm.\n<channel|><|tool_call>call:weather{city:${q('Oslo')},days:2}<tool_call|>`
  beforeAll(async () => {
    running = await startScripted(await tokenizerWith(kGemmaTemplate, kGemmaMarks))
  })
  afterAll(() => running.server.close())

  test('an answer with a thought and a call', async () => {
    say(calling)
    const { body } = await ask({ enable_thinking: true })
    expect(body.choices).toEqual([
      {
        index: 0,
        message: {
          role: 'assistant',
          content: null,
          refusal: null,
          reasoning_content: 'Hm.',
          tool_calls: [
            {
              id: expect.any(String),
              type: 'function',
              function: { name: 'weather', arguments: '{"city": "Oslo", "days": 2}' },
            },
          ],
        },
        logprobs: null,
        finish_reason: 'tool_calls',
      },
    ])
    expect(running.prompts.at(-1)).toBe(
      `<|turn>system\n<|think|>\n<|tool>declaration:weather{description:${q('W.')},parameters:{properties:{` +
        `at:{type:${q('')}},city:{type:${q('STRING')}},days:{type:${q("['INTEGER', 'NULL']")}},` +
        `near:{type:${q("['STRING', 'NULL']")}}}}}<tool|><turn|>\n<|turn>user\nOslo?<turn|>\n<|turn>model\n`,
    )
    const tokenizer = await tokenizerWith(kGemmaTemplate, kGemmaMarks)
    const ends = ['<turn|>', '<|tool_response>'].map((mark) => tokenizer.tokenId(mark))
    expect(running.asked.at(-1)?.stopTokens).toEqual(ends)
    await ask({ ignore_eos: true })
    expect(running.asked.at(-1)?.stopTokens ?? []).toEqual([])
  })

  test('a stream', async () => {
    say(`<|channel>thought\nHm.\n<channel|>I look.<|tool_call>call:weather{}<tool_call|>`)
    const chunks = await stream(`${running.url}/v1/chat/completions`, {
      model: 'zipcache',
      messages: [{ role: 'user', content: 'Oslo?' }],
      tools: [weather],
    })
    const deltas = chunks.flatMap((chunk) => (chunk === '[DONE]' ? [] : [chunk.choices[0].delta]))
    const joined = (key: string) => deltas.map((delta) => delta[key] ?? '').join('')
    expect([joined('reasoning_content'), joined('content')]).toEqual(['Hm.', 'I look.'])
    expect(deltas.flatMap((delta) => delta.tool_calls ?? [])).toMatchObject([
      { index: 0, function: { name: 'weather', arguments: '{}' } },
    ])
    expect(chunks.at(-2).choices[0].finish_reason).toBe('tool_calls')
  })

  test('earlier calls and their results go to the template as it takes them', async () => {
    const messages = [
      { role: 'system', content: 'Be brief.' },
      { role: 'user', content: 'Oslo?' },
      {
        role: 'assistant',
        content: null,
        reasoning_content: 'Hm.',
        tool_calls: [
          {
            id: 'c1',
            type: 'function',
            function: {
              name: 'weather',
              arguments: '{"city":"Oslo","days":null,"a":{"b":[1.5,true]}}',
            },
          },
          { id: 'c2', type: 'function', function: { name: 'time', arguments: '{}' } },
        ],
      },
      { role: 'tool', tool_call_id: 'c1', content: '{"t": 3}' },
      { role: 'tool', tool_call_id: 'c2', content: 'noon' },
    ]
    const turn =
      '<|turn>system\nBe brief.<turn|>\n<|turn>user\nOslo?<turn|>\n<|turn>model\n<|channel>thought\nHm.\n<channel|>' +
      `<|tool_call>call:weather{a:{b:[1.5,true]},city:${q('Oslo')},days:null}<tool_call|><|tool_call>call:time{}<tool_call|>` +
      `<|tool_response>response:weather{value:${q('{"t": 3}')}}<tool_response|>` +
      `<|tool_response>response:time{value:${q('noon')}}<tool_response|>`
    say('3.')
    const { body } = await ask({ messages, tools: undefined })
    expect(body.choices[0].message.content).toBe('3.')
    expect(running.prompts.at(-1)).toBe(turn)
    // The template begins the thought.
    say('So.\n<channel|>3.')
    const thought = await ask({ messages, tools: undefined, enable_thinking: true })
    expect(thought.body.choices[0].message).toMatchObject({
      content: '3.',
      reasoning_content: 'So.',
    })
    await ask({
      messages: [
        ...messages,
        { role: 'assistant', content: '3.' },
        { role: 'user', content: 'So?' },
      ],
      tools: undefined,
    })
    expect(running.prompts.at(-1)).toBe(`${turn}3.<turn|>\n<|turn>user\nSo?<turn|>\n<|turn>model\n`)
  })

  test("the template of Gemma's first months takes results with their calls", async () => {
    const first = await startScripted(await tokenizerWith(kFirstGemmaTemplate, kGemmaMarks))
    const called = (content: string | null) => ({
      role: 'assistant',
      content,
      tool_calls: [{ id: 'c1', type: 'function', function: { name: 'weather', arguments: '{}' } }],
    })
    const result = (content: string, id = 'c1') => ({ role: 'tool', tool_call_id: id, content })
    const written = async (...messages: object[]) => {
      first.script.next = { say: '3.' }
      const { status } = await post(`${first.url}/v1/chat/completions`, {
        model: 'zipcache',
        messages: [{ role: 'user', content: 'Oslo?' }, ...messages],
      })
      expect(status).toBe(200)
      return first.prompts.at(-1)?.replace('<|turn>user\nOslo?<turn|>\n<|turn>model\n', '')
    }
    const call = '<|tool_call>call:weather{}<tool_call|>'
    const response = (value: string, name = 'weather') =>
      `<|tool_response>response:${name}{${value}}<tool_response|>`
    const three = response(`t:3,w:${q('fair')}`)
    expect(await written(called(null), result('{"t": 3, "w": "fair"}'))).toBe(call + three)
    expect(await written(called(null), result('[3]'), result('fair', 'c2'))).toBe(
      call + response(`value:${q('[3]')}`) + response(`value:${q('fair')}`, 'unknown'),
    )
    const user = { role: 'user', content: 'So?' }
    const asked = '<turn|>\n<|turn>user\nSo?<turn|>\n<|turn>model\n'
    expect(
      await written(
        called(null),
        result('{"t": 3, "w": "fair"}'),
        { role: 'assistant', content: '3.' },
        user,
      ),
    ).toBe(`${call}${three}3.${asked}`)
    expect(
      await written(called('I look.'), result('3'), { role: 'assistant', content: '3.' }, user),
    ).toBe(`${call}${response(`value:${q('3')}`)}I look.<turn|>\n<|turn>model\n3.${asked}`)
    await first.server.close()
  })

  test('a call that is asked for is held to the functions, in its own notation', async () => {
    const time = { type: 'function', function: { name: 'time', parameters: { type: 'object' } } }
    const ask2 = (tool_choice: unknown, own: object = {}) =>
      ask({ tools: [weather, time], tool_choice, ...own })
    say(calling.replace(/^.*<channel[|]>/s, ''))
    const named = await ask2({ type: 'function', function: { name: 'weather' } })
    expect(named.body.choices[0]).toMatchObject({
      message: { content: null, tool_calls: [{ function: { name: 'weather' } }] },
      finish_reason: 'stop',
    })
    // Types as they were asked for: the template has its own.
    const thoughts = { open: '<|channel>', close: '<channel|>' }
    expect(running.asked.at(-1)).toMatchObject({ gemmaCalls: { weather: parameters }, thoughts })
    expect(Object.keys(running.asked.at(-1)?.gemmaCalls ?? {})).toEqual(['weather'])
    expect(running.asked.at(-1)).not.toHaveProperty('json')
    say(calling)
    const any = await ask2('required', { enable_thinking: true })
    expect(any.body.choices[0]).toMatchObject({
      message: { reasoning_content: 'Hm.', tool_calls: [{ function: { name: 'weather' } }] },
      finish_reason: 'tool_calls',
    })
    expect(running.asked.at(-1)?.gemmaCalls).toEqual({
      weather: parameters,
      time: { type: 'object' },
    })
    // Cut by max_tokens.
    say('<|tool_call>call:weather{city:')
    const cut = await ask2('required')
    expect(cut.body.choices[0].message).toMatchObject({ content: '<|tool_call>call:weather{city:' })
    // JSON that is asked for has nothing of that.
    say('{}')
    await ask({ tools: undefined, response_format: { type: 'json_object' } })
    expect(running.asked.at(-1)).toMatchObject({ json: true, thoughts })
    expect(running.asked.at(-1)).not.toHaveProperty('gemmaCalls')
  })

  test.each([
    [{ type: 'object', properties: { a: { const: '<|"|>' } } }, /a text with <\|"\|>/],
    [{ type: 'string' }, /arguments that are no object/],
  ])('parameters that calls cannot be held to: %j', async (own, message) => {
    const tools = [{ type: 'function', function: { name: 'f', parameters: own } }]
    const { status, body } = await ask({ tools, tool_choice: 'required' })
    expect([status, body.error.param]).toEqual([400, 'tool_choice'])
    expect(body.error.message).toMatch(message)
  })

  test('a vocabulary without the marks holds calls to JSON, as for other models', async () => {
    const bare = await startScripted(await tokenizerWith(kGemmaTemplate, kGemmaMarks.slice(0, 8)))
    bare.script.next = { say: '{"name": "weather", "arguments": {}}' }
    const { body } = await post(`${bare.url}/v1/chat/completions`, {
      model: 'zipcache',
      messages: [{ role: 'user', content: 'Oslo?' }],
      tools: [weather],
      tool_choice: 'required',
    })
    expect(body.choices[0].message.tool_calls[0].function.name).toBe('weather')
    expect(bare.asked.at(-1)).toHaveProperty('json')
    await bare.server.close()
  })

  test("by OpenAI's client", async () => {
    say(calling)
    const client = new OpenAI({ baseURL: `${running.url}/v1`, apiKey: 'none' })
    const runner = client.chat.completions.stream({
      model: 'zipcache',
      messages: [{ role: 'user', content: 'Oslo?' }],
      tools: [weather as OpenAI.ChatCompletionTool],
    })
    const { choices } = await runner.finalChatCompletion()
    expect(choices[0]?.message.tool_calls?.[0]).toMatchObject({
      function: { name: 'weather', arguments: '{"city": "Oslo", "days": 2}' },
    })
  })
})

test('the format is told by the template', () => {
  expect(toolFormatOf(kGemmaTemplate)).toBe('gemma')
  expect(toolFormatOf(kFirstGemmaTemplate)).toBe('gemma')
})
