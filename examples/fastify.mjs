// A route of your own in fastify: the answer is streamed as plain text, and ends when the client goes.
//   node examples/fastify.mjs      then: curl -N localhost:3000/answer -d 'line torpid - kid : ...'
import { Readable } from 'node:stream'
import { fileURLToPath } from 'node:url'
import fastify from 'fastify'
import { createEngine, loadModel } from 'zipcache'

const dir = fileURLToPath(new URL('../models/line-retrieval', import.meta.url))
const model = await loadModel(dir, { kvMemory: 2 ** 24 })
const engine = createEngine({ model, kvMemory: 2 ** 28 })

const app = fastify()
app.addContentTypeParser('*', { parseAs: 'string' }, async (_, text) => text)

app.post('/answer', async (request, reply) => {
  const abort = new AbortController()
  reply.raw.once('close', () => abort.abort())
  // Whoever stops reading would keep its cache: the signal ends the stream, too.
  const signal = AbortSignal.any([abort.signal, AbortSignal.timeout(60_000)])
  async function* text() {
    const options = { maxTokens: 15, signal }
    for await (const token of engine.generate(request.body, options)) yield token.text
  }
  return reply.type('text/plain; charset=utf-8').send(Readable.from(text(), { signal }))
})

app.setErrorHandler((error, _, reply) => {
  reply.code(error.code === 'ERR_ZC_ARGUMENT' ? 400 : 500).send(`${error.message}\n`)
})

app.addHook('onClose', () => model.dispose())
console.log(await app.listen({ port: Number(process.env.PORT ?? 3000) }))
process.once('SIGTERM', () => void app.close())
