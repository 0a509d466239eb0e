// `npm run bench:serve`: the server under load, with compressed and with 16-bit caches in the same
// memory.
import { writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { reportFailure, ScriptError, say } from '../../scripts/progress.mjs'
import { setup } from '../../scripts/setup.mjs'
import { describeMachine } from '../machine.mjs'
import { countHeld } from './held.mjs'
import { measureLoad } from './load.mjs'
import { notesOf, tablesOf, toMarkdown } from './report.mjs'
import { startServer, watchServer } from './server.mjs'

const kUsage = `usage: npm run bench:serve [-- OPTIONS]
  --policies LIST    cache policies; the first is what others are compared with; default fp16,zipcache
  --streams LIST     how many at a time; default 1,16
  --kv-memory BYTES  memory of all caches, as zipcache serve takes it; default 32m
  --threads N        threads that compute; default one a core
  --quick            a quarter of the requests
  --json             one JSON document on stdout instead of tables
  --markdown FILE    writes the tables to a file as well
`

/** What is asked: much to write after a short prompt, and little after a long one. */
const kWorkloads = [
  { name: 'short', lines: 20, maxTokens: 128, perStream: { 1: 16, 16: 4 } },
  { name: 'long', lines: 200, maxTokens: 16, perStream: { 1: 12, 16: 2 } },
]
const kHeldLines = 200
const kWarmupTokens = 8

function readOptions(args) {
  const text = { type: 'string' }
  const flag = { type: 'boolean', default: false }
  try {
    const { values } = parseArgs({
      args,
      options: {
        policies: { ...text, default: 'fp16,zipcache' },
        streams: { ...text, default: '1,16' },
        'kv-memory': { ...text, default: '32m' },
        threads: text,
        quick: flag,
        json: flag,
        markdown: text,
        help: flag,
      },
    })
    const streams = values.streams.split(',').map(Number)
    if (!streams.every((n) => Number.isInteger(n) && n > 0)) {
      throw new Error(`--streams: is ${values.streams}, expected whole numbers above 0`)
    }
    return {
      ...values,
      policies: values.policies.split(','),
      streams,
      kvMemory: values['kv-memory'],
    }
  } catch (error) {
    throw new ScriptError(`${error.message}\n\n${kUsage}`)
  }
}

/** Requests of each of so many streams: as many as for the nearest number that is named. */
function perStreamOf({ perStream }, streams, quick) {
  const n = streams >= 8 ? perStream[16] : perStream[1]
  return quick ? Math.max(1, Math.floor(n / 4)) : n
}

async function main() {
  const options = readOptions(process.argv.slice(2))
  if (options.help) {
    process.stdout.write(kUsage)
    return
  }
  await setup()
  const { exampleModel, generateLineRetrieval } = await import('../../dist/index.mjs')
  const { default: tables } = await import('../../dist/cli/table.js')
  const { kvMemory, policies, streams, quick } = options
  const machine = describeMachine()
  const startedAt = performance.now()
  const args = ['--model', exampleModel(), '--kv-memory', kvMemory, '--device', 'cpu']
  if (options.threads !== undefined) args.push('--threads', options.threads)
  const cells = []
  const held = []
  for (const policy of policies) {
    const server = await startServer([...args, '--policy', policy])
    try {
      const once = { streams: 1, perStream: 1, maxTokens: kWarmupTokens }
      await measureLoad(server.url, once, () => generateLineRetrieval({ lines: 20, seed: 0 }).text)
      for (const workload of kWorkloads) {
        const { name, lines, maxTokens } = workload
        for (const n of streams) {
          say(`${policy}, ${name}, ${n} streams`)
          const load = { streams: n, perStream: perStreamOf(workload, n, quick), maxTokens }
          const promptOf = (i) => generateLineRetrieval({ lines, seed: 1 + i }).text
          const measured = await watchServer(server.url, () =>
            measureLoad(server.url, load, promptOf),
          )
          const one = cells.find(
            (cell) => cell.workload === name && cell.policy === policy && cell.streams === 1,
          )
          const speedup = one ? measured.tokensPerSecond / one.tokensPerSecond : null
          cells.push({ workload: name, policy, streams: n, ...measured, speedup })
        }
      }
      say(`${policy}, conversations held`)
      const promptOf = (i) => generateLineRetrieval({ lines: kHeldLines, seed: 1 + i }).text
      held.push({ policy, conversations: await countHeld(server.url, promptOf) })
    } finally {
      await server.stop()
    }
  }
  cells.sort((a, b) => a.workload.localeCompare(b.workload) || a.streams - b.streams)
  const seconds = (performance.now() - startedAt) / 1000
  const workloads = kWorkloads.map((workload) => ({
    ...workload,
    promptTokens: generateLineRetrieval({ lines: workload.lines, seed: 1 }).text.split(' ').length,
    perStream: streams.map((n) => perStreamOf(workload, n, quick)).join(' or '),
  }))
  const result = {
    machine,
    settings: { kvMemory, workloads, seconds },
    cells,
    held,
  }
  result.notes = notesOf(result)
  const all = tablesOf(result, tables)
  if (options.markdown) {
    const command = ['npm run bench:serve --', ...process.argv.slice(2)].join(' ')
    writeFileSync(options.markdown, toMarkdown(result, all, tables.formatMarkdownTable, command))
  }
  if (options.json) {
    process.stdout.write(`${JSON.stringify(result, null, 2)}\n`)
    return
  }
  for (const { title, columns, rows } of all) {
    process.stdout.write(`${title}\n${tables.formatTable(columns, rows)}\n`)
  }
  process.stdout.write(result.notes.map((note) => `${note}\n`).join(''))
}

// The server ends with us.
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => process.exit(1))
try {
  await main()
} catch (error) {
  reportFailure(error)
  process.exitCode = 1
}
