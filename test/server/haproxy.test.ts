/** Two replicas behind HAProxy: sessions stick, and a replica that drains loses nothing. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { generateLineRetrieval } from '../../lib/index'
import { end, kMain, kModel } from '../cli/command-line'
import { eventsOf, post, until } from './running'

const hasHaproxy = spawnSync('haproxy', ['-v']).status === 0
if (!hasHaproxy) console.warn('haproxy is not installed (Debian: haproxy): its test is skipped')

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  const { port } = server.address() as { port: number }
  await new Promise((resolve) => server.close(resolve))
  return port
}

const isReady = (port: number) =>
  fetch(`http://127.0.0.1:${port}/health/ready`).then(
    ({ status }) => status === 200,
    () => false,
  )

;(hasHaproxy ? test : test.skip)('a drain in the middle of streams', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'zipcache-haproxy-'))
  const children: ChildProcess[] = []
  try {
    const ports = [await freePort(), await freePort()] as const
    const front = await freePort()
    const replicas = ports.map((port) => {
      const args = ['serve', '--model', kModel, '--port', String(port), '--threads', '1']
      const more = ['--log-level', 'silent', '--drain-delay', '1.5']
      const child = spawn(process.execPath, [kMain, ...args, ...more], { stdio: 'pipe' })
      children.push(child)
      return { port, child, ended: end(child) }
    })
    const config = join(folder, 'haproxy.cfg')
    writeFileSync(
      config,
      `defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 60s
frontend all
  bind 127.0.0.1:${front}
  default_backend zipcache
backend zipcache
  balance hdr(x-session-id)
  hash-type consistent
  option httpchk GET /health/ready
  option redispatch
${ports.map((port, i) => `  server s${i} 127.0.0.1:${port} check inter 200ms fall 1 rise 1`).join('\n')}
`,
    )
    children.push(spawn('haproxy', ['-db', '-f', config], { stdio: 'ignore' }))
    await until(async () => (await Promise.all(ports.map(isReady))).every(Boolean), 20_000)
    await until(() => isReady(front))
    // Both replicas are known to be up: from now on a name has one place.
    await new Promise((resolve) => setTimeout(resolve, 1000))
    const url = `http://127.0.0.1:${front}/v1/completions`

    // Every session's second request finds its cache: it went to the same replica.
    const names = Array.from({ length: 8 }, (_, i) => `session-${i}`)
    const ask = (name: string, prompt: string) =>
      post(url, { prompt, max_tokens: 4, temperature: 0 }, { 'x-session-id': name })
    for (const name of names) {
      const { text } = generateLineRetrieval({ lines: 3, seed: 1 })
      const { body } = await ask(name, text)
      const next = await ask(name, `${text} ${body.choices[0].text} :`)
      expect(next.body.usage.prompt_tokens_details.cached_tokens).toBeGreaterThan(0)
    }
    const sessionsOf = async (port: number) => {
      const page = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text()
      return Number(/^zipcache_sessions (\d+)$/m.exec(page)?.[1])
    }
    const counts = await Promise.all(ports.map(sessionsOf))
    expect(counts[0]! + counts[1]!).toBe(names.length)
    expect(Math.min(...counts)).toBeGreaterThan(0) // both have some

    const streams = names.map((name) =>
      fetch(url, {
        method: 'POST',
        headers: { 'content-type': 'application/json', 'x-session-id': name },
        body: JSON.stringify({ prompt: 'line b', max_tokens: 300, ignore_eos: true, stream: true }),
      }),
    )
    const open = await Promise.all(streams)
    replicas[0]!.child.kill('SIGTERM')
    // No request in the meantime is refused.
    while (replicas[0]!.child.exitCode === null) {
      const { status } = await post(url, { prompt: 'line', max_tokens: 1 })
      expect(status).toBe(200)
    }
    for (const response of open) {
      const events = eventsOf(await response.text())
      expect(events.at(-1)).toBe('[DONE]')
      expect(events.at(-2).choices[0].finish_reason).toBe('length')
    }
    expect((await replicas[0]!.ended).exitCode).toBe(0)
    for (const name of names) expect((await ask(name, 'line c')).status).toBe(200)
  } finally {
    for (const child of children) child.kill('SIGKILL')
    rmSync(folder, { recursive: true, force: true })
  }
})
