/** Requests that no well-meant client makes, each with what a server may do about it. */
import { connect, type Socket } from 'node:net'
import fc from 'fast-check'

/** What came back: a status and its body, or a connection closed without one. */
export interface Outcome {
  status: number | null
  body: string
}

/** One request: what is sent when, and which statuses are right; `closed`: so is none. */
export interface Hostile {
  kind: string
  /** Pieces to send, with pauses between them. */
  pieces: (string | Buffer)[]
  pauseMs: number
  /** Leaves after this many bytes of the answer; -1: stays. */
  leaveAfter: number
  statuses: readonly number[]
  closed: boolean
}

const head = (path: string, length: number | string, more = '') =>
  `POST ${path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-type: application/json\r\n${more}` +
  (typeof length === 'number' ? `content-length: ${length}\r\n\r\n` : `${length}\r\n\r\n`)

const path = fc.constantFrom('/v1/responses', '/v1/chat/completions', '/v1/completions')
/** A request that is right, but for its prompt. */
const asks = (at: string, prompt: string): object => {
  if (at.includes('responses')) return { input: prompt, max_output_tokens: 4 }
  return at.includes('chat')
    ? { messages: [{ role: 'user', content: prompt }], max_tokens: 4 }
    : { prompt, max_tokens: 4 }
}
const good = (at: string) => asks(at, 'line a')

/** A request whose body is there at once. */
const whole = (
  kind: string,
  at: string,
  body: string | Buffer,
  statuses: readonly number[],
  more = '',
): Hostile => ({
  kind,
  pieces: [head(at, Buffer.byteLength(body), more), body],
  pauseMs: 0,
  leaveAfter: -1,
  statuses,
  closed: false,
})

const brokenJson = fc
  .tuple(path, fc.nat({ max: 60 }), fc.constantFrom('', '}', '"', '\\', '\u0000', '[', ','))
  .map(([at, place, put]) => {
    const text = JSON.stringify(good(at))
    const cut = 1 + (place % (text.length - 1))
    return { at, text: `${text.slice(0, cut)}${put}` }
  })
  .filter(({ text }) => !isJson(text)) // a cut may be healed by what is put there
  .map(({ at, text }) => whole('broken JSON', at, text, [400]))

function isJson(text: string): boolean {
  try {
    JSON.parse(text)
    return true
  } catch {
    return false
  }
}

const FIELDS = [
  ...['messages', 'prompt', 'model', 'max_tokens', 'temperature', 'top_p', 'top_k', 'n', 'stop'],
  ...['seed', 'stream', 'stream_options', 'logprobs', 'kv_cache', 'tools', 'min_p', 'echo'],
  ...['prompt_lookup', 'prediction'],
  ...['tool_choice', 'response_format', 'logit_bias', 'input', 'instructions', 'text', 'include'],
  ...['store', 'previous_response_id', 'metadata', 'reasoning', 'background'],
]
/** Any JSON in any field: refused, or by chance a request that makes sense. */
const wrongTypes = fc
  .tuple(path, fc.constantFrom(...FIELDS), fc.jsonValue({ maxDepth: 4 }))
  .map(([at, field, value]) => {
    const body = { ...good(at), [field]: value }
    return whole('wrong type', at, JSON.stringify(body), [200, 400, 403, 404])
  })

const unknownFields = fc
  .tuple(path, fc.string({ minLength: 1 }), fc.jsonValue({ maxDepth: 2 }))
  .map(([at, field, value]) =>
    whole('unknown field', at, JSON.stringify({ ...good(at), [`x${field}`]: value ?? 0 }), [400]),
  )

const hugeFields = fc.tuple(path, fc.integer({ min: 1e4, max: 2e5 })).map(([at, n]) => {
  const body = asks(at, 'a '.repeat(n))
  return whole('huge prompt', at, JSON.stringify(body), [400])
})

const deep = fc
  .tuple(path, fc.integer({ min: 65, max: 1e5 }), fc.constantFrom('[', '{"a":'))
  .map(([at, n, open]) => whole('deep', at, `{"metadata":${open.repeat(n)}`, [400]))

const invalidUtf8 = fc
  .tuple(path, fc.constantFrom([0xff], [0xc0, 0x80], [0xed, 0xa0, 0x80], [0xf5, 0x80, 0x80, 0x80]))
  .map(([at, bytes]) => {
    const [before, after] = JSON.stringify({ ...good(at), user: '@' }).split('@') as [
      string,
      string,
    ]
    const body = Buffer.concat([Buffer.from(before), Buffer.from(bytes), Buffer.from(after)])
    return whole('no UTF-8', at, body, [400])
  })

/** Half a surrogate pair, zeros, control characters, special tokens: texts like any other. */
const oddTexts = fc
  .tuple(path, fc.constantFrom('\\ud800', '\\u0000', '\\u202e', '<s></s><unk>', '\\uffff'))
  .map(([at, text]) =>
    whole('odd text', at, JSON.stringify(good(at)).replace('line a', text), [200, 400]),
  )

const oversized = fc.tuple(path, fc.boolean()).map(([at, isChunked]): Hostile => {
  const body = Buffer.alloc(2 ** 20 + 1, ' ')
  const chunk = Buffer.concat([Buffer.from('100001\r\n'), body, Buffer.from('\r\n0\r\n\r\n')])
  return {
    kind: 'oversized',
    pieces: isChunked ? [head(at, 'transfer-encoding: chunked'), chunk] : [head(at, 2 ** 40), body],
    pauseMs: 0,
    leaveAfter: -1,
    statuses: [413],
    closed: true, // the rest of the body may meet a closed connection
  }
})

const slow = path.map(
  (at): Hostile => ({
    kind: 'slow body',
    pieces: [head(at, 100), '{'],
    pauseMs: 0,
    leaveAfter: -1,
    statuses: [408],
    closed: true,
  }),
)

const brokenHttp = fc
  .constantFrom(
    'GET\r\n\r\n',
    '\u0000\u0001\u0002\r\n\r\n',
    'POST /v1/completions HTTP/9.9\r\n\r\n',
    'POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-length: x\r\n\r\n',
    'POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n',
    'POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n',
    `GET / HTTP/1.1\r\nhost: h\r\nx: ${'a'.repeat(1 << 17)}\r\n\r\n`,
    'POST /v1/completions HTTP/1.1\r\n\r\n',
  )
  .map(
    (text): Hostile => ({
      kind: 'broken HTTP',
      pieces: [text],
      pauseMs: 0,
      leaveAfter: -1,
      statuses: [400, 401, 415, 431],
      closed: true,
    }),
  )

const unknown = fc
  .tuple(
    fc.constantFrom('GET', 'PUT', 'DELETE', 'PATCH', 'HEAD', 'OPTIONS'),
    fc.constantFrom(
      ...[
        '/',
        '/v1',
        '/v1/files',
        '/v1/completions',
        '/v1/responses/a',
        '/%00',
        '/%zz',
        '/../etc/passwd',
      ],
      ...['/page.js', '/page/../server.js', '/v1/sessions/a/cache', '/v1/sessions/%ff/cache'],
    ),
  )
  .map(
    ([method, at]): Hostile => ({
      kind: 'unknown path',
      pieces: [`${method} ${at} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n`],
      pauseMs: 0,
      leaveAfter: -1,
      statuses: [200, 400, 401, 404, 405],
      closed: false,
    }),
  )

const wrongModels = fc
  .tuple(path, fc.string({ minLength: 1, maxLength: 200 }))
  .map(([at, name]) =>
    whole('unknown model', at, JSON.stringify({ ...good(at), model: `x${name}` }), [404]),
  )

const wrongTypesOfContent = fc
  .tuple(path, fc.constantFrom('text/plain', 'application/xml', 'multipart/form-data', 'a'))
  .map(([at, type]): Hostile => {
    const one = whole('content type', at, '{}', [415])
    return {
      ...one,
      pieces: one.pieces.map((piece) => String(piece).replace('application/json', type)),
    }
  })

/** A request whose answer takes a while. */
const long = (at: string) => ({
  ...good(at),
  [at.includes('responses') ? 'max_output_tokens' : 'max_tokens']: 2000,
})

/** Leaves at any stage: in the head, in the body, while it waits, in the middle of the stream. */
const leavers = fc
  .tuple(path, fc.double({ min: 0, max: 1, noNaN: true }), fc.integer({ min: 0, max: 3000 }))
  .map(([at, share, bytes]): Hostile => {
    const body = JSON.stringify({ ...long(at), stream: true, ignore_eos: true })
    const all = head(at, body.length) + body
    const isWhole = share > 0.5
    return {
      kind: 'leaves',
      pieces: [isWhole ? all : all.slice(0, Math.floor(2 * share * all.length))],
      pauseMs: 0,
      leaveAfter: isWhole ? bytes : 0,
      statuses: [200],
      closed: true,
    }
  })

/** Any of them. `authorization`: the header of a right key. */
export function hostileRequests(key: string): fc.Arbitrary<Hostile> {
  const authorized = fc
    .oneof(
      { weight: 4, arbitrary: brokenJson },
      { weight: 6, arbitrary: wrongTypes },
      { weight: 2, arbitrary: unknownFields },
      { weight: 1, arbitrary: hugeFields },
      { weight: 2, arbitrary: deep },
      { weight: 2, arbitrary: invalidUtf8 },
      { weight: 2, arbitrary: oddTexts },
      { weight: 1, arbitrary: oversized },
      { weight: 1, arbitrary: slow },
      { weight: 2, arbitrary: wrongModels },
      { weight: 1, arbitrary: wrongTypesOfContent },
      { weight: 4, arbitrary: leavers },
    )
    .map((one) => ({
      ...one,
      pieces: one.pieces.map((piece, i) =>
        i === 0
          ? String(piece).replace('connection: close\r\n', `connection: close\r\n${key}`)
          : piece,
      ),
    }))
  const stranger = fc
    .tuple(
      path,
      fc.constantFrom('', 'authorization: Bearer wrong\r\n', 'authorization: Basic a\r\n'),
    )
    .map(([at, header]) => whole('wrong key', at, JSON.stringify(good(at)), [401], header))
  return fc.oneof(
    { weight: 28, arbitrary: authorized },
    { weight: 2, arbitrary: stranger },
    { weight: 2, arbitrary: brokenHttp },
    { weight: 2, arbitrary: unknown },
  )
}

/** Sends a request over a connection of its own, and waits until that is closed. */
export async function attack(port: number, request: Hostile): Promise<Outcome> {
  const socket: Socket = connect({ port, host: '127.0.0.1' })
  socket.on('error', () => {}) // a reset is a close
  let answer = ''
  const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()))
  socket.setEncoding('latin1').on('data', (chunk: string) => {
    if (answer.length < 4096) answer += chunk
    if (request.leaveAfter >= 0 && answer.length >= request.leaveAfter) socket.destroy()
  })
  const timer = setTimeout(() => {
    answer = 'TIMEOUT'
    socket.destroy()
  }, 60_000)
  for (const piece of request.pieces) {
    if (!socket.destroyed) socket.write(piece)
    if (request.pauseMs > 0) await new Promise((resolve) => setTimeout(resolve, request.pauseMs))
  }
  if (request.leaveAfter === 0) socket.end(() => socket.destroy())
  await closed
  clearTimeout(timer)
  if (answer === 'TIMEOUT') throw new Error(`no end after 60 s: ${JSON.stringify(request)}`)
  const status = /^HTTP\/1\.1 (\d+)/.exec(answer)
  return { status: status ? Number(status[1]) : null, body: answer }
}
