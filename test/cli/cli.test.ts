import { spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { generateLineRetrieval } from '../../lib/eval/line-retrieval-prompt'
import {
  end,
  exitCodeOf,
  kMain,
  kModel,
  kRoot,
  start,
  startNode,
  zipcache,
  zipcacheJson,
} from './command-line'

const kBytes = {
  resident: expect.any(Number),
  peak: expect.any(Number),
  fp16: expect.any(Number),
  ratio: expect.any(Number),
  byClass: expect.any(Object),
}

describe('zipcache demo', () => {
  test('--json', async () => {
    const demo = await zipcacheJson(['demo', '--lines', '40', '--seed', '3'])
    expect(demo).toEqual({
      schema: 'zipcache-demo-1',
      model: kModel,
      promptTokens: expect.any(Number),
      question: expect.stringMatching(/^tell me what is the REGISTER_CONTENT in line /),
      expected: expect.stringMatching(/^\d{5}$/),
      results: ['fp16', 'zipcache'].map((policy) => ({
        policy,
        answer: demo.expected,
        correct: true,
        bytes: expect.objectContaining(kBytes),
        ratio: expect.any(Number),
        prefillMs: expect.any(Number),
        decodeMsPerToken: expect.any(Number),
      })),
    })
    const [fp16, compressed] = demo.results
    expect(fp16.ratio).toBeGreaterThan(0.9)
    expect(fp16.ratio).toBeLessThanOrEqual(1)
    expect(compressed.ratio).toBeGreaterThan(3)
    expect(compressed.bytes.resident).toBeLessThan(fp16.bytes.resident / 3)
  })

  test('a table for people', async () => {
    const { exitCode, stdout, stderr } = await zipcache(['demo', '--lines', '20'])
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
    const lines = stdout.trimEnd().split('\n')
    expect(lines.slice(0, 4).map((line) => line.split(' ')[0])).toEqual([
      'model',
      'prompt',
      'question',
      'expected',
    ])
    expect(lines.slice(-2).map((line) => line.split(/ +/).slice(0, 3))).toEqual(
      ['fp16', 'zipcache'].map((policy) => [policy, expect.stringMatching(/^\d{5}$/), 'right']),
    )
  })

  test('--policy fp16 stands alone', async () => {
    const { results } = await zipcacheJson(['demo', '--lines', '5', '--policy', 'fp16'])
    expect(results).toHaveLength(1)
  })

  test('refuses more lines than the context holds', async () => {
    const { exitCode, stdout, stderr } = await zipcache(['demo', '--lines', '2000', '--json'])
    expect(exitCode).toBe(1)
    const { error } = JSON.parse(stdout)
    expect(error.code).toBe('ERR_ZC_CONTEXT_LENGTH')
    expect(stderr).toBe(`zipcache: ${error.message} (ERR_ZC_CONTEXT_LENGTH)\n`)
  })
})

describe('zipcache generate', () => {
  const prompt = generateLineRetrieval({ lines: 30, seed: 5 })
  const base = ['generate', '--model', kModel]

  test('the same answer from --prompt, --prompt-file, --ids and stdin', async () => {
    const limit = ['--max-tokens', '13']
    const dir = mkdtempSync(join(tmpdir(), 'zipcache-cli-'))
    try {
      const file = join(dir, 'prompt.txt')
      writeFileSync(file, `${prompt.text}\n`)
      const vocab = JSON.parse(readFileSync(join(kModel, 'tokenizer.json'), 'utf8')).model.vocab
      const ids = prompt.text.split(' ').map((word) => vocab[word])
      const inputs = [
        [['--prompt', prompt.text], ''],
        [['--prompt-file', file], ''],
        [['--ids', ids.join(',')], ''],
        [[], `${prompt.text}\n`],
      ] as const
      for (const [args, stdin] of inputs) {
        const { exitCode, stdout, stderr } = await zipcache([...base, ...args, ...limit], stdin)
        expect({ exitCode, stdout, stderr }).toEqual({
          exitCode: 0,
          stdout: `${prompt.answerText}\n`,
          stderr: '',
        })
      }
    } finally {
      rmSync(dir, { recursive: true })
    }
  })

  test('--json', async () => {
    const document = await zipcacheJson([...base, '--prompt', prompt.text, '--max-tokens', '13'])
    expect(document).toMatchObject({
      schema: 'zipcache-generate-1',
      ...{ model: kModel, policy: 'zipcache' },
    })
    expect(document.finishReason).toBe('length')
    expect(document.text).toBe(prompt.answerText)
    expect(document.tokens).toHaveLength(13)
    for (const token of document.tokens) {
      expect(token).toEqual({
        id: expect.any(Number),
        text: expect.any(String),
        logprob: expect.any(Number),
      })
      expect(token.logprob).toBeLessThanOrEqual(0)
    }
    expect(document.tokens.map(({ text }: { text: string }) => text).join('')).toBe(document.text)
    expect(document.bytes).toMatchObject(kBytes)
  })

  test.each(['int8', 'int4'])(
    '--weights %s answers the same, with other weights',
    async (format) => {
      const args = [...base, '--prompt', prompt.text, '--max-tokens', '13']
      const [stored, rounded] = await Promise.all(
        ['stored', format].map((weights) => zipcacheJson([...args, '--weights', weights])),
      )
      expect(rounded.text).toBe(prompt.answerText)
      const logprobs = (document: typeof rounded) =>
        document.tokens.map(({ logprob }: { logprob: number }) => logprob)
      expect(logprobs(rounded)).not.toEqual(logprobs(stored))
    },
  )

  test('--stop ends before its text', async () => {
    const args = ['--prompt', prompt.text, '--stop', 'never', ' is']
    const { text } = await zipcacheJson([...base, ...args])
    expect(text).toMatch(/ : REGISTER_CONTENT$/)
  })

  test('policy options reach the cache', async () => {
    const ratioWith = async (...options: string[]) => {
      const args = ['--prompt', prompt.text, '--max-tokens', '1', ...options]
      return (await zipcacheJson([...base, ...args])).bytes.ratio
    }
    const all = ['--saliency-ratio', '0.1', '--high-bits', '3', '--low-bits', '2', '--window', '50']
    expect(await ratioWith(...all)).toBeGreaterThan(await ratioWith())
    const spec = '{"name":"zipcache","saliencyRatio":0.1,"highBits":3,"window":90}'
    expect(await ratioWith('--policy', spec, '--window', '50')).toBe(await ratioWith(...all))
    expect(await ratioWith('--policy', 'full')).toBeLessThan(1)
    expect(await ratioWith('--policy', 'uniform8')).toBeLessThan(2)
  })

  test('sampling: a seed gives the same tokens, another seed others', async () => {
    const sample = async (seed: string) => {
      const sampling = [
        '--temperature',
        '5',
        '--top-k',
        '100',
        '--top-p',
        '0.99',
        '--min-p',
        '0.001',
      ]
      const more = ['--repetition-penalty', '1.1', '--ignore-eos', '--max-tokens', '30']
      const args = ['--prompt', prompt.text, '--seed', seed, ...sampling, ...more]
      return (await zipcacheJson([...base, ...args])).text
    }
    const first = await sample('-1')
    expect(await sample('-1')).toBe(first)
    expect(await sample('2')).not.toBe(first)
  })

  test('a model without a tokenizer reads and writes ids', async () => {
    const bare = ['generate', '--model', join(kRoot, 'test', 'fixtures', 'hf', 'llama')]
    const args = [...bare, '--ids', '1,2,3', '--max-tokens', '4', '--ignore-eos']
    const { stdout } = await zipcache(args)
    const { text, tokens } = await zipcacheJson(args)
    expect(text).toBe('')
    expect(stdout).toBe(`${tokens.map(({ id }: { id: number }) => id).join(' ')}\n`)
    const refused = await zipcache([...bare, '--prompt', 'hello'])
    expect(refused.exitCode).toBe(2)
    expect(refused.stderr).toMatch(
      /^zipcache: --prompt: .*tokenizer\.json.* \(ERR_ZC_ARGUMENT\)\n$/,
    )
  })

  test.each([
    ['a model that is not there', ['--model', 'nowhere', '--prompt', 'a'], 'ERR_ZC_CONFIG'],
    ['an id out of range', ['--model', kModel, '--ids', '1,192'], 'ERR_ZC_ARGUMENT'],
    ['an empty prompt', ['--model', kModel], 'ERR_ZC_ARGUMENT'],
    ['a file that is not there', ['--model', kModel, '--prompt-file', 'no.txt'], 'ERR_ZC_IO'],
    [
      'a chat without a tokenizer',
      ['--model', join(kRoot, 'test', 'fixtures', 'hf', 'llama'), '--prompt', 'a', '--chat'],
      'ERR_ZC_TOKENIZER',
    ],
    [
      'a device that is not there',
      ['--model', kModel, '--prompt', 'a', '--device', 'abacus'],
      'ERR_ZC_DEVICE',
    ],
    [
      'an option of another policy',
      ['--model', kModel, '--prompt', 'a', '--policy', 'fp16', '--window', '9'],
      'ERR_ZC_ARGUMENT',
    ],
  ])('%s is an error with a code', async (_, args, code) => {
    const { exitCode, stdout, stderr } = await zipcache(['generate', ...args, '--json'])
    expect(exitCode).toBe(exitCodeOf(code))
    const document = JSON.parse(stdout)
    expect(document).toEqual({ error: { code, message: expect.any(String) } })
    expect(stderr).toBe(`zipcache: ${document.error.message} (${code})\n`)
    const plain = await zipcache(['generate', ...args])
    expect(plain).toEqual({ exitCode, stdout: '', stderr })
  })
})

describe('zipcache eval', () => {
  const base = ['eval', 'line-retrieval', '--lines', '5,20', '--questions', '2', '--seed', '4']
  const args = [...base, '--model', kModel, '--policy', 'fp16,zipcache']

  test.each(['inside', 'after'])('line-retrieval --ask %s --json', async (ask) => {
    const document = await zipcacheJson([...args, '--ask', ask])
    expect(document).toMatchObject({
      schema: 'zipcache-eval-1',
      command: expect.stringMatching(/^zipcache eval line-retrieval --lines 5,20 /),
      model: kModel,
      questions: 2,
      identity: { seed: 4, dtype: 'f32', model: expect.stringMatching(/^[0-9a-f]{64}$/) },
    })
    expect(document.builds).toHaveLength(1)
    expect(document.rows).toEqual(
      [5, 20].flatMap((lines) =>
        ['fp16', 'zipcache'].map((policy) => ({
          task: 'line-retrieval',
          policy,
          spec: policy,
          lines,
          questions: 2,
          accuracy: expect.any(Number),
          interval: [expect.any(Number), expect.any(Number)],
          tokens: expect.any(Number),
          ratio: expect.any(Number),
          paperRatio: policy === 'fp16' ? null : expect.any(Number),
          bytes: expect.any(Number),
          peakBytes: expect.any(Number),
          attention: 'packed',
          ask,
        })),
      ),
    )
    for (const row of document.rows) {
      if (row.policy === 'fp16') expect(row.accuracy).toBe(100)
    }
    expect(document.pairs).toMatchObject(
      [5, 20].map((lines) => ({ lines, ask, a: 'fp16', b: 'zipcache', questions: 2 })),
    )
  })

  test('--weights int8 is another model, and says so', async () => {
    const own = ['--policy', 'fp16', '--weights', 'int8', '--jobs', '2']
    const { identity, rows } = await zipcacheJson([...base, '--model', kModel, ...own])
    const plain = await zipcacheJson([...base, '--model', kModel, '--policy', 'fp16'])
    expect(identity.weights).toBe('int8')
    expect(plain.identity).not.toHaveProperty('weights')
    expect(identity.model).not.toBe(plain.identity.model)
    for (const { accuracy } of rows) expect(accuracy).toBe(100)
  })

  test('a table for people, on the model of the package; JSON and a page in files', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'zipcache-cli-'))
    try {
      const [json, html] = [join(dir, 'eval.json'), join(dir, 'eval.html')]
      const files = ['--json-file', json, '--html', html]
      const { exitCode, stdout, stderr } = await zipcache([...args, ...files])
      expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
      const [title, , titles, , ...rows] = stdout.split('\n')
      expect(title).toBe('line-retrieval')
      expect(titles?.trim().split(/ {2,}/)).toEqual([
        ...['lines', 'ask', 'policy', 'n', 'accuracy', '95%', 'ratio', 'by formula'],
        ...['bytes', 'peak', 'attention'],
      ])
      expect(rows.slice(0, 4).map((row) => row.trim().split(/ +/).slice(0, 3))).toEqual(
        ['5', '20'].flatMap((lines) => [
          [lines, 'inside', 'fp16'],
          [lines, 'inside', 'zipcache'],
        ]),
      )
      expect(JSON.parse(readFileSync(json, 'utf8')).rows).toHaveLength(4)
      const page = readFileSync(html, 'utf8')
      expect(page).toMatch(/^<!DOCTYPE html>\n<html lang="en">/)
      expect(page.match(/<svg /g)).toHaveLength(3)
      expect(page).not.toMatch(/<script|https?:/)
    } finally {
      rmSync(dir, { recursive: true })
    }
  })

  test('policies with options, several jobs, and batches change no number', async () => {
    const policy = '{"name":"zipcache","saliencyRatio":0.2},uniform2'
    const own = [...base, '--model', kModel, '--ask', 'inside,after', '--policy', policy]
    const { rows, pairs } = await zipcacheJson([...own, '--batch', '1'])
    expect(rows).toHaveLength(8)
    expect(rows[0].policy).toBe('zipcache saliencyRatio=0.2')
    const parallel = await zipcacheJson([...own, '--jobs', '2', '--batch', '3'])
    expect([parallel.rows, parallel.pairs]).toEqual([rows, pairs])
  })

  test('a killed run goes on where it was, and gives the same numbers', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'zipcache-cli-'))
    try {
      const own = [
        'eval',
        'line-retrieval',
        '--lines',
        '40',
        '--questions',
        '12',
        '--model',
        kModel,
      ]
      const long = [...own, '--policy', 'fp16,zipcache,uniform2', '--batch', '2']
      const whole = await zipcacheJson(long)
      for (const jobs of ['1', '2']) {
        const journal = join(dir, `journal-${jobs}.jsonl`)
        const nLines = () =>
          existsSync(journal) ? readFileSync(journal, 'utf8').split('\n').length - 1 : 0
        const child = start([...long, '--journal', journal, '--jobs', jobs])
        const ended = end(child)
        while (nLines() < 8) await new Promise((resolve) => setTimeout(resolve, 5))
        child.kill('SIGKILL')
        await ended
        expect(nLines()).toBeLessThan(38)
        const resumed = await zipcacheJson([...long, '--journal', journal, '--jobs', jobs])
        expect([resumed.rows, resumed.pairs]).toEqual([whole.rows, whole.pairs])
        expect(nLines()).toBe(38)
      }
    } finally {
      rmSync(dir, { recursive: true })
    }
  })

  test('other tasks', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'zipcache-cli-'))
    try {
      const data = join(dir, 'text.txt')
      writeFileSync(data, generateLineRetrieval({ lines: 40, seed: 2 }).text)
      const common = ['--questions', '1', '--policy', 'fp16,uniform2', '--model', kModel]
      const needle = ['eval', 'needle', '--lines', '10', '--depth', '0,100', ...common]
      expect((await zipcacheJson(needle)).rows).toMatchObject([
        { depth: 0, accuracy: 100 },
        { depth: 0 },
        { depth: 100, accuracy: 100 },
        { depth: 100 },
      ])
      const turns = ['eval', 'multi-turn', '--lines', '10', ...common]
      expect((await zipcacheJson(turns)).rows).toMatchObject([
        { lines: 10, turns: 3, first: { value: 1 }, others: { value: 1 }, accuracy: 100 },
        { policy: 'uniform2' },
      ])
      const text = ['eval', 'perplexity', '--data', data, '--prefix', '300', '--tokens', '20']
      const { rows } = await zipcacheJson([...text, '--no-special-tokens', ...common])
      const [fp16, uniform2] = rows
      expect(fp16.kl.value).toBe(0)
      expect(uniform2.kl.value).toBeGreaterThan(0)
      expect(fp16.perplexity).toBeGreaterThan(1)
    } finally {
      rmSync(dir, { recursive: true })
    }
  })

  test("the paper's tables, as text, Markdown, JSON and a page", async () => {
    const dir = mkdtempSync(join(tmpdir(), 'zipcache-cli-'))
    try {
      const names = ['json-file', 'html', 'markdown']
      const files = names.flatMap((name) => [`--${name}`, join(dir, name)])
      const read = (name: string) => readFileSync(join(dir, name), 'utf8')
      const small = ['--lines', '8', '--figure-lines', '4', '--lengths', '128', '--questions', '2']
      const own = ['eval', 'paper', '--model', kModel, ...small, ...files]
      const { exitCode, stdout, stderr } = await zipcache(own)
      expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
      const titles = ['Table 1', 'Table 2', 'Table 3', 'Table A', 'Figure 5', 'Figure 6']
      for (const title of [...titles, 'Every method: 8 lines, asked after']) {
        expect(stdout).toContain(`\n${title}`)
        expect(read('markdown')).toContain(`\n## ${title}`)
      }
      // The paper's own numbers, and ours beside them.
      expect(stdout).toMatch(/^ZipCache +4\/2 +60% +4\.98x +\d\.\d\dx +\d\.\d\dx +/m)
      expect(stdout).toMatch(/^4 +group +group +3\.20x /m)
      const report = JSON.parse(read('json-file'))
      expect(report.memory).toHaveLength(4)
      for (const { policy } of report.front) {
        expect(report.rows.map((row: { policy: string }) => row.policy)).toContain(policy)
      }
      expect(report.saliency[0].shares).toHaveLength(20)
      expect(read('html').match(/<svg /g)).toHaveLength(4)
      expect(read('html')).not.toMatch(/<script|https?:/)
    } finally {
      rmSync(dir, { recursive: true })
    }
  })

  test.each([
    ['a file that is not there', ['gsm8k', '--data', 'no.jsonl'], 'ERR_ZC_IO'],
    ['code without leave', ['humaneval', '--data', kMain], 'ERR_ZC_ARGUMENT'],
    ['more lines than fit', ['line-retrieval', '--lines', '4000'], 'ERR_ZC_CONTEXT_LENGTH'],
    ['a damaged file, in a job', ['gsm8k', '--data', kMain, '--jobs', '2'], 'ERR_ZC_ARGUMENT'],
    ['a page that cannot be written', ['multi-turn', '--html', '/no/x.html'], 'ERR_ZC_IO'],
    ['no journal to report', ['multi-turn', '--only-journal'], 'ERR_ZC_ARGUMENT'],
  ])('%s is an error with a code', async (_, task, code) => {
    const { exitCode, stdout, stderr } = await zipcache(['eval', ...task, '--json'])
    expect(exitCode).toBe(exitCodeOf(code))
    const { error } = JSON.parse(stdout)
    expect(error.code).toBe(code)
    expect(stderr).toBe(`zipcache: ${error.message} (${code})\n`)
  })
})

describe('zipcache inspect', () => {
  const prompt = generateLineRetrieval({ lines: 30, seed: 5 }).text
  const args = ['inspect', '--model', kModel, '--class', 'number=\\d( \\d){4}', '--bins', '4']

  test('--json', async () => {
    const report = await zipcacheJson([...args, '--prompt', prompt])
    expect(report).toMatchObject({ schema: 'zipcache-inspect-1', policy: 'zipcache' })
    expect(report.layers).toHaveLength(3)
    expect(report.contentClasses).toEqual({ number: 150 })
    expect(report.all.salient).toBeCloseTo(0.6, 2)
  })

  test('tables for people, and a page', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'zipcache-cli-'))
    try {
      const html = join(dir, 'inspect.html')
      const { exitCode, stdout, stderr } = await zipcache([...args, '--html', html], prompt)
      expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
      expect(stdout).toMatch(/^policy +zipcache\ntokens +\d+, of which \d+ are compressed\n/)
      expect(stdout).toMatch(/\nBias of being salient\n/)
      const page = readFileSync(html, 'utf8')
      expect(page).toMatch(/<svg .*layer 2\.1/s)
      expect(page).not.toMatch(/<script|https?:/)
    } finally {
      rmSync(dir, { recursive: true })
    }
  })

  test.each([
    ['a policy with no salient tokens', ['--policy', 'uniform4', '--prompt', prompt]],
    ['a prompt shorter than a window', ['--prompt', '<s> line']],
  ])('%s is refused', async (_, more) => {
    const { exitCode, stdout } = await zipcache([...args, ...more, '--json'])
    expect(exitCode).toBe(2)
    expect(JSON.parse(stdout).error).toMatchObject({
      code: 'ERR_ZC_ARGUMENT',
      message: expect.stringMatching(/tells no salient tokens from others/),
    })
  })
})

describe('zipcache bench', () => {
  const steps = ['bench', 'decode', '--tokens', '3', '--policy', 'fp16,zipcache', '--model']
  const op = ['bench', 'ops', '--threads', '1', '--filter', 'linear m=1 k=512 n=1408']

  test('an op, as JSON', async () => {
    const report = await zipcacheJson(op)
    expect(report.settings).toMatchObject({ device: 'cpu', threads: 1, full: false })
    expect(report.machine).toMatchObject({ cores: expect.any(Number), node: process.version })
    expect(report.ops).toMatchObject([{ op: 'linear', shape: 'm=1 k=512 n=1408', dtype: 'f16' }])
    expect([report.prefill, report.decode]).toEqual([[], []])
  })

  test('tables for people, JSON and a page in files', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'zipcache-cli-'))
    try {
      const [json, html] = [join(dir, 'bench.json'), join(dir, 'bench.html')]
      const args = [...steps, kModel, '--context', '64,128', '--json-file', json, '--html', html]
      const { exitCode, stdout, stderr } = await zipcache(args)
      expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
      const rows = stdout.trimEnd().split('\n').slice(-4)
      expect(rows.map((line) => line.split(/ {2,}/).slice(0, 3))).toEqual(
        ['64', '128'].flatMap((context) =>
          ['fp16', 'zipcache'].map((policy) => ['line-retrieval', context, policy]),
        ),
      )
      const { decode } = JSON.parse(readFileSync(json, 'utf8'))
      expect(decode).toHaveLength(4)
      expect(readFileSync(html, 'utf8')).toMatch(/^<!DOCTYPE html>\n<html lang="en">/)
    } finally {
      rmSync(dir, { recursive: true })
    }
  })

  test('a model without a tokenizer', async () => {
    const model = join(kRoot, 'test', 'fixtures', 'hf', 'qwen3')
    const { decode } = await zipcacheJson([...steps, model, '--context', '20'])
    expect(decode).toHaveLength(2)
  })

  test('a context beyond the positions of --model is refused', async () => {
    const { exitCode, stdout } = await zipcache([...steps, kModel, '--context', '8192', '--json'])
    expect(exitCode).toBe(1)
    expect(JSON.parse(stdout).error.code).toBe('ERR_ZC_CONTEXT_LENGTH')
  })

  test('the models of the package take any context, and leave nothing behind', async () => {
    const copies = () => readdirSync(tmpdir()).filter((name) => name.startsWith('zipcache-model-'))
    const before = copies()
    const limits = ['--tokens', '1', '--policy', 'uniform2', '--context', '8192']
    const filter = ['--filter', 'line-retrieval']
    const { decode } = await zipcacheJson(['bench', 'decode', ...limits, ...filter])
    expect(decode).toMatchObject([{ model: 'line-retrieval', context: 8192, policy: 'uniform2' }])
    expect(copies()).toEqual(before)
  })

  test.each([
    ['a filter that finds nothing', ['--filter', 'no such row'], 'ERR_ZC_ARGUMENT'],
    ['a device that is not there', ['--device', 'abacus'], 'ERR_ZC_DEVICE'],
    ['a file that cannot be written', ['--html', join(kRoot, 'nowhere', 'x.html')], 'ERR_ZC_IO'],
  ])('%s is an error with a code', async (_, args, code) => {
    const { exitCode, stdout, stderr } = await zipcache([...op, ...args, '--json'])
    expect(exitCode).toBe(exitCodeOf(code))
    const { error } = JSON.parse(stdout)
    expect(error.code).toBe(code)
    expect(stderr).toBe(`zipcache: ${error.message} (${code})\n`)
  })
})

describe('command lines that make no sense', () => {
  test.each([
    ['--lines', ['demo', '--lines', 'x']],
    ['--lines', ['demo', '--lines', '0']],
    ['--seed', ['demo', '--seed', '1.5']],
    ['--policy', ['demo', '--policy', 'zipcash']],
    ['--dtype', ['demo', '--dtype', 'f16']],
    ['--weights', ['demo', '--weights', 'int2']],
    ['--weights', ['bench', '--weights', 'f16']],
    ['--weights', ['serve', '--weights', '8']],
    ['--threads', ['demo', '--threads', '0']],
    ['--nope', ['demo', '--nope']],
    ['--prompt', ['generate', '--model', kModel, '--prompt', 'a', '--ids', '1']],
    ['--ids', ['generate', '--model', kModel, '--ids', '1,-2']],
    ['--max-tokens', ['generate', '--model', kModel, '--max-tokens', '0']],
    ['--temperature', ['generate', '--model', kModel, '--temperature', '-1']],
    ['--top-k', ['generate', '--model', kModel, '--top-k', '0']],
    ['--top-p', ['generate', '--model', kModel, '--top-p', '1.1']],
    ['--min-p', ['generate', '--model', kModel, '--min-p', 'NaN']],
    ['--repetition-penalty', ['generate', '--model', kModel, '--repetition-penalty', 'two']],
    ['--saliency-ratio', ['generate', '--model', kModel, '--saliency-ratio', '60']],
    ['--high-bits', ['generate', '--model', kModel, '--high-bits', '16']],
    ['--low-bits', ['generate', '--model', kModel, '--low-bits', '1']],
    ['--window', ['generate', '--model', kModel, '--window', '-1']],
    ['--lines', ['eval', 'line-retrieval', '--lines', '50,50']],
    ['--questions', ['eval', 'line-retrieval', '--questions', '0']],
    ['--ask', ['eval', 'line-retrieval', '--ask', 'before']],
    ['--context', ['bench', 'decode', '--context', '']],
    ['--tokens', ['bench', 'decode', '--tokens', '1e3']],
    ['--threads', ['bench', '--threads', '0']],
    ['--filter', ['bench', '--filter', '(']],
    ['--policy', ['bench', '--policy', 'fp16,fp16']],
    ['part', ['bench', 'everything']],
    ['too many arguments', ['bench', 'ops', 'decode']],
    // A word behind `--json` is no file.
    ['part', ['bench', '--json', 'everything']],
    ['too many arguments', ['eval', 'needle', '--json', 'file']],
    ['unknown command', ['prove']],
    ['unknown command', ['eval', 'poetry']],
    ['--data', ['eval', 'perplexity']],
    ['--policy', ['eval', 'needle', '--policy', '{"name":"zipcache","saliencyRatio":2}']],
    ['--policy', ['eval', 'needle', '--policy', '{"name":']],
    ['--policy', ['eval', 'needle', '--policy', 'fp16,fp16']],
    ['--depth', ['eval', 'needle', '--depth', '101']],
    ['--lines', ['eval', 'line-retrieval', '--lines', '5', '--data', 'x']],
    ['--jobs', ['eval', 'multi-turn', '--jobs', '0']],
    ['--class', ['inspect', '--class', 'x']],
    ['--class', ['inspect', '--class', 'x=(']],
    ['--policy', ['inspect', '--policy', 'fp16,zipcache']],
    ['too many arguments', ['demo', 'more']],
    // What the library says of its arguments, by the names of the options.
    ['--repetition-penalty: ', ['generate', '--prompt', 'a', '--repetition-penalty', '0']],
    ['--high-bits: ', ['generate', '--prompt', 'a', '--high-bits', '5']],
    ['--stop: ', ['generate', '--prompt', 'a', '--stop', '']],
    ['prompt: token 0', ['generate', '--ids', '999']],
    ['--allow-code-execution: ', ['eval', 'humaneval', '--data', 'x']],
    ['--only-journal: ', ['eval', 'needle', '--only-journal']],
  ])('%s of %j', async (name, args) => {
    const { exitCode, stdout, stderr } = await zipcache([...args, '--json'])
    expect(exitCode).toBe(2)
    expect(stderr).toMatch(/^zipcache: .* \(ERR_ZC_ARGUMENT\)\n$/)
    expect(stderr).toContain(name)
    expect(JSON.parse(stdout).error.code).toBe('ERR_ZC_ARGUMENT')
  })

  test.each([
    [['prove'], '--help'],
    [['eval', 'poetry'], 'eval --help'],
    [['bench', '--nope'], 'bench --help'],
    [['help', 'nope'], '--help'],
  ])('%j is told where to look', async (args, where) => {
    const { stderr } = await zipcache(args)
    expect(stderr).toContain(`; see zipcache ${where} (ERR_ZC_ARGUMENT)`)
  })
})

describe('help and version', () => {
  test('--version', async () => {
    const { version } = JSON.parse(readFileSync(join(kRoot, 'package.json'), 'utf8'))
    expect(await zipcache(['--version'])).toEqual({
      exitCode: 0,
      stdout: `${version}\n`,
      stderr: '',
    })
  })

  test.each([[['--help']], [['-h']], [['help']], [['help', 'eval']], [['bench', '-h']]])(
    '%j goes to stdout',
    async (args) => {
      const { exitCode, stdout, stderr } = await zipcache(args)
      expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
      expect(stdout).toMatch(/^Usage: zipcache /)
    },
  )

  test('a default that is a list stands there as it is typed', async () => {
    const { stdout } = await zipcache(['help', 'eval', 'needle'])
    const text = stdout.replace(/\s+/g, ' ')
    expect(text).toContain('(default: 0,25,50,75,100)')
    expect(text).toContain('(default: inside)')
    expect(text).not.toContain('(default: [')
  })

  test('help of a task of eval', async () => {
    const { exitCode, stdout } = await zipcache(['help', 'eval', 'line-retrieval'])
    expect(exitCode).toBe(0)
    expect(stdout).toMatch(/^Usage: zipcache eval line-retrieval .*--questions/s)
  })

  test.each([[[]], [['eval']]])('%j is told what there is', async (args) => {
    const { exitCode, stdout, stderr } = await zipcache(args)
    expect({ exitCode, stdout }).toEqual({ exitCode: 2, stdout: '' })
    expect(stderr).toMatch(/^Usage: zipcache /)
  })
})

// Windows has neither signals to catch nor a broken pipe of this kind.
const describePosix = process.platform === 'win32' ? describe.skip : describe

describePosix('interruptions', () => {
  const long = ['generate', '--model', kModel, '--ids', '1', '--ignore-eos', '--max-tokens', '8000']

  test.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)('%s ends a generation', async (signal, expected) => {
    const child = start(long)
    child.stdin.end()
    const ended = end(child)
    await once(child.stdout, 'data')
    child.kill(signal)
    const { exitCode, stderr } = await ended
    expect(exitCode).toBe(expected)
    expect(stderr).toBe('zipcache: interrupted (ABORT_ERR)\n')
  })

  test('SIGINT ends waiting for stdin', async () => {
    // Says when the handler stands: a signal before that kills any process.
    const announce = `
      process.on('newListener', (name) => { if (name === 'SIGINT') console.error('ready') })
      process.argv.splice(1, 0, 'zipcache')
      require(${JSON.stringify(kMain)})`
    const child = startNode(['-e', announce, '--', 'generate', '--model', kModel, '--json'])
    const ended = end(child)
    await once(child.stderr, 'data')
    // Nothing shows when it begins to read; the outcome is the same if it has not.
    await new Promise((resolve) => setTimeout(resolve, 500))
    child.kill('SIGINT')
    const { exitCode, stdout } = await ended
    expect(exitCode).toBe(130)
    expect(JSON.parse(stdout).error.code).toBe('ABORT_ERR')
  })

  // A file that takes nothing: a full disk.
  const testFull = existsSync('/dev/full') ? test : test.skip
  testFull('a full disk is an error with a code', async () => {
    const full = openSync('/dev/full', 'w')
    const child = spawn(process.execPath, [kMain, '--help'], { stdio: ['ignore', full, 'pipe'] })
    closeSync(full)
    let stderr = ''
    child.stderr?.setEncoding('utf8').on('data', (chunk: string) => {
      stderr += chunk
    })
    const [exitCode] = await once(child, 'close')
    expect(exitCode).toBe(1)
    expect(stderr).toMatch(/^zipcache: stdout: cannot be written: ENOSPC.* \(ERR_ZC_IO\)\n$/)
  })

  test('a reader that leaves ends a generation in silence', async () => {
    const child = start(long)
    child.stdin.end()
    const ended = end(child)
    await once(child.stdout, 'data')
    child.stdout.destroy()
    const { exitCode, stderr } = await ended
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
  })
})
