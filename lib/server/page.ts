import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { FastifyInstance } from 'fastify'

/** A text that the page offers to send. */
export interface PageExample {
  /** On its button. */
  readonly title: string
  /** The text. */
  readonly message: string
  /** New tokens that make a whole answer. */
  readonly maxTokens: number
}

/** What the page has to know before it asks anything. */
export interface PageSettings {
  readonly policy: string
  /** Policies that requests may ask for. */
  readonly policies: readonly string[]
  readonly examples: readonly PageExample[]
}

const FILES = [
  ['/', 'index.html', 'text/html; charset=utf-8'],
  ['/page.css', 'page.css', 'text/css; charset=utf-8'],
  ['/page.js', 'page.js', 'text/javascript; charset=utf-8'],
] as const

/** Nothing but our own files, no script in the markup, in nobody's frame. */
const HEADERS = {
  'content-security-policy':
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; " +
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  'cache-control': 'no-cache',
}

/** Serves the page at `/`. It holds nothing of the model or of users, so that it needs no key. */
export function addPage(app: FastifyInstance, settings: () => PageSettings): void {
  for (const [url, file, type] of FILES) {
    let content: Promise<Buffer> | undefined
    app.get(url, async (_, reply) => {
      content ??= readFile(join(__dirname, 'page', file))
      return reply
        .headers(HEADERS)
        .type(type)
        .send(await content)
    })
  }
  app.get('/page.json', async (_, reply) => reply.headers(HEADERS).send(settings()))
}
