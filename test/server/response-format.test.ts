/** Answers that have to be JSON, over HTTP, from a model that knows none. */
import { copyFileSync } from 'node:fs'
import { join } from 'node:path'
import Ajv from 'ajv'
import OpenAI from 'openai'
import { makeParseableTextFormat } from 'openai/lib/parser'
import { kFixtures, ModelFolders } from '../model/model-folder'
import { byteLevelTokenizer } from '../model/tokenizer-files'
import { post, type Running, startServer, stream } from './running'

const folders = new ModelFolders()
let running: Running
beforeAll(async () => {
  const dir = folders.write({
    'tokenizer.json': byteLevelTokenizer(),
    'tokenizer_config.json': { chat_template: '{{ messages[-1].content }}' },
  })
  for (const name of ['config.json', 'model.safetensors']) {
    copyFileSync(join(kFixtures, 'hf', 'llama', name), join(dir, name))
  }
  running = await startServer({}, dir)
})
afterAll(async () => {
  await running.close()
  folders.remove()
})

const schema = {
  type: 'object',
  properties: {
    city: { enum: ['Oslo', 'Tromsø'] },
    days: {
      type: 'array',
      items: { type: 'integer', minimum: 1, maximum: 365 },
      minItems: 1,
      maxItems: 3,
    },
    warm: { type: 'boolean' },
    next: { anyOf: [{ type: 'null' }, { $ref: '#/$defs/place' }] },
  },
  required: ['city', 'days', 'warm', 'next'],
  $defs: { place: { type: 'object', properties: { at: { const: 'here' } }, required: ['at'] } },
}
const isValid = new Ajv({ strict: false }).compile(schema)
const json_schema = { name: 'weather', strict: true, schema }
const asked = {
  model: 'zipcache',
  messages: [{ role: 'user' as const, content: 'Is it warm?' }],
  max_tokens: 400,
  response_format: { type: 'json_schema' as const, json_schema },
}
const url = () => `${running.url}/v1/chat/completions`

test('json_schema: every answer that is whole is valid, streamed or not', async () => {
  const client = new OpenAI({ baseURL: `${running.url}/v1`, apiKey: 'none' })
  let nWhole = 0
  for (let seed = 0; seed < 8; seed++) {
    const { choices } = await client.chat.completions.create({ ...asked, temperature: 1.5, seed })
    const [choice] = choices
    if (choice?.finish_reason !== 'stop') continue // a number can go on for ever
    nWhole++
    const value = JSON.parse(choice.message.content as string)
    expect([isValid(value), isValid.errors, value]).toEqual([true, null, value])
    const events = await stream(url(), { ...asked, temperature: 1.5, seed })
    const pieces = events.slice(0, -1).map(({ choices: [{ delta }] }) => delta.content ?? '')
    expect(pieces.join('')).toBe(choice.message.content)
  }
  expect(nWhole).toBeGreaterThan(3)
})

test('text.format: what is parsed is valid', async () => {
  const client = new OpenAI({ baseURL: `${running.url}/v1`, apiKey: 'none' })
  const format = makeParseableTextFormat(
    { type: 'json_schema', name: 'weather', strict: true, schema },
    JSON.parse,
  )
  const input = 'Is it warm?'
  const asked = { model: 'zipcache', input, max_output_tokens: 400, text: { format } }
  let nWhole = 0
  for (let i = 0; i < 8; i++) {
    const response = await client.responses.parse({ ...asked, temperature: 1.5 })
    if (response.status !== 'completed') continue
    nWhole++
    const value: unknown = response.output_parsed
    expect([isValid(value), isValid.errors, value]).toEqual([true, null, value])
    expect(response.text).toEqual({ format: { ...format } })
  }
  expect(nWhole).toBeGreaterThan(1)
})

test('json_object: an object, or the beginning of one', async () => {
  for (let seed = 0; seed < 4; seed++) {
    const body = { ...asked, temperature: 1, seed, response_format: { type: 'json_object' } }
    const { choices } = (await post(url(), body)).body
    const { content } = choices[0].message
    expect(content).toMatch(/^\s*\{/)
    if (choices[0].finish_reason === 'stop') expect(JSON.parse(content)).toBeInstanceOf(Object)
  }
})

test('a call that is asked for is one, by the schema of its function', async () => {
  const place = { type: 'object', properties: { at: { $ref: '#/$defs/at' } }, required: ['at'] }
  const parameters = { ...place, $defs: { at: { enum: ['here', 'there'] } } }
  const tools = ['first', 'second'].map((name) => ({
    type: 'function',
    function: { name, parameters },
  }))
  const { response_format: _, ...plain } = asked
  for (const tool_choice of ['required', { type: 'function', function: { name: 'second' } }]) {
    for (let seed = 0; seed < 4; seed++) {
      const body = { ...plain, tools, tool_choice, temperature: 1.5, seed }
      const { choices } = (await post(url(), body)).body
      const [{ message, finish_reason }] = choices
      if (finish_reason === 'length') continue
      expect(message.content).toBe(null)
      const [{ function: called }] = message.tool_calls
      expect(tool_choice === 'required' ? ['first', 'second'] : ['second']).toContain(called.name)
      expect(['here', 'there']).toContain(JSON.parse(called.arguments).at)
    }
  }
})

test.each([
  ['a type', { type: 'xml' }, 'response_format.type'],
  ['no type', {}, 'response_format.type'],
  [
    'no schema',
    { type: 'json_schema', json_schema: { name: 'a' } },
    'response_format.json_schema.schema',
  ],
  [
    'a keyword that cannot be held to',
    { type: 'json_schema', json_schema: { name: 'a', schema: { type: 'string', format: 'iri' } } },
    'response_format.json_schema.schema',
  ],
])('%s that makes no sense', async (_, response_format, param) => {
  const { status, body } = await post(url(), { ...asked, response_format })
  expect({ status, param: body.error?.param }).toEqual({ status: 400, param })
})

test('a call that is asked for by a schema that cannot be held to names the function', async () => {
  const { response_format: _, ...plain } = asked
  const toolOf = (name: string, parameters: object) => ({
    type: 'function',
    function: { name, parameters },
  })
  const some = { type: 'object', properties: { n: { type: 'array', contains: { const: 2 } } } }
  const tools = [toolOf('any', { type: 'object' }), toolOf('some', some)]
  const { status, body } = await post(url(), { ...plain, tools, tool_choice: 'required' })
  expect([status, body.error]).toMatchObject([400, { param: 'tools[1].function.parameters' }])
  expect(body.error.message).toMatch(/at #\/properties\/n has the keyword "contains"/)
})

test('a vocabulary of words cannot be held to JSON, and says so', async () => {
  const words = await startServer()
  try {
    const { status, body } = await post(`${words.url}/v1/chat/completions`, asked)
    expect(status).toBe(400)
    expect(body.error.message).toMatch(/byte-level/)
  } finally {
    await words.close()
  }
})
