import { join } from 'node:path'
import { end, kRoot, startNode } from '../cli/command-line'

const kSteps = join(kRoot, 'bench', 'cuda', 'steps')

interface Row {
  batch: number
  context: number
  policy: string
  figure6: boolean
  leftOut?: string
  prompts: { samples: number }
  promptsMs: number
  steps: {
    ms: { samples: number; median: number }
    closingTogether: { samples: number } | null
    closingApart: { samples: number } | null
  }
  cacheBytes: number
  readBytes: number
  memory: { estimate: number; counted: number; driver: number }
}

/** The lines of a check: the model, the rows, the roof. */
async function lines(args: readonly string[]) {
  const command = [join(kSteps, 'main.mjs'), '--check', ...args]
  const { exitCode, stdout, stderr } = await end(startNode(command))
  expect({ exitCode, stderr }).toMatchObject({ exitCode: 0 })
  const all = stdout.trim().split('\n')
  const parsed = all.map((line) => JSON.parse(line) as Record<string, unknown>)
  const model = parsed[0] as unknown as { model: string; weightBytes: number; readBytes: number }
  const rows = parsed.filter(({ policy }) => policy !== undefined) as unknown as Row[]
  return { model, rows, roof: parsed.findLast(({ roof }) => roof !== undefined) }
}

/** What `expression` is, with the module's `names` at hand. */
async function evaluated(module: string, names: string, expression: string): Promise<unknown> {
  const file = JSON.stringify(join(kSteps, module))
  const source = `import { ${names} } from ${file}\nconsole.log(JSON.stringify(${expression}))`
  const { exitCode, stdout, stderr } = await end(startNode(['--input-type=module', '-e', source]))
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
  return JSON.parse(stdout)
}

test.each(['cpu', 'cuda-emu'])('every row of a check is timed, on %s', async (device) => {
  const { model, rows, roof } = await lines(['--device', device])
  expect(model.weightBytes - model.readBytes).toBe(2 * 128 * 64) // the embedding
  expect(roof).toMatchObject({ roof: 'read', 'GB/s': expect.any(Number) })
  const figure = rows.filter(({ figure6 }) => figure6)
  expect(figure.map(({ context, policy }) => `${context} ${policy}`).sort()).toEqual([
    ...['20 fp16', '20 mikv', '20 zipcache', '32 fp16', '32 mikv', '32 zipcache'],
  ])
  expect(new Set(rows.map(({ policy }) => policy)).size).toBe(6)
  for (const row of rows) {
    expect(row.leftOut).toBeUndefined()
    expect(row.prompts.samples).toBe(3)
    expect(row.steps.ms.samples).toBe(24)
    expect(row.steps.ms.median).toBeGreaterThan(0)
    // Of two sequences: both in one step, then each in its own.
    const closes = row.policy !== 'fp16'
    expect(row.steps.closingTogether !== null).toBe(closes)
    expect(row.steps.closingApart !== null).toBe(closes)
    // What is counted on the way is what was foretold, but for the step's own rows.
    expect(row.memory.counted / row.memory.estimate).toBeGreaterThan(0.97)
    expect(row.memory.counted / row.memory.estimate).toBeLessThan(1.03)
    if (device === 'cuda-emu') expect(row.memory.driver).toBeGreaterThan(row.memory.counted)
  }
  const bytesOf = (policy: string) => rows.find((row) => row.policy === policy)?.readBytes as number
  expect(bytesOf('zipcache')).toBeLessThan(bytesOf('fp16'))
})

test('what there is no time for is named, and is not begun', async () => {
  const { rows } = await lines(['--device', 'cpu', '--budget', '1'])
  expect(rows).toHaveLength(9)
  for (const { leftOut } of rows) expect(leftOut).toMatch(/^no time for it: about 5 s/)
})

test('a model of fewer layers says so', async () => {
  const { model } = await lines(['--device', 'cpu', '--layers', '1'])
  expect(model.model).toBe('tiny (layers: 1)')
  const { exitCode, stderr } = await end(startNode([join(kSteps, 'main.mjs'), '--layers', '0']))
  expect({ exitCode, stderr }).toMatchObject({
    exitCode: 1,
    stderr: expect.stringContaining('--layers: is 0, expected a whole number above 0'),
  })
})

test('a folder without room is named', async () => {
  const args = [join(kSteps, 'main.mjs'), '--device', 'cpu', '--folder', '/proc']
  const { exitCode, stdout, stderr } = await end(startNode(args))
  expect({ exitCode, stdout }).toEqual({ exitCode: 1, stdout: '' })
  expect(stderr).toMatch(/--folder: \/proc has 0\.0 GB free/)
})

test('batch 8 at 4k and 32k come first, then the rest of figure 6; each row once', async () => {
  const plan = async (options: object) =>
    (await evaluated(
      'plan.mjs',
      'planSteps',
      `planSteps(${JSON.stringify(options)}).rows`,
    )) as Row[]
  const names = (rows: Row[]) => rows.map((row) => `${row.batch} ${row.context} ${row.policy}`)
  const usual = names(await plan({}))
  expect(usual.slice(0, 4)).toEqual([
    ...['8 4096 zipcache', '8 4096 fp16', '8 32768 zipcache', '8 32768 fp16'],
  ])
  expect(new Set(usual).size).toBe(usual.length)
  const figure = (await plan({})).filter(({ figure6 }) => figure6)
  expect(figure).toHaveLength(9)
  const full = names(await plan({ full: true }))
  expect(full.slice(0, usual.length)).toEqual(usual)
  expect(full).toContain('8 131072 zipcache')
})

test('a step that closes a window is its own time and the next, less an ordinary step', async () => {
  const steps = (ms: readonly number[], ...closing: readonly number[]) =>
    ms.map((own, i) => ({ ms: own, closing: closing.includes(i) ? 1 : 0 }))
  const together = steps([10, 10, 10, 13, 18, 10, 10], 3)
  const apart = steps([10, 11, 12, 10, 10, 11, 11, 12, 10], 1, 5, 6)
  const sum = (await evaluated(
    'lockstep.mjs',
    'summarizeSteps',
    `summarizeSteps(${JSON.stringify(together)}, ${JSON.stringify(apart)})`,
  )) as Record<string, { median: number; samples: number }>
  expect(sum.other).toBe(10)
  expect(sum.closingTogether).toMatchObject({ samples: 1, median: 21 }) // 13 + 18 - 10
  // 11 + 12 - 10, and two in a row: (11 + 11 + 12 - 10) / 2
  expect(sum.closingApart).toMatchObject({ samples: 2, min: 12, max: 13 })
  expect(sum.ms).toMatchObject({ samples: 7, median: 10 })
})

test('sequences that decode one after another are no batch', async () => {
  // An engine of which each token is a step.
  const alone = `await (async () => {
    let steps = 0
    const engine = { stats: () => ({ queued: 0, steps }) }
    const sequence = { async *generate() { for (;;) { steps++; yield {} } } }
    const batch = { engine, sequences: [sequence, sequence], tokens: 8, window: null }
    return await timeLockstep(batch).catch(({ message }) => message)
  })()`
  expect(await evaluated('lockstep.mjs', 'timeLockstep', alone)).toBe(
    'decode: 8 steps of the batch were 16 of the engine',
  )
})
