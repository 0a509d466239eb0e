/** The examples of servers, and clients of others that are pointed at ours. */

import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateText, streamText } from 'ai'
import { generateLineRetrieval } from '../../lib/index'
import { end, kModel, kRoot, startNode } from '../cli/command-line'
import { until, useServer } from './running'

const question = generateLineRetrieval({ lines: 10, seed: 3 })

test.each(['fastify.mjs', 'express.mjs'])(
  '%s streams an answer, refuses a prompt of nothing, and ends on SIGTERM',
  async (name) => {
    const child = startNode([join(kRoot, 'examples', name)])
    const { pid } = child
    try {
      const ended = end(child)
      let url = ''
      child.stdout.on('data', (chunk: string) => {
        url ||= /http:\S+/.exec(String(chunk))?.[0] ?? ''
      })
      await until(() => url !== '')
      const response = await fetch(`${url}/answer`, { method: 'POST', body: question.text })
      expect(await response.text()).toContain(question.answerText)
      const refused = await fetch(`${url}/answer`, { method: 'POST', body: '' })
      expect(refused.status).toBe(400)
      expect(await refused.text()).toContain('prompt')
      child.kill('SIGTERM')
      expect(await ended).toMatchObject({ exitCode: 0, stderr: '' })
    } finally {
      if (pid !== undefined && child.exitCode === null) child.kill('SIGKILL')
    }
  },
)

test('next-route.mjs answers a Request with a Response', async () => {
  const route = pathToFileURL(join(kRoot, 'examples', 'next-route.mjs')).href
  const body = JSON.stringify({ prompt: question.text })
  const script = `
    process.env.ZIPCACHE_MODEL = ${JSON.stringify(kModel)}
    const { POST } = await import(${JSON.stringify(route)})
    const ask = (body) => POST(new Request('http://h/', { method: 'POST', body }))
    console.log(await (await ask(${JSON.stringify(body)})).text())
    console.log((await ask('{"prompt":""}')).status)
    process.exit()`
  const child = startNode(['--input-type=module', '-e', script])
  child.stdin.end()
  const { exitCode, stdout, stderr } = await end(child)
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
  expect(stdout).toContain(question.answerText)
  expect(stdout.trim().split('\n').at(-1)).toBe('400')
})

describe('the Vercel AI SDK', () => {
  const running = useServer()

  test('generateText and streamText', async () => {
    const provider = createOpenAICompatible({
      name: 'zipcache',
      baseURL: `${running().url}/v1`,
      includeUsage: true,
    })
    const asked = {
      model: provider('zipcache'),
      messages: [{ role: 'user' as const, content: question.text }],
      maxOutputTokens: 14,
      temperature: 0,
    }
    const { text, usage } = await generateText(asked)
    expect(text).toContain(question.answerText)
    expect(usage.outputTokens).toBe(14)
    const stream = streamText(asked)
    let streamed = ''
    for await (const piece of stream.textStream) streamed += piece
    expect(streamed).toBe(text)
    expect((await stream.usage).outputTokens).toBe(14)
  })
})
