/** Many clients at once. */
import { generateLineRetrieval } from '../../lib/index'
import { post, startServer, stream, useServer } from './running'

const promptOf = (lines: number, seed: number) => generateLineRetrieval({ lines, seed }).text

describe('64 streams at once', () => {
  const running = useServer({ maxBatch: 64 })

  test('each is the answer that the request gets alone; none is lost, none mixed', async () => {
    const url = `${running().url}/v1/completions`
    const policies = ['zipcache', 'fp16', 'uniform4', 'full']
    const requests = Array.from({ length: 64 }, (_, i) => ({
      prompt: promptOf(4 + (i % 7), 100 + i),
      max_tokens: 10 + (i % 9),
      temperature: 0,
      kv_cache: policies[i % policies.length],
      // Windows close at different steps of some.
      ...(i % 16 === 0 ? { max_tokens: 130, ignore_eos: true } : {}),
    }))
    const alone: string[] = []
    for (const request of requests) alone.push((await post(url, request)).body.choices[0].text)
    const together = await Promise.all(
      requests.map(async (request) => {
        const events = await stream(url, request)
        expect(events.at(-1)).toBe('[DONE]')
        const pieces = events.slice(0, -1).map(({ choices: [{ text }] }) => text)
        return pieces.join('')
      }),
    )
    expect(together).toEqual(alone)
    expect(running().server.engine?.stats()).toMatchObject({ sequences: 0, decoding: 0, queued: 0 })
  })
})

describe('conversations of 200 lines at equal --kv-memory', () => {
  /** How many conversations are there when the next one pushes the first one out. */
  async function held(policy: string): Promise<number> {
    const { url, server, close } = await startServer({ kvMemory: 11 * 2 ** 20, policy })
    try {
      const page = async () => (await fetch(`${url}/metrics`)).text()
      const read = async (name: string) =>
        Number(new RegExp(`^${name} (\\d+)$`, 'm').exec(await page())?.[1])
      const prompt = promptOf(200, 1)
      for (let i = 0; ; i++) {
        const body = { prompt, max_tokens: 16, temperature: 0 }
        const { status } = await post(`${url}/v1/completions`, body, { 'x-session-id': `s${i}` })
        expect(status).toBe(200)
        if ((await read('zipcache_sessions_evicted_total')) > 0) break
        if (i > 100) throw new Error('nothing is ever evicted')
      }
      expect(await read('zipcache_sessions')).toBe(server.engine?.stats().sequences)
      return await read('zipcache_sessions')
    } finally {
      await close()
    }
  }

  test('at least four times as many are held as with fp16', async () => {
    const fp16 = await held('fp16')
    const zipcache = await held('zipcache')
    expect(fp16).toBeGreaterThan(1)
    expect(zipcache / fp16).toBeGreaterThanOrEqual(4)
  }, 240_000)
})
