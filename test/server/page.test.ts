/**
 * The page at `/`, in Chromium. Screenshots go to build/screenshots. Without Debian's `chromium` the
 * tests in it are skipped.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { type Browser, chromium, type Page } from 'playwright-core'
import { generateLineRetrieval } from '../../lib/index'
import { kRoot } from '../cli/command-line'
import { kLineRetrieval, type Running, startServer } from './running'

const found = spawnSync('which', ['chromium'], { encoding: 'utf8' }).stdout.trim()
const kChromium = process.env.ZC_CHROMIUM ?? found
const hasChromium = existsSync(kChromium)
if (!hasChromium)
  console.warn('chromium is not installed (Debian: chromium): its tests are skipped')
const inBrowser = hasChromium ? test : test.skip

const kScreenshots = join(kRoot, 'build', 'screenshots')
const question = generateLineRetrieval({ lines: 60, seed: 2 })
const next = generateLineRetrieval({ lines: 60, seed: 2, targetLine: 3 })
const examples = [
  { title: '60 records and a question', message: question.text, maxTokens: 14 },
  { title: 'then another question', message: next.questionText, maxTokens: 14 },
]

describe('what the server sends', () => {
  let running: Running
  beforeAll(async () => {
    running = await startServer({ apiKeys: ['secret'], policy: 'kivi2' })
  })
  afterAll(() => running.close())

  test('files of its own, under a strict policy, without a key', async () => {
    for (const [path, type] of [
      ['/', 'text/html; charset=utf-8'],
      ['/page.css', 'text/css; charset=utf-8'],
      ['/page.js', 'text/javascript; charset=utf-8'],
    ] as const) {
      const response = await fetch(running.url + path)
      expect(response.status).toBe(200)
      expect(response.headers.get('content-type')).toBe(type)
      expect(response.headers.get('x-content-type-options')).toBe('nosniff')
      const csp = response.headers.get('content-security-policy')
      expect(csp).toContain("default-src 'none'")
      expect(csp).not.toContain('unsafe')
      expect(await response.text()).not.toMatch(/https?:\/\//)
    }
    const settings = await (await fetch(`${running.url}/page.json`)).json()
    expect(settings).toMatchObject({ policy: 'kivi2', examples: [] })
    expect((settings as { policies: string[] }).policies).toContain('zipcache')
  })

  test('nothing where it is turned off', async () => {
    const bare = await startServer({ page: false })
    try {
      for (const path of ['/', '/page.js', '/page.json']) {
        expect((await fetch(bare.url + path)).status).toBe(404)
      }
    } finally {
      await bare.close()
    }
  })
})

describe('in Chromium', () => {
  let running: Running
  let browser: Browser
  beforeAll(async () => {
    if (!hasChromium) return
    mkdirSync(kScreenshots, { recursive: true })
    running = await startServer({ apiKeys: ['secret'] }, kLineRetrieval, {}, examples)
    browser = await chromium.launch({
      executablePath: kChromium,
      args: process.getuid?.() === 0 ? ['--no-sandbox'] : [],
    })
  })
  afterAll(async () => {
    await browser?.close()
    await running?.close()
  })

  /** Opens the page and gives it the key; `problems` gets whatever the browser complains of. */
  async function open(colorScheme: 'light' | 'dark' = 'light') {
    const page = await browser.newPage({ colorScheme, viewport: { width: 1280, height: 1200 } })
    const problems: string[] = []
    page.on('pageerror', (error) => problems.push(String(error)))
    page.on('console', (message) => {
      // The first request has no key, and no session is there before its prompt is.
      if (message.type() === 'error' && !/status of (401|404)/.test(message.text())) {
        problems.push(message.text())
      }
    })
    page.on('request', (request) => {
      const url = request.url()
      if (!url.startsWith(running.url) && url !== 'data:,') problems.push(`a request to ${url}`)
    })
    await page.goto(running.url)
    await page.getByLabel('API key').fill('secret')
    await page.getByRole('button', { name: 'Use it' }).click()
    await page.getByText('zipcache, up to 8192 tokens').waitFor()
    return { page, problems }
  }

  /** Sends what stands in the field, and waits for the answer and its tokens. */
  async function send(page: Page) {
    const articles = page.locator('#log article')
    const n = await articles.count()
    await page.getByRole('button', { name: 'Send', exact: true }).click()
    await expectEventually(async () => (await articles.count()) >= n + 2)
    await page.locator('#tokens[aria-busy=false]').waitFor()
  }

  const numberOf = async (page: Page, id: string) =>
    Number.parseFloat((await page.locator(`#${id}`).textContent()) ?? '')

  inBrowser('a wrong key is told, a right one lets in', async () => {
    const page = await browser.newPage()
    await page.goto(running.url)
    const key = page.getByLabel('API key')
    await key.waitFor()
    expect(await key.evaluate((own) => own === own.ownerDocument.activeElement)).toBe(true)
    await key.fill('wrong')
    await page.keyboard.press('Enter')
    await page.getByText('the API key is not one of this server').waitFor()
    expect(await page.getByRole('button', { name: 'Send', exact: true }).isDisabled()).toBe(true)
    await page.close()
  })

  inBrowser('a conversation, its bytes and its tokens', async () => {
    const { page, problems } = await open()
    await page.getByRole('button', { name: '60 records' }).click()
    await send(page)
    const answer = page.locator('#log article').nth(1).locator('p')
    expect(await answer.textContent()).toBe(`${question.answerText} >`)
    expect(await numberOf(page, 'ratio')).toBeGreaterThan(3.5)
    expect(await numberOf(page, 'speed')).toBeGreaterThan(0)
    expect(await numberOf(page, 'first')).toBeGreaterThan(0)

    // The bars are as long as the table says.
    const widthOf = async (parts: string) => {
      const all = await page.locator(parts).all()
      const boxes = await Promise.all(all.map((part) => part.boundingBox()))
      return boxes.reduce((sum, box) => sum + (box?.width ?? 0), 0)
    }
    const widths = (await widthOf('#fp16-bar')) / (await widthOf('#class-bar span'))
    expect(widths).toBeCloseTo(await numberOf(page, 'ratio'), 1)
    expect(await page.locator('#bars').getAttribute('aria-label')).toMatch(
      /kB of .* salient tokens/,
    )

    // Every token of the cache, in its colour.
    const session = running.server.engine?.stats()
    expect(session?.sequences).toBe(1)
    const tokens = page.locator('#tokens .token')
    const shown = (await tokens.allTextContents()).join('')
    expect(shown.startsWith(question.text)).toBe(true)
    const paints = await tokens.evaluateAll((all) =>
      all.map((own) => own.ownerDocument.defaultView.getComputedStyle(own).backgroundColor),
    )
    expect(new Set(paints).size).toBeGreaterThan(4)
    expect(await page.locator('#tokens .tail').count()).toBe(13)

    // With the pointer and with the keyboard.
    const detail = page.locator('#detail')
    await tokens.nth(5).hover()
    expect(await detail.textContent()).toMatch(
      /^token 5, ".+", [\d.]+ bits, salient in [\d.]+% of layers and heads, mean saliency [\d.e-]+$/,
    )
    await page.locator('#tokens').focus()
    await page.keyboard.press('ArrowRight')
    expect(await detail.textContent()).toMatch(/^token 6,/)
    await page.keyboard.press('End')
    expect(await detail.textContent()).toMatch(/, 16 bits$/)
    expect(await page.locator('#tokens [aria-selected=true]').count()).toBe(1)
    await page.screenshot({ path: join(kScreenshots, 'page-light.png'), fullPage: true })

    // A second turn goes on over the compressed first one.
    await page.getByRole('button', { name: 'then another' }).click()
    await send(page)
    expect(await page.locator('#log article').nth(3).textContent()).toContain(
      next.number.split('').join(' '),
    )
    expect(running.server.engine?.stats().sequences).toBe(1)
    expect(problems).toEqual([])
    await page.close()
  })

  inBrowser('while an answer comes: windows are compressed, and Stop keeps what came', async () => {
    const { page, problems } = await open('dark')
    await page.getByLabel('Message').fill(question.text)
    await page.getByLabel('Most new tokens').fill('4000')
    await page.getByRole('button', { name: 'Send', exact: true }).click()
    const tokens = page.locator('#tokens .token')
    const nPrompt = running.model.tokenizer!.encode(question.text).length
    await expectEventually(async () => (await tokens.count()) > nPrompt + 150)
    // Tokens of this very answer are compressed by now: the first ones after the prompt.
    await expectEventually(async () => {
      const name = await tokens.nth(nPrompt + 5).getAttribute('class')
      return name === 'token '
    })
    await page.getByRole('button', { name: 'Stop' }).click()
    await page.screenshot({ path: join(kScreenshots, 'page-dark.png'), fullPage: true })
    await expectEventually(() => page.getByRole('button', { name: 'Stop' }).isDisabled())
    await expectEventually(() => running.server.engine?.stats().decoding === 0)
    await page.getByRole('button', { name: 'New conversation' }).click()
    expect(await tokens.count()).toBe(0)
    expect(problems).toEqual([])
    await page.close()
  })

  inBrowser('what a model thinks stands before what it says, and is not sent again', async () => {
    const { page, problems } = await open()
    const kv_cache = { bytes: 0, fp16_bytes: 0, ratio: 1, bytes_by_class: { tail: 0 } }
    const sent: { messages: object[] }[] = []
    const deltas = [{ reasoning_content: 'They ' }, { reasoning_content: 'ask.' }, { content: '4' }]
    await page.route('**/v1/chat/completions', (route) => {
      sent.push(route.request().postDataJSON())
      const events = deltas.map((delta, i) => {
        const usage = { completion_tokens: i + 1, total_tokens: i + 9, kv_cache }
        return `data: ${JSON.stringify({ choices: [{ delta }], usage })}\n\n`
      })
      return route.fulfill({
        contentType: 'text/event-stream',
        body: `${events.join('')}data: [DONE]\n\n`,
      })
    })
    for (const question of ['2 + 2?', 'and?']) {
      await page.getByLabel('Message').fill(question)
      await send(page)
    }
    const answer = page.locator('#log article').nth(1).locator('p')
    expect(await answer.allTextContents()).toEqual(['They ask.', '4'])
    expect(await answer.first().getAttribute('class')).toBe('thought')
    expect(sent[1].messages).toEqual([
      { role: 'user', content: '2 + 2?' },
      { role: 'assistant', content: '4' },
      { role: 'user', content: 'and?' },
    ])
    expect(problems).toEqual([])
    await page.close()
  })

  inBrowser('texts are texts: markup does nothing; an error is told', async () => {
    const { page, problems } = await open()
    const attack = '<img src=x onerror="document.title=1"><script>document.title=2</script> line'
    await page.getByLabel('Message').fill(attack)
    await page.getByLabel('Most new tokens').fill('3')
    await send(page)
    expect(await page.locator('#log article').first().locator('p').textContent()).toBe(attack)
    expect(await page.locator('#log img, #log script, #tokens img, #tokens script').count()).toBe(0)
    expect(await page.title()).toBe('zipcache')

    await page.getByLabel('Message').fill('line '.repeat(9000))
    await page.getByRole('button', { name: 'Send', exact: true }).click()
    await page.locator('#log .error').waitFor()
    expect(await page.locator('#log .error').textContent()).toMatch(/9008 tokens/)
    expect(problems.filter((text) => !/status of 400/.test(text))).toEqual([])
    await page.close()
  })

  inBrowser('every control has a name, and colours have contrast in both schemes', async () => {
    for (const scheme of ['light', 'dark'] as const) {
      const { page } = await open(scheme)
      const unnamed = await page
        .locator('input, select, textarea, button')
        .evaluateAll((all) =>
          all
            .filter((own) => !own.textContent?.trim() && (own.labels?.length ?? 0) === 0)
            .map(({ id }) => id),
        )
      expect(unnamed).toEqual([])
      const contrasts = await page.locator('html').evaluate((root) => {
        const { ownerDocument } = root
        const luminance = (color: string) => {
          const context = ownerDocument.createElement('canvas').getContext('2d')
          context.fillStyle = color
          context.fillRect(0, 0, 1, 1)
          const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map((byte) => {
            const share = byte / 255
            return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4
          }) as [number, number, number]
          return 0.2126 * r + 0.7152 * g + 0.0722 * b
        }
        const style = ownerDocument.defaultView.getComputedStyle(root)
        const color = (name: string) => luminance(style.getPropertyValue(`--${name}`))
        const pairs = [
          ['ink', 'paper'],
          ['ink', 'raised'],
          ['soft', 'paper'],
          ['error', 'paper'],
          ['ink', 'low'],
          ['ink', 'high'],
          ['ink', 'tail'],
        ] as const
        return pairs.map(([a, b]) => {
          const [x, y] = [color(a), color(b)].sort((p, q) => q - p) as [number, number]
          return [a, b, (x + 0.05) / (y + 0.05)] as const
        })
      })
      for (const [a, b, contrast] of contrasts) {
        // WCAG 2 AA.
        if (contrast < 4.5) throw new Error(`${scheme}: ${a} on ${b} has a contrast of ${contrast}`)
      }
      await page.close()
    }
  })
})

/** Waits until something holds. */
async function expectEventually(holds: () => boolean | Promise<boolean>): Promise<void> {
  const end = Date.now() + 30_000
  while (!(await holds())) {
    if (Date.now() > end) throw new Error(`did not come to hold: ${holds}`)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}
