// A route handler of Next.js: save it as app/api/answer/route.js. The model is loaded once a process.
import path from 'node:path'
import { createEngine, loadModel } from 'zipcache'

export const runtime = 'nodejs' // the addon needs Node, not the edge

const dir = process.env.ZIPCACHE_MODEL ?? path.resolve('models/line-retrieval')

// On globalThis: a development server evaluates this file again whenever it changes.
function engine() {
  globalThis.zipcacheEngine ??= loadModel(dir, { kvMemory: 2 ** 24 }).then((model) =>
    createEngine({ model, kvMemory: 2 ** 28 }),
  )
  return globalThis.zipcacheEngine
}

export async function POST(request) {
  const { prompt, maxTokens = 15 } = await request.json()
  const signal = AbortSignal.any([request.signal, AbortSignal.timeout(60_000)])
  const tokens = (await engine()).generate(prompt, { maxTokens, signal })
  let first
  try {
    first = await tokens.next() // what is wrong with the prompt is known by then
  } catch (error) {
    const status = error.code === 'ERR_ZC_ARGUMENT' ? 400 : 500
    return new Response(`${error.message}\n`, { status })
  }
  // Whoever stops reading would keep its cache.
  signal.addEventListener('abort', () => void tokens.return())
  const encoder = new TextEncoder()
  const body = new ReadableStream({
    async pull(controller) {
      const { done, value } = first ?? (await tokens.next())
      first = null
      if (done) controller.close()
      else controller.enqueue(encoder.encode(value.text))
    },
    cancel: () => tokens.return(),
  })
  return new Response(body, { headers: { 'content-type': 'text/plain; charset=utf-8' } })
}
