/** OpenAI's API without HTTP, as a server that somebody has calls it. */
import { loadModel, type Model } from '../../lib/index.js'
import { createService, type OpenAiService, toApiError } from '../../lib/server/index.js'
import { expectRefused } from '../support/errors.js'
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

test('a request beyond its options is refused as OpenAI would', async () => {
  const error = await service.complete({ model: 'small', prompt, n: 3 }, call()).then(
    () => null,
    (reason: unknown) => toApiError(reason),
  )
  expect(error).toMatchObject({ status: 400, param: 'n' })
})

test('its end is not the end of the model', async () => {
  const other = createService(model, { kvMemory: 2 ** 24 })
  await other.dispose()
  await other.dispose()
  await expect(other.complete({ model: 'zipcache', prompt }, call())).rejects.toThrow(/disposed/)
  await expect(model.logits([1, 2])).resolves.toBeInstanceOf(Float32Array)
})

test('an option out of range is named', () => {
  expect(() => createService(model, { maxBatch: 0 })).toThrow(/^maxBatch: is 0/)
})

test('caches may not take more memory than there is', () => {
  const { total } = model.device.memory
  expectRefused(() => createService(model, { kvMemory: total + 1 }), {
    code: 'ERR_ZC_ARGUMENT',
    argument: 'kvMemory',
    message: /bytes, but cpu has no more than \d+$/,
  })
})
