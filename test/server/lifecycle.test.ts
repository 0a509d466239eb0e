/** `zipcache serve` as a process: start, configuration, drain, death. */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Server } from '../../lib/server/index'
import { end, kMain, kModel } from '../cli/command-line'
import { eventsOf, post, until } from './running'

const folder = mkdtempSync(join(tmpdir(), 'zipcache-serve-'))
const started = new Set<ChildProcessWithoutNullStreams>()
afterAll(() => {
  for (const child of started) child.kill('SIGKILL')
  rmSync(folder, { recursive: true, force: true })
})

function start(args: string[], env: Record<string, string> = {}): ChildProcessWithoutNullStreams {
  const child = spawn(process.execPath, [kMain, 'serve', ...args], {
    env: { ...process.env, ...env },
    stdio: 'pipe',
  })
  started.add(child)
  return child
}

/** Starts a server and waits until it is ready. */
async function ready(args: string[], env: Record<string, string> = {}) {
  const child = start(['--model', kModel, '--threads', '1', '--log-level', 'info', ...args], env)
  const log = { text: '' }
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    log.text += chunk
  })
  const ended = end(child)
  let stderr = ''
  child.stderr.on('data', (chunk: string) => {
    stderr += chunk
  })
  await until(() => /listening on \S+/.test(stderr))
  const [, url] = /listening on (\S+)/.exec(stderr) as RegExpExecArray
  await until(async () => (await fetch(`${url}/health/ready`)).status === 200)
  return { url: url as string, child, ended, log }
}

const long = (n: number) => ({ prompt: 'line a', max_tokens: n, ignore_eos: true, stream: true })

function open(url: string, body: object): Promise<Response> {
  const headers = { 'content-type': 'application/json' }
  return fetch(`${url}/v1/completions`, { method: 'POST', headers, body: JSON.stringify(body) })
}

test('before it has a model it is live, not ready, and says so to requests', async () => {
  const server = new Server({ port: 0, logLevel: 'silent' })
  const url = await server.listen()
  try {
    expect((await fetch(`${url}/health/live`)).status).toBe(200)
    expect((await fetch(`${url}/health/ready`)).status).toBe(503)
    expect(await (await fetch(`${url}/health`)).json()).toEqual({ status: 'loading' })
    const early = await post(`${url}/v1/completions`, { prompt: 'a' })
    expect(early).toMatchObject({ status: 503, body: { error: { code: 'loading' } } })
    expect(early.headers.get('retry-after')).toBe('1')
    expect((await fetch(`${url}/metrics`)).status).toBe(200)
  } finally {
    await server.close()
  }
})

test('SIGTERM: not ready, no new requests, every accepted stream whole, exit 0', async () => {
  const { url, child, ended, log } = await ready(['--port', '0'])
  const streams = await Promise.all(Array.from({ length: 8 }, () => open(url, long(300))))
  child.kill('SIGTERM')
  await until(async () => (await fetch(`${url}/health/ready`)).status === 503)
  const late = await post(`${url}/v1/completions`, { prompt: 'a' })
  expect(late).toMatchObject({ status: 503, body: { error: { code: 'shutting_down' } } })
  for (const { status, text } of await Promise.all(
    streams.map(async (response) => ({ status: response.status, text: await response.text() })),
  )) {
    expect(status).toBe(200)
    const events = eventsOf(text)
    expect(events.at(-1)).toBe('[DONE]')
    expect(events.at(-2).choices[0].finish_reason).toBe('length')
  }
  expect((await ended).exitCode).toBe(0)
  const lines = log.text
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
  expect(lines.at(-1)).toMatchObject({ msg: 'drained', cut: 0 })
  const answered = lines.find(({ path, status }) => path === '/v1/completions' && status === 200)
  expect(answered).toMatchObject({ completionTokens: 300, policy: 'zipcache' })
  expect(answered.reqId).toMatch(/^[\w-]+$/)
  expect(log.text).not.toContain('line a') // no text of a prompt
})

test('--weights int8', async () => {
  const { url, child, ended } = await ready(['--port', '0', '--weights', 'int8'])
  const answer = await post(`${url}/v1/completions`, { prompt: 'line a', max_tokens: 3 })
  expect(answer).toMatchObject({ status: 200, body: { usage: { completion_tokens: 3 } } })
  child.kill('SIGTERM')
  expect((await ended).exitCode).toBe(0)
})

test('--drain-timeout cuts what takes longer, and tells the client', async () => {
  const { url, child, ended } = await ready(['--port', '0', '--drain-timeout', '0.2'])
  const response = await open(url, long(8000))
  child.kill('SIGTERM')
  expect(eventsOf(await response.text()).at(-1)).toMatchObject({ error: { code: 'shutting_down' } })
  expect((await ended).exitCode).toBe(0)
})

test('kill -9: clients see a broken connection, a new start on the same port serves', async () => {
  const first = await ready(['--port', '0'])
  const response = await open(first.url, long(8000))
  const reader = response.body?.getReader()
  await reader?.read()
  first.child.kill('SIGKILL')
  await expect(
    (async () => {
      while (!(await reader?.read())?.done) {
        // on to the end
      }
    })(),
  ).rejects.toThrow()
  const { port } = new URL(first.url)
  const startedAt = Date.now()
  const second = await ready(['--port', port])
  const { status } = await post(`${second.url}/v1/completions`, { prompt: 'line a', max_tokens: 2 })
  expect(status).toBe(200)
  expect(Date.now() - startedAt).toBeLessThan(10_000)
  second.child.kill('SIGTERM')
  expect((await second.ended).exitCode).toBe(0)
})

describe('configuration', () => {
  const file = (name: string, value: unknown) => {
    const path = join(folder, name)
    writeFileSync(path, typeof value === 'string' ? value : JSON.stringify(value))
    return path
  }

  test('a flag wins over the environment, that over the file, that over the default', async () => {
    const config = file('config.json', {
      servedName: ['from-file', 'also'],
      policy: 'uniform4',
      maxTokens: 3,
      maxChoices: 2,
      port: 1,
      logPrompts: true,
    })
    const env = {
      ZIPCACHE_CONFIG: config,
      ZIPCACHE_POLICY: 'fp16',
      ZIPCACHE_MAX_TOKENS: '2',
      ZIPCACHE_API_KEYS: 'a, b',
      ZIPCACHE_LOG_PROMPTS: '0',
      ZIPCACHE_NO_PAGE: 'false',
    }
    const { url, child, ended } = await ready(['--max-tokens', '1', '--port', '0'], env)
    const body = { prompt: 'line a', model: 'also', max_tokens: 9 }
    const answer = await post(`${url}/v1/completions`, body, { authorization: 'Bearer b' })
    expect(answer.body).toMatchObject({
      model: 'also',
      usage: { completion_tokens: 1, kv_cache: { policy: 'fp16' } },
    })
    expect((await post(`${url}/v1/completions`, body)).status).toBe(401)
    expect((await fetch(url)).status).toBe(200)
    child.kill('SIGTERM')
    const { exitCode, stdout } = await ended
    expect(exitCode).toBe(0)
    expect(stdout).toContain('"msg":"answered"')
    expect(stdout).not.toContain('"msg":"asked"')
  })

  test.each([
    ['an unknown option', { prot: 1 }, /prot is no option/],
    ['a value', { port: 'x' }, /port is x\. Expected a whole number/],
    ['a type', { port: {} }, /port is \{\}, expected a text or a number/],
    ['a flag', { logPrompts: 'yes' }, /logPrompts is "yes", expected true or false/],
    ['an option of a policy', { policy: { name: 'zipcache', widow: 1 } }, /no option 'widow'/],
    ['no JSON', '{', /is no JSON/],
  ])('%s in the file', async (_, value, message) => {
    const config = file('bad.json', value)
    const { exitCode, stderr } = await end(start(['--model', kModel, '--config', config]))
    expect(stderr).toMatch(message)
    expect(stderr).toMatch(/ERR_ZC_CONFIG/)
    expect(exitCode).toBe(1)
  })

  test('no model, a port that is taken, an empty file of keys, --help', async () => {
    expect(await end(start([]))).toMatchObject({
      exitCode: 2,
      stderr: expect.stringContaining('--model'),
    })
    const taken = new Server({ port: 0, logLevel: 'silent' })
    const { port } = new URL(await taken.listen())
    const other = await end(start(['--model', kModel, '--port', port]))
    expect(other).toMatchObject({ exitCode: 1, stderr: expect.stringContaining('ERR_ZC_IO') })
    await taken.close()
    const keys = await end(start(['--model', kModel, '--api-key-file', file('keys', '# none\n')]))
    expect(keys).toMatchObject({ exitCode: 1, stderr: expect.stringContaining('holds no key') })
    const policies = await end(start(['--model', kModel, '--allow-policy', 'fp16,zip']))
    expect(policies).toMatchObject({ exitCode: 2, stderr: expect.stringContaining('"zip"') })
    const env = { ZIPCACHE_LOG_PROMPTS: 'perhaps' }
    const neither = await end(start(['--model', kModel, '--port', '0'], env))
    expect(neither).toMatchObject({
      exitCode: 2,
      stderr: expect.stringContaining('ZIPCACHE_LOG_PROMPTS is "perhaps"'),
    })
    // Of a model that is not there: nothing is loaded for a promise that cannot be kept.
    const memory = await end(start(['--model', folder, '--port', '0', '--kv-memory', '999999g']))
    expect(memory).toMatchObject({
      exitCode: 2,
      stderr: expect.stringContaining('--kv-memory: is'),
    })
    const help = await end(start(['--help']))
    expect(help.exitCode).toBe(0)
    for (const word of ['ZIPCACHE_PORT', '--kv-memory', 'x-session-id', 'SIGTERM']) {
      expect(help.stdout).toContain(word)
    }
  })
})
