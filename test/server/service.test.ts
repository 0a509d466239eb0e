/** OpenAI's API without HTTP, as a server that somebody has calls it. */
import { getEventListeners } from 'node:events'
import { loadModel, type Model } from '../../lib/index.js'
import {
  type ApiError,
  type Call,
  createService,
  type OpenAiService,
  Server,
  toApiError,
} from '../../lib/server/index.js'
import { expectRefused, expectRejected } from '../support/errors.js'
import { kLineRetrieval } from './running.js'

let model: Model
let service: OpenAiService
beforeAll(async () => {
  model = await loadModel(kLineRetrieval, { threads: 1, kvMemory: 2 ** 24 })
  service = createService(model, { kvMemory: 2 ** 26, modelNames: ['small'], maxChoices: 2 })
})
afterAll(async () => {
  await service.dispose()
  await model.dispose()
})

const call = () => ({ signal: new AbortController().signal, session: null })
const prompt = 'line'

test('a whole answer and a stream say the same', async () => {
  const request = { model: 'small', prompt, max_tokens: 4, temperature: 0 }
  const whole = await service.complete(request, call())
  const stream = await service.complete({ ...request, stream: true }, call())
  if (whole.kind !== 'whole' || stream.kind !== 'stream') throw new Error('of the wrong kind')
  let text = ''
  for await (const chunk of stream.chunks) {
    text += (chunk as { choices: { text: string }[] }).choices.map((one) => one.text).join('')
  }
  expect(whole.body).toMatchObject({ model: 'small', choices: [{ text }] })
  expect(text).not.toBe('')
})

test('a response goes on with another, whole and as events; one that fails ends with what it was', async () => {
  const asked = { input: prompt, max_output_tokens: 4, temperature: 0 }
  const first = await service.respond(asked, call())
  if (first.kind !== 'whole') throw new Error('of the wrong kind')
  const { id } = first.body as { id: string }
  expect(service.response({ id, owner: '' })).toBe(first.body)
  const more = { ...asked, previous_response_id: id, stream: true }
  const answer = await service.respond(more, call())
  if (answer.kind !== 'events') throw new Error('of the wrong kind')
  const types: string[] = []
  for await (const { type } of answer.events) types.push(type)
  expect([types[0], types.at(-1)]).toEqual(['response.created', 'response.incomplete'])

  const abort = new AbortController()
  const long = { ...more, max_output_tokens: 4000, ignore_eos: true }
  const cut = await service.respond(long, { ...call(), signal: abort.signal })
  if (cut.kind !== 'events') throw new Error('of the wrong kind')
  expect((await cut.events.next()).value).toMatchObject({ type: 'response.created' })
  abort.abort(new Error('enough'))
  const read = async () => {
    for await (const event of cut.events) types.push(event.type)
  }
  const error = await read().catch(toApiError)
  expect(cut.failure(error as ApiError)).toMatchObject([
    { type: 'error', error: { type: 'server_error' } },
    { type: 'response.failed', response: { status: 'failed', previous_response_id: id } },
  ])
  expect(service.deleteResponse({ id, owner: '' })).toMatchObject({ id, deleted: true })
  expect(service.response({ id, owner: '' })).toBe(null)
})

test('a signal that outlives the calls is left as it was', async () => {
  const { signal } = new AbortController()
  const symbols = () => Object.getOwnPropertySymbols(signal)
  const before = symbols()
  for (let i = 0; i < 3; i++) {
    await service.complete({ prompt, max_tokens: 1 }, { signal, session: null })
  }
  expect(getEventListeners(signal, 'abort')).toHaveLength(0)
  // Where `AbortSignal.any` keeps note of all that were made of it.
  expect(symbols()).toEqual(before)
})

test('a request beyond its options is refused as OpenAI would', async () => {
  const error = await service.complete({ model: 'small', prompt, n: 3 }, call()).then(
    () => null,
    (reason: unknown) => toApiError(reason),
  )
  expect(error).toMatchObject({ status: 400, param: 'n' })
})

test('sampling is what the model’s authors advise, unless the options or a request say else', async () => {
  expect(model.generationConfig).toMatchObject({ doSample: false })
  const texts = async (own: OpenAiService) => {
    const seeds = [1, 2, 3, 4]
    const ask = (seed: number) => own.complete({ prompt, max_tokens: 8, seed }, call())
    const answers = await Promise.all(seeds.map(ask))
    return new Set(
      answers.map((answer) => JSON.stringify((answer as { body: WholeBody }).body.choices)),
    ).size
  }
  expect(await texts(service)).toBe(1)
  const hot = createService(model, { kvMemory: 2 ** 24, sampling: { temperature: 2 } })
  expect(await texts(hot)).toBe(4)
  await hot.dispose()
})

test('many prompts of one request share memory that holds some of them', async () => {
  const small = createService(model, { kvMemory: 2 ** 22 })
  const warned = jest.fn()
  process.on('warning', warned)
  const prompts = Array.from({ length: 12 }, (_, p) =>
    Array.from({ length: 2000 }, (_, i) => 10 + ((p * 3 + i * 7) % 150)),
  )
  const ask = async (prompt: number[][]) => {
    const body = { prompt, max_tokens: 2, temperature: 0, ignore_eos: true }
    const answer = await small.complete(body, call())
    return answer.kind === 'whole' ? (answer.body as WholeBody) : null
  }
  const all = await ask(prompts)
  const one = await ask(prompts.slice(0, 1))
  process.off('warning', warned)
  await small.dispose()
  expect(all?.choices[0]).toEqual(one?.choices[0])
  expect(all?.usage.completion_tokens).toBe(24)
  // What all caches took, though they were not there together.
  expect(all?.usage.kv_cache.bytes).toBeGreaterThan(2 ** 22)
  expect(one?.usage.kv_cache.bytes).toBeLessThan(2 ** 20)
  expect(warned).not.toHaveBeenCalled() // of listeners that pile up
})

interface WholeBody {
  choices: object[]
  usage: { completion_tokens: number; kv_cache: { bytes: number } }
}

test('its end is not the end of the model', async () => {
  const other = createService(model, { kvMemory: 2 ** 24 })
  await other.dispose()
  await other.dispose()
  await expect(other.complete({ model: 'zipcache', prompt }, call())).rejects.toThrow(/disposed/)
  await expect(model.logits([1, 2])).resolves.toBeInstanceOf(Float32Array)
})

test.each<[string, unknown]>([
  ['nope', 1],
  ['host', ''],
  ['port', 65536],
  ['modelNames', 'x'],
  ['modelNames', []],
  ['chatTemplate', 5],
  // A text is as good as a list of its characters to JavaScript: each would be a key.
  ['apiKeys', 'secret'],
  ['apiKeys', null],
  ['apiKeys', ['']],
  ['apiKeys', ['a b']],
  ['apiKeys', [5]],
  ['corsOrigins', 'https://a.example'],
  ['policy', 'nope'],
  ['allowedPolicies', ['nope']],
  ['kvMemory', 5],
  ['prefixMemory', -1],
  ['maxBatch', 0],
  ['maxQueue', -1],
  ['maxPromptTokens', 0],
  ['maxTokens', -5],
  ['defaultMaxTokens', 0],
  ['promptLookup', 16],
  ['maxChoices', 0],
  ['bodyLimit', -1],
  ['bodyTimeoutMs', -1],
  ['requestTimeoutMs', 'x'],
  ['pingMs', 2 ** 31],
  ['maxSessions', -1],
  ['matchSessions', 1],
  ['sessionTtlMs', NaN],
  ['drainDelayMs', -1],
  ['drainTimeoutMs', -1],
  ['page', 'no'],
  ['logLevel', 'x'],
  ['logPrompts', 1],
  ['vllmMetrics', 'vllm'],
])('a server does not begin with %s: %j, and says so', (argument, value) => {
  expectRefused(() => new Server({ [argument]: value }), { code: 'ERR_ZC_ARGUMENT', argument })
})

test('an option out of range is named, and one that a service has no use for', () => {
  const refuse = (options: object, argument: string) =>
    expectRefused(() => createService(model, options), { code: 'ERR_ZC_ARGUMENT', argument })
  refuse({ maxBatch: 0 }, 'maxBatch')
  refuse({ sampling: { temp: 1 } }, 'temp')
  refuse({ sampling: { temperature: -1 } }, 'temperature')
  refuse({ port: 0 }, 'port')
})

test('what is no model and what is no call are named', async () => {
  const argument = 'model'
  for (const wrong of [undefined, {}] as unknown as Model[]) {
    expectRefused(() => createService(wrong), { code: 'ERR_ZC_ARGUMENT', argument })
    expectRefused(() => new Server().serve(wrong), { code: 'ERR_ZC_ARGUMENT', argument })
  }
  for (const wrong of [undefined, { session: null }, { ...call(), session: 'name' }]) {
    const asked = service.complete({ prompt }, wrong as unknown as Call)
    await expectRejected(asked, { code: 'ERR_ZC_ARGUMENT', argument: 'call' })
  }
})

test('a server has one model, while it is open', async () => {
  const server = new Server({ kvMemory: 2 ** 24, logLevel: 'silent' })
  server.serve(model)
  expectRefused(() => server.serve(model), { code: 'ERR_ZC_ARGUMENT', argument: 'model' })
  await server.close()
  expectRefused(() => server.serve(model), { code: 'ERR_ZC_HANDLE' })
})

test('caches may not take more memory than there is', () => {
  const { total } = model.device.memory
  expectRefused(() => createService(model, { kvMemory: total + 1 }), {
    code: 'ERR_ZC_ARGUMENT',
    argument: 'kvMemory',
    message: /bytes, but cpu has no more than \d+$/,
  })
})
