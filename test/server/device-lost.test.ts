/** A device that is lost while the server runs: requests are told so, and routers too. */
import { join } from 'node:path'
import { ZipCacheError } from '../../lib/errors'
import { end, kMain, startNode } from '../cli/command-line'
import { kFixtures } from '../model/model-folder'
import { post, until } from './running'
import { startScripted, tokenizerWith } from './scripted-model'

const messages = [{ role: 'user', content: 'hello' }]

test('requests fail with 503 device_lost, /health/ready with 503, and /health/live lives', async () => {
  const running = await startScripted(await tokenizerWith('{{ messages[0].content }}'))
  const url = `${running.url}/v1/chat/completions`
  const health = async (path: string) => {
    const response = await fetch(`${running.url}/health${path}`)
    return [response.status, ((await response.json()) as { status: string }).status]
  }
  try {
    running.script.next = { say: 'fine' }
    expect((await post(url, { messages })).status).toBe(200)
    expect(await health('/ready')).toEqual([200, 'ready'])

    const error = new ZipCacheError('ERR_ZC_DEVICE_LOST', 'device: it was lost')
    running.script.next = { say: '', fail: error }
    const failed = await post(url, { messages, stream: true })
    expect(failed).toMatchObject({
      status: 503,
      body: { error: { code: 'device_lost', type: 'server_error' } },
    })
    expect(await health('/ready')).toEqual([503, 'lost'])
    expect(await health('')).toEqual([503, 'lost'])
    expect(await health('/live')).toEqual([200, 'live'])

    // For good, whatever the engine would say.
    running.script.next = { say: 'fine' }
    const nPrompts = running.prompts.length
    expect(await post(url, { messages })).toMatchObject({
      status: 503,
      body: { error: { code: 'device_lost' } },
    })
    expect(running.prompts.length).toBe(nPrompts)
  } finally {
    await running.server.close()
  }
})

test('an emulated GPU that breaks: the process lives, and ends in good order', async () => {
  const model = join(kFixtures, 'hf', 'llama')
  const args = [kMain, 'serve', '--model', model, '--device', 'cuda-emu', '--port', '0']
  // Enough for the model and some answers.
  const child = startNode([...args, '--kv-memory', '8m'], { ZC_EMU_FAULT: '2000' })
  const ended = end(child)
  try {
    let stderr = ''
    child.stderr.on('data', (chunk: string) => {
      stderr += chunk
    })
    await until(() => /listening on \S+/.test(stderr))
    const url = /listening on (\S+)/.exec(stderr)?.[1] as string
    await until(async () => (await fetch(`${url}/health/ready`)).status === 200, 30_000)
    const ask = () =>
      post(`${url}/v1/completions`, { prompt: [5, 6, 7], max_tokens: 8, ignore_eos: true })
    expect((await ask()).status).toBe(200)
    let last = await ask()
    for (let i = 0; i < 1000 && last.status === 200; i++) last = await ask()
    expect(last).toMatchObject({ status: 503, body: { error: { code: 'device_lost' } } })
    expect((await fetch(`${url}/health/ready`)).status).toBe(503)
    expect((await fetch(`${url}/health/live`)).status).toBe(200)
    expect((await ask()).body.error.code).toBe('device_lost')
    child.kill('SIGTERM')
    expect((await ended).exitCode).toBe(0)
  } finally {
    child.kill('SIGKILL')
  }
})
