/** A server in this process, and clients of it. */
import { join } from 'node:path'
import { type LoadOptions, loadModel, type Model } from '../../lib/index'
import { type PageExample, Server, type ServerOptions } from '../../lib/server/index'

export const kLineRetrieval = join(__dirname, '..', '..', 'models', 'line-retrieval')

/** A server that listens, with its model. */
export interface Running {
  readonly url: string
  readonly server: Server
  readonly model: Model
  close(): Promise<void>
}

export async function startServer(
  options: ServerOptions = {},
  dir = kLineRetrieval,
  load: LoadOptions = {},
  examples: readonly PageExample[] = [],
): Promise<Running> {
  const model = await loadModel(dir, { kvMemory: 2 ** 24, threads: 1, ...load })
  const server = new Server({ port: 0, logLevel: 'silent', kvMemory: 2 ** 27, ...options })
  const url = await server.listen()
  server.serve(model, { examples })
  const close = async () => {
    await server.close()
    await model.dispose()
  }
  return { url, server, model, close }
}

/** A server for the suite around this call. */
export function useServer(...args: Parameters<typeof startServer>): () => Running {
  let running: Running | undefined
  beforeAll(async () => {
    running = await startServer(...args)
  })
  afterAll(() => running?.close())
  return () => running!
}

// biome-ignore lint/suspicious/noExplicitAny: tests look at what is really there
type Json = any

export interface Response {
  status: number
  headers: Headers
  body: Json
}

/** POSTs JSON, or a text as it is. */
export async function post(
  url: string,
  body: unknown,
  headers: Record<string, string> = {},
): Promise<Response> {
  const text = typeof body === 'string' ? body : JSON.stringify(body)
  const all = { 'content-type': 'application/json', ...headers }
  const response = await fetch(url, { method: 'POST', headers: all, body: text })
  return {
    status: response.status,
    headers: response.headers,
    body: JSON.parse(await response.text()),
  }
}

/** POSTs, and reads the events of the answer: their data, `[DONE]` as it is. */
export async function stream(
  url: string,
  body: object,
  headers: Record<string, string> = {},
  signal?: AbortSignal,
): Promise<Json[]> {
  const all = { 'content-type': 'application/json', ...headers }
  const response = await fetch(url, {
    method: 'POST',
    headers: all,
    body: JSON.stringify({ ...body, stream: true }),
    ...(signal ? { signal } : {}),
  })
  expect(response.headers.get('content-type')).toBe('text/event-stream; charset=utf-8')
  return eventsOf(await response.text())
}

export function eventsOf(text: string): Json[] {
  return text
    .split('\n\n')
    .map((event) => event.replace(/^event: .*\n/, ''))
    .filter((event) => event.startsWith('data: '))
    .map((event) => event.slice('data: '.length))
    .map((data) => (data === '[DONE]' ? data : JSON.parse(data)))
}

/** Waits until something holds; fails after `ms`. */
export async function until(holds: () => boolean | Promise<boolean>, ms = 10_000): Promise<void> {
  const end = Date.now() + ms
  while (!(await holds())) {
    if (Date.now() > end) throw new Error(`did not come to hold within ${ms} ms: ${holds}`)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}
