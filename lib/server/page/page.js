/**
 * The page at `/`: a chat, and what its cache takes while it goes on. It knows nothing that a client
 * of the API could not know: answers come with their usage in every chunk, and how single tokens are
 * kept comes from `/v1/sessions/:id/cache`.
 */
const $ = (id) => document.getElementById(id)

/** What `bytes_by_class` holds, in the order of the bar. */
const CLASSES = {
  high: 'salient tokens',
  low: 'other tokens',
  tail: 'newest tokens, 16 bits',
  params: 'scales and zeros',
  bitmaps: 'which are salient',
  tables: 'page tables',
  probes: 'probe rows',
  states: 'of recurrent layers',
}

let key = ''
/** OpenAI's messages so far. */
let messages = []
let session = newSession()
/** What ends the answer under way; null without one. */
let abort = null
/** Tokens as the server told of them last, and texts that have come since. */
let tokens = []
let selected = -1
/** A request for tokens under way, and whether it asks for what has changed since. */
let refreshing = null
let isStale = false

function newSession() {
  // crypto.randomUUID exists on https and localhost alone.
  const bytes = crypto.getRandomValues(new Uint8Array(16))
  return `page-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('')}`
}

// ---- the server ----

class RequestError extends Error {
  constructor(status, message) {
    super(message)
    this.status = status
  }
}

/** Asks the server; throws a `RequestError` with what it says. */
async function ask(path, { body, signal } = {}) {
  const headers = { 'x-session-id': session }
  if (key !== '') headers.authorization = `Bearer ${key}`
  if (body) headers['content-type'] = 'application/json'
  const init = { method: body ? 'POST' : 'GET', headers, signal, cache: 'no-store' }
  const response = await fetch(path, body ? { ...init, body: JSON.stringify(body) } : init)
  if (response.ok) return response
  const { error } = await response.json().catch(() => ({}))
  throw new RequestError(response.status, error?.message ?? `status ${response.status}`)
}

/** The objects of a stream of server-sent events. */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  let text = ''
  for (;;) {
    const { value, done } = await reader.read()
    if (done) throw new Error('the connection broke before the answer was whole')
    text += value
    const events = text.split('\n\n')
    text = events.pop()
    for (const event of events) {
      if (!event.startsWith('data: ')) continue // a ping
      const data = event.slice('data: '.length)
      if (data === '[DONE]') return
      const chunk = JSON.parse(data)
      if (chunk.error) throw new Error(chunk.error.message)
      yield chunk
    }
  }
}

// ---- the beginning ----

async function connect() {
  try {
    const { data } = await (await ask('v1/models')).json()
    $('key-form').hidden = true
    await offerSettings()
    say(`${data[0].id}, up to ${data[0].max_model_len} tokens`)
    $('send').disabled = false
  } catch (error) {
    if (error.status === 401) {
      $('key-form').hidden = false
      say(key === '' ? 'This server asks for a key.' : error.message)
      $('key').focus()
    } else {
      say(error.message)
      setTimeout(connect, 1000) // the model is being loaded, perhaps
    }
  }
}

async function offerSettings() {
  const { policy, policies, examples } = await (await ask('page.json')).json()
  const choices = [['', `the server's: ${policy}`], ...policies.map((name) => [name, name])]
  $('policy').replaceChildren(
    ...choices.map(([value, text]) =>
      Object.assign(document.createElement('option'), { value, text }),
    ),
  )
  $('examples').hidden = examples.length === 0
  $('examples').replaceChildren(
    ...examples.map(({ title, message, maxTokens }) => {
      const button = element('button', title)
      button.type = 'button'
      button.onclick = () => {
        $('message').value = message
        $('max-tokens').value = maxTokens
        $('message').focus()
      }
      return button
    }),
  )
}

function say(text) {
  $('state').textContent = text
}

function element(name, text = '', className = '') {
  const made = document.createElement(name)
  made.textContent = text
  if (className !== '') made.className = className
  return made
}

// ---- a conversation ----

function addMessage(role, text) {
  const article = element('article')
  const content = element('p', text, role === 'error' ? 'error' : '')
  article.append(element('h4', role), content)
  $('log').append(article)
  $('log').scrollTop = $('log').scrollHeight
  return content
}

function renew() {
  abort?.abort()
  abort = null
  setBusy(false)
  messages = []
  session = newSession()
  $('log').replaceChildren()
  for (const id of ['ratio', 'bytes', 'fp16', 'count', 'first', 'speed']) $(id).textContent = '–'
  $('bars').setAttribute('aria-label', 'No cache yet')
  for (const id of ['class-bar', 'classes']) $(id).replaceChildren()
  $('fp16-bar').style.width = '0'
  showTokens([])
}

async function send() {
  const question = { role: 'user', content: $('message').value }
  const own = new AbortController()
  abort = own
  setBusy(true)
  addMessage('you', question.content)
  const view = makeAnswerView(addMessage('model', ''))
  const body = {
    messages: [...messages, question],
    max_tokens: Number($('max-tokens').value),
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
    ...($('policy').value === '' ? {} : { kv_cache: $('policy').value }),
  }
  try {
    const response = await ask('v1/chat/completions', { body, signal: own.signal })
    for await (const { choices, usage } of eventsOf(response)) {
      const { content = '', reasoning_content: thought = '' } = choices[0]?.delta ?? {}
      view.take(content, thought, usage)
    }
    $('message').value = ''
  } catch (error) {
    if (abort !== own) return // another conversation was begun
    if (error.name !== 'AbortError') {
      addMessage('error', error.message)
      if (error.status === 401) void connect()
    }
  }
  if (abort !== own) return
  view.draw()
  if (view.text !== '') messages.push(question, { role: 'assistant', content: view.text })
  await refreshTokens()
  abort = null
  setBusy(false)
}

function setBusy(isBusy) {
  $('send').disabled = isBusy
  $('stop').disabled = !isBusy
  for (const id of ['log', 'tokens']) $(id).setAttribute('aria-busy', isBusy)
}

/** An answer as it comes: however many chunks there are, a frame is drawn once. */
function makeAnswerView(content) {
  const startedAt = performance.now()
  const clock = { firstAt: 0, tokensThen: 0 }
  const asked = session
  /** What the model thinks by itself, before what it says; made when there is any. */
  let thoughts = null
  let thought = ''
  let arrived = []
  let usage = null
  let lastTail = 0
  let frame = 0
  const view = {
    text: '',
    take(said, thinking, now) {
      if (asked !== session) return
      usage = now
      view.text += said
      thought += thinking
      const piece = thinking + said
      if (clock.firstAt === 0 && usage.completion_tokens > 0) {
        clock.firstAt = performance.now()
        clock.tokensThen = usage.completion_tokens
        $('first').textContent = `${((clock.firstAt - startedAt) / 1000).toFixed(2)} s`
        void refreshTokens() // the prompt's
      }
      const { tail } = usage.kv_cache.bytes_by_class
      if (tail < lastTail) void refreshTokens() // a window of new tokens was compressed
      lastTail = tail
      if (piece !== '') arrived.push(piece)
      frame ||= requestAnimationFrame(view.draw)
    },
    draw() {
      cancelAnimationFrame(frame)
      frame = 0
      if (usage === null || asked !== session) return
      content.textContent = view.text
      if (thought !== '') {
        if (thoughts === null) {
          thoughts = element('p', '', 'thought')
          content.before(thoughts)
        }
        thoughts.textContent = thought
      }
      $('log').scrollTop = $('log').scrollHeight
      const seconds = (performance.now() - clock.firstAt) / 1000
      const made = usage.completion_tokens - clock.tokensThen
      if (made > 0) $('speed').textContent = (made / seconds).toFixed(1)
      showUsage(usage)
      for (const text of arrived)
        addToken({ text, bits: 16, salient: null, score: null, isNew: true })
      arrived = []
    },
  }
  return view
}

/** Asks how all tokens are kept, once more if somebody wants to know while it asks. */
async function refreshTokens() {
  isStale = true
  refreshing ??= askForTokens().finally(() => {
    refreshing = null
  })
  await refreshing
}

async function askForTokens() {
  while (isStale) {
    isStale = false
    await showTokensOf(session)
  }
}

async function showTokensOf(asked) {
  try {
    const cache = await (await ask(`v1/sessions/${asked}/cache`)).json()
    if (asked === session) showTokens(cache.tokens)
  } catch (error) {
    // 404: the session has no cache yet, or the server keeps none.
    if (asked === session && error.status !== 404) $('detail').textContent = error.message
  }
}

// ---- numbers ----

const formatBytes = (bytes) =>
  bytes < 1e3
    ? `${bytes} B`
    : bytes < 1e6
      ? `${(bytes / 1e3).toFixed(1)} kB`
      : `${(bytes / 1e6).toFixed(2)} MB`
const formatPercent = (share) => `${(100 * share).toFixed(1)}%`

function showUsage({ total_tokens, kv_cache }) {
  const { bytes, fp16_bytes, ratio, bytes_by_class } = kv_cache
  if (bytes === 0) return
  $('ratio').textContent = `${ratio.toFixed(2)}×`
  $('bytes').textContent = formatBytes(bytes)
  $('fp16').textContent = formatBytes(fp16_bytes)
  $('count').textContent = total_tokens
  const widest = Math.max(bytes, fp16_bytes)
  const parts = Object.entries(bytes_by_class).filter(([, own]) => own > 0)
  $('fp16-bar').style.width = formatPercent(fp16_bytes / widest)
  $('class-bar').replaceChildren(
    ...parts.map(([name, own]) => {
      const part = element('span', '', name)
      part.style.width = formatPercent(own / widest)
      return part
    }),
  )
  $('classes').replaceChildren(
    ...parts.map(([name, own]) => {
      const row = element('tr')
      const head = element('th', CLASSES[name] ?? name, name)
      head.scope = 'row'
      row.append(
        head,
        element('td', formatBytes(own)),
        element('td', formatPercent(own / fp16_bytes)),
      )
      return row
    }),
  )
  const told = parts.map(([name, own]) => `${CLASSES[name] ?? name} ${formatBytes(own)}`).join(', ')
  $('bars').setAttribute(
    'aria-label',
    `${formatBytes(bytes)} of ${formatBytes(fp16_bytes)}: ${told}`,
  )
}

// ---- tokens ----

function showTokens(all) {
  const before = tokens
  tokens = all
  const shown = $('tokens').children
  for (const [i, token] of tokens.entries()) {
    const isSame = before[i]?.text === token.text && before[i].bits === token.bits
    if (shown[i] && isSame) continue
    if (shown[i]) shown[i].replaceWith(tokenElement(token, i))
    else $('tokens').append(tokenElement(token, i))
  }
  while (shown.length > tokens.length) shown[shown.length - 1].remove()
  select(selected < tokens.length ? selected : -1)
}

function addToken(token) {
  tokens.push(token)
  $('tokens').append(tokenElement(token, tokens.length - 1))
}

function tokenElement(token, i) {
  const { bits } = token
  const kind = bits === null ? 'unknown' : bits >= 16 ? 'tail' : ''
  // A token without text of its own (half a character) has to be seen, too.
  const made = element('span', token.text === '' ? '·' : (token.text ?? `${token.id} `))
  made.className = `token ${kind}`
  made.id = `token-${i}`
  made.role = 'option'
  if (kind === '') made.style.setProperty('--precision', Math.min(1, Math.max(0, (bits - 2) / 2)))
  return made
}

/** Shows what is known of a token; -1: of none. */
function select(i) {
  $(`token-${selected}`)?.removeAttribute('aria-selected')
  selected = i
  const token = tokens[i]
  if (!token) {
    $('detail').textContent = '\u00a0'
    $('tokens').removeAttribute('aria-activedescendant')
    return
  }
  const shown = $(`token-${i}`)
  shown.setAttribute('aria-selected', 'true')
  $('tokens').setAttribute('aria-activedescendant', shown.id)
  $('detail').textContent = describe(token, i)
}

function describe({ text, bits, salient, score, isNew }, i) {
  const facts = [`token ${i}`, JSON.stringify(text)]
  if (isNew) facts.push('just generated')
  facts.push(bits === null ? 'not kept token by token' : `${Number(bits.toFixed(2))} bits`)
  if (salient !== null) facts.push(`salient in ${formatPercent(salient)} of layers and heads`)
  if (score !== null) facts.push(`mean saliency ${score.toPrecision(3)}`)
  return facts.join(', ')
}

const STEPS = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }

function moveSelection(event) {
  const last = tokens.length - 1
  const target =
    event.key === 'Home'
      ? 0
      : event.key === 'End'
        ? last
        : event.key in STEPS
          ? selected + STEPS[event.key]
          : null
  if (target === null || last < 0) return
  event.preventDefault()
  select(Math.min(last, Math.max(0, target)))
  $(`token-${selected}`).scrollIntoView({ block: 'nearest' })
}

// ---- what users do ----

$('key-form').onsubmit = (event) => {
  event.preventDefault()
  key = $('key').value.trim()
  $('key').value = ''
  void connect()
}
$('ask').onsubmit = (event) => {
  event.preventDefault()
  if (abort === null && !$('send').disabled) void send()
}
$('message').onkeydown = (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) $('ask').requestSubmit()
}
$('stop').onclick = () => abort?.abort()
$('renew').onclick = renew
$('policy').onchange = renew
$('tokens').onkeydown = moveSelection
// Not `over`: what scrolls by under a resting pointer is not pointed at.
$('tokens').onpointermove = ({ target }) => {
  const [, i] = /^token-(\d+)$/.exec(target.id) ?? []
  if (i !== undefined) select(Number(i))
}
void connect()
