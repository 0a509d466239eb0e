/** Requests as known programs write them, by their sources. */
import { connect } from 'node:net'
import OpenAI from 'openai'
import { post } from './running'
import { startScripted, tokenizerWith } from './scripted-model'

const template =
  '{% for message in messages %}{{ message.role }}:{{ message.content }};{% endfor %}'
const model = 'zipcache'
const user = { role: 'user', content: 'Look.' }

let running: Awaited<ReturnType<typeof startScripted>>
beforeAll(async () => {
  running = await startScripted(await tokenizerWith(template))
})
afterAll(() => running.server.close())

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
