import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { end, kRoot, startNode } from '../cli/command-line'

const kMain = join(kRoot, 'bench', 'cuda', 'main.mjs')
const kReport = join(kRoot, 'bench', 'cuda', 'report.mjs')
const kModel = join(kRoot, 'bench', 'cuda', 'model.mjs')

const attention = (policy: string, context: number, us: number) => ({
  op: 'mixedAttention',
  policy,
  batch: 8,
  context,
  heads: '32/8/128',
  us,
  min: us - 1,
  max: us + 1,
  MB: 100,
  'GB/s': 2000,
  error: 4e-4,
})
const peer = (name: string, context: number, us: number) => ({
  op: 'decode',
  peer: name,
  batch: 8,
  context,
  us,
})
const summary = (ms: number) => ({ median: ms, p10: ms - 1, p90: ms + 1 })
/** A row of whole steps, batch 8; `closing` a window, where it does. */
const whole = (
  policy: string,
  context: number,
  { ms, together, apart, otherApart }: Record<string, number>,
) => ({
  ...{ batch: 8, context, policy, figure6: true },
  prompts: summary(100),
  promptsMs: 810,
  steps: {
    ms: summary(ms as number),
    other: ms,
    closingTogether: together ? summary(together) : null,
    closingApart: apart ? summary(apart) : null,
    otherApart: otherApart ?? null,
  },
  ...{ cacheBytes: 1e9, cacheRatio: 1, readBytes: 1e9 },
  memory: { estimate: 17e9, counted: 17.1e9, driver: 17.85e9 },
})
const result = {
  machine: {
    gpu: {
      name: 'GPU <H200>',
      driver_version: '580',
      'clocks.max.sm': '2 GHz',
      'clocks.max.mem': '3 GHz',
    },
    cpu: 'a processor',
    node: '20.17.0',
    commit: 'abc',
  },
  command: 'npm run bench:cuda',
  leftOut: { prefill: 'needs a GPU and nvcc' },
  attention: [attention('fp16', 4096, 80), attention('zipcache-60', 4096, 20)],
  products: [
    { check: 'linear', form: 'wgmma', rows: 70, error: 1e-6, good: true },
    {
      ...{ op: 'linear', form: 'wgmma', product: 'down', rows: 4096, n: 4096, k: 14336 },
      ...{ us: 800, tflops: 601.4, different: 3 },
    },
  ],
  steps: [
    { model: 'LLaMA3-8B', weightBytes: 16.06e9, readBytes: 15e9, device: 'cuda' },
    whole('fp16', 1024, { ms: 5 }),
    whole('zipcache', 1024, { ms: 4, together: 9, apart: 5, otherApart: 4 }),
    whole('mikv', 1024, { ms: 4.5, together: 9, apart: 5, otherApart: 4 }),
    { batch: 64, context: 32768, policy: 'fp16', figure6: false, leftOut: 'needs 300 GB' },
    { roof: 'read', 'GB/s': 4000 },
  ],
  peers: [
    { op: 'product', peer: 'torch.mm', rows: 4096, n: 4096, k: 14336, 'TFLOP/s': 700 },
    { op: 'product', peer: 'torch.mm', rows: 512, n: 4096, k: 14336, 'TFLOP/s': 600 },
    { roof: 'read', 'GB/s': 4000 },
    peer('sdpa cudnn gqa', 4096, 50),
    peer('sdpa flash gqa', 4096, 40),
    peer('sdpa cudnn gqa', 32768, 10),
    { op: 'decode', peer: 'sdpa efficient gqa', batch: 8, context: 4096, refused: 'no' },
  ],
}

/** What `script`, in which `report` is the module and `result` the result above, prints. */
async function printed(script: string): Promise<string> {
  const source = `import * as report from ${JSON.stringify(kReport)}
const result = ${JSON.stringify(result)}
${script}`
  const { exitCode, stdout, stderr } = await end(startNode(['--input-type=module', '-e', source]))
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
  return stdout
}

test('a cache is held against the fastest peer of its own shape', async () => {
  const markdown = await printed('console.log(report.toMarkdown(result))')
  const row = markdown.split('\n').find((line) => line.includes('zipcache-60')) as string
  const cells = row.split('|').map((cell) => cell.trim())
  expect(cells.slice(4, 13)).toEqual([
    'zipcache-60',
    '20.0 (19.0 to 21.0)',
    '100.0',
    '2000',
    '50%',
    '40 (sdpa flash gqa)',
    '2.00',
    '11.0 to 21.3',
    '4e-4',
  ])
  expect(markdown).toContain('- prefill, left out: needs a GPU and nvcc')
})

test('a batch of several lengths has no peer and no prediction', async () => {
  const markdown = await printed(`result.attention[1].shortest = 512
    console.log(report.toMarkdown(result))`)
  const row = markdown.split('\n').find((line) => line.includes('zipcache-60')) as string
  const cells = row.split('|').map((cell) => cell.trim())
  expect(cells.slice(2, 5)).toEqual(['512 to 4096', '32/8/128', 'zipcache-60'])
  expect(cells.slice(9, 12)).toEqual(['', '', ''])
})

test('a product stands beside the same one by PyTorch', async () => {
  const markdown = await printed('console.log(report.toMarkdown(result))')
  const row = markdown.split('\n').find((line) => line.includes('| down')) as string
  const cells = row.split('|').map((cell) => cell.trim())
  expect(cells.slice(1, -1)).toEqual([
    'down',
    'wgmma',
    '4096',
    '4096 x 14336',
    '0.800',
    '601',
    '700',
    '3',
  ])
})

const tableOf = (markdown: string, title: string) =>
  markdown.split('\n## ').find((part) => part.startsWith(title)) as string

/** The cells of one row of the table below a title. */
function cellsOf(markdown: string, title: string, row: string): string[] {
  const lines = tableOf(markdown, title).split('\n')
  const cells = (lines.find((line) => line.includes(row)) as string).split('|')
  return cells.map((cell) => cell.trim()).slice(1, -1)
}

test('a step stands beside the bytes it reads, and the model beside it', async () => {
  const markdown = await printed('console.log(report.toMarkdown(result))')
  const step = cellsOf(markdown, 'Decode steps of LLaMA3-8B', '| zipcache |')
  expect(step.slice(0, 9)).toEqual([
    ...['8', '1024', 'zipcache', '4.00 (3.00 to 5.00)', '2000', '1.00', '1.00', '4.00', '1.00x'],
  ])
  const [low, high] = (step[9] as string).split(' to ').map(Number)
  expect(low).toBeGreaterThan(3.5) // 15.01 GB at 4,289 GB/s
  expect(high).toBeGreaterThan(low as number)
  expect(cellsOf(markdown, 'Decode steps of LLaMA3-8B', '| mikv |')[9]).toBe('')
  expect(cellsOf(markdown, 'Steps that close', '| zipcache |')).toEqual([
    ...['8', '1024', 'zipcache', '4.00', '5.00', '1.25x', '9.00', '2.25x'],
  ])
  expect(tableOf(markdown, 'Steps that close')).not.toContain('fp16')
  expect(cellsOf(markdown, 'Prompts of', '| fp16 |').slice(3)).toEqual([
    ...['100 (99.00 to 101)', '810', '10114', '17.9', '17.1', '17.0', '1.050'],
  ])
  expect(cellsOf(markdown, "The paper's figure 6", '| mikv |')).toEqual([
    ...['1024', 'mikv', '810', '4.50', '17.9'],
  ])
  expect(cellsOf(markdown, 'Left out', '| fp16 |')).toEqual(['64', '32768', 'fp16', 'needs 300 GB'])
})

test('the page needs nothing else, and escapes what it is told', async () => {
  const page = await printed('console.log(report.toPage(result))')
  expect(page).toContain('GPU &lt;H200&gt;')
  expect(page).toContain('<polyline')
  for (const title of ['Batch 8: decode steps', 'Figure 6, batch 8: peak memory']) {
    expect(page).toContain(`<h2>${title}</h2>`)
  }
  expect(page).not.toMatch(/<script|https?:\/\/(?!www\.w3\.org)/)
})

test('bad arguments are named, and nothing is measured', async () => {
  for (const [args, message] of [
    [
      ['--parts', 'attention,foo'],
      /--parts: foo is none of attention, prefill, products, steps, peers/,
    ],
    [['--plugin', '/nowhere.so'], /--plugin: there is no \/nowhere\.so/],
    [['--budget', 'soon'], /--budget: is soon, expected seconds above 0/],
    [['--what'], /--what/],
  ] as const) {
    const { exitCode, stdout, stderr } = await end(startNode([kMain, ...args]))
    expect({ exitCode, stdout }).toEqual({ exitCode: 1, stdout: '' })
    expect(stderr).toMatch(message)
  }
})

test('a part that fails is named, and the others are in the report', async () => {
  const plugin = join(kRoot, 'build', 'Release', 'zipcache-cuda-emu.so')
  const args = ['--plugin', plugin, '--check', '--parts', 'attention,steps', '--budget', '0.01']
  // No compiler: attention is compiled, whole steps are not.
  const { exitCode, stdout, stderr } = await end(startNode([kMain, ...args], { CXX: 'false' }))
  expect(exitCode).toBe(1)
  expect(stderr).toMatch(/compiling mixed_attention failed/)
  expect(stdout).toMatch(/^- attention, left out: failed: compiling mixed_attention failed/m)
  expect(cellsOf(stdout, 'Left out of tiny', '| mikv |')[3]).toMatch(/^no time for it/)
})

const hasGpu = spawnSync('nvidia-smi').status === 0
;(hasGpu ? test.skip : test)('without a GPU it says so, with an exit code of its own', async () => {
  const { exitCode, stderr } = await end(startNode([kMain]))
  expect(exitCode).toBe(2)
  expect(stderr).toMatch(/finds no GPU/)
})

test('the model is within a fifth of what an H200 measured, 16 bits of one sequence aside', async () => {
  const source = `import { firstKernel, firstRun } from ${JSON.stringify(kModel)}
const shape = { nHeads: 32, nKvHeads: 8, headDim: 128 }
console.log(JSON.stringify(firstRun().map((row) => ({
  ...row, predicted: firstKernel(row.policy, { ...row, ...shape }) }))))`
  const { exitCode, stdout } = await end(startNode(['--input-type=module', '-e', source]))
  expect(exitCode).toBe(0)
  const rows: { policy: string; batch: number; us: number; predicted: number }[] =
    JSON.parse(stdout)
  expect(rows).toHaveLength(30)
  for (const { policy, batch, us, predicted } of rows) {
    if (policy === 'fp16' && batch === 1) continue
    expect(Math.abs(predicted / us - 1)).toBeLessThan(0.2)
  }
})
