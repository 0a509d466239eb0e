/**
 * Whatever is sent, the server answers with the right 4xx or closes the connection, stays up, and
 * has its memory back. ZC_HOSTILE_REQUESTS=10000 sends as many (npm run test:hostile).
 */
import fc from 'fast-check'
import { attack, type Hostile, hostileRequests } from './hostile-requests'
import { post, until, useServer } from './running'

const n = Number(process.env.ZC_HOSTILE_REQUESTS ?? 300)
const seed = Number(process.env.ZC_HOSTILE_SEED ?? 20260101)
const atOnce = 16

const running = useServer({
  apiKeys: ['right'],
  bodyLimit: 2 ** 20,
  bodyTimeoutMs: 3000,
  maxQueue: 1000,
  sessionTtlMs: 200, // of the responses that are kept
})

test(
  `${n} hostile requests`,
  async () => {
    const { url, server } = running()
    const key = { authorization: 'Bearer right' }
    const ask = async () => {
      const body = { prompt: 'line a - b', max_tokens: 8, temperature: 0 }
      return (await post(`${url}/v1/completions`, body, key)).body.choices[0].text
    }
    const port = Number(new URL(url).port)
    const before = await ask()
    const all = fc.sample(hostileRequests('authorization: Bearer right\r\n'), { numRuns: n, seed })
    const counts = new Map<string, number>()
    const wrong: object[] = []
    const check = async (request: Hostile) => {
      const { status, body } = await attack(port, request)
      const isRight = status === null ? request.closed : request.statuses.includes(status)
      const outcome = `${request.kind}: ${status ?? 'closed'}`
      counts.set(outcome, (counts.get(outcome) ?? 0) + 1)
      if (!isRight)
        wrong.push({
          ...request,
          pieces: request.pieces.map((piece) => String(piece).slice(0, 300)),
          status,
          body: body.slice(0, 600),
        })
    }
    const queue = all.values()
    const client = async () => {
      for (const request of queue) await check(request)
    }
    // Memory is compared once everything was used.
    for (const request of all.slice(0, 50)) await check(request)
    const rssBefore = process.memoryUsage().rss
    await Promise.all(Array.from({ length: atOnce }, client))

    expect(wrong.slice(0, 3)).toEqual([])
    await until(async () => {
      await fetch(`${url}/v1/sessions/none/cache`, { headers: key }) // those that are over go
      return server.engine?.stats().sequences === 0
    })
    expect(server.engine?.stats()).toMatchObject({ kvMemory: { used: 0 }, queued: 0, decoding: 0 })
    expect(await ask()).toBe(before)
    expect(server.state).toBe('ready')
    const grownMiB = (process.memoryUsage().rss - rssBefore) / 2 ** 20
    if (n > 1000) console.log([...counts].sort(), `RSS grew by ${grownMiB.toFixed(1)} MiB`)
    expect(grownMiB).toBeLessThan(200)
  },
  120_000 + n * 200,
)
