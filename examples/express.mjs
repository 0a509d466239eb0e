// A route of your own in express: the answer is streamed as plain text, and ends when the client goes.
//   node examples/express.mjs      then: curl -N localhost:3000/answer -d 'line torpid - kid : ...'
import { fileURLToPath } from 'node:url'
import express from 'express'
import { createEngine, loadModel } from 'zipcache'

const dir = fileURLToPath(new URL('../models/line-retrieval', import.meta.url))
const model = await loadModel(dir, { kvMemory: 2 ** 24 })
const engine = createEngine({ model, kvMemory: 2 ** 28 })

const app = express()
app.use(express.text({ type: '*/*', limit: '1mb' }))

app.post('/answer', async (request, response) => {
  const abort = new AbortController()
  response.once('close', () => abort.abort())
  const signal = AbortSignal.any([abort.signal, AbortSignal.timeout(60_000)])
  response.type('text/plain')
  try {
    const options = { maxTokens: 15, signal }
    for await (const token of engine.generate(request.body, options)) response.write(token.text)
    response.end()
  } catch (error) {
    if (abort.signal.aborted) return
    if (response.headersSent) response.destroy(error)
    else response.status(400).send(`${error.message}\n`)
  }
})

const server = app.listen(Number(process.env.PORT ?? 3000), () => {
  console.log(`http://127.0.0.1:${server.address().port}`)
})
process.once('SIGTERM', () => server.close(() => void model.dispose()))
