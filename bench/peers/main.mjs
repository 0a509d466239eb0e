// `npm run bench:peers`: zipcache beside llama.cpp, on the processor, over the same models.
import { writeFileSync } from 'node:fs'
import { availableParallelism, cpus } from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { reportFailure, ScriptError, say } from '../../scripts/progress.mjs'
import { root, setup } from '../../scripts/setup.mjs'
import { describeMachine } from '../machine.mjs'
import { checkModel } from './check.mjs'
import { installNodeLlamaCpp, kNodeLlamaCppVersion } from './install.mjs'
import { kModelNames, kShippedModels, prepareModel } from './models.mjs'
import { toMarkdown } from './report.mjs'
import { measureRetrieval } from './retrieval.mjs'
import { fasterWeights, kLongestPrefill, measureSpeed, speedCells } from './speed.mjs'

const kUsage = `usage: npm run bench:peers [-- OPTIONS]
  --quick             fewer runs, questions and contexts, and no run is repeated
  --models LIST       of ${kModelNames.join(', ')}; default 25m,125m,line-retrieval
  --parts LIST        of speed, retrieval; default both. Logits are checked in any case
  --engines LIST      of llama.cpp, zipcache: whose speed is measured; default both
  --contexts LIST     tokens, for all models; default 1024,4096, and for 25m 8192,16384 too; above
                      ${kLongestPrefill} multiples of the longest one below
  --repeats N         decode runs of a cell; default 5, with --quick 2
  --tokens N          decoded tokens of a run; default 40
  --windows N         closed in a row where a cache has windows; default 20, with --quick 3
  --prefill-seconds N no further prefill of a cell when they took so long; default 10, with --quick 0
  --questions N       of line retrieval, for each number of lines; default 60, with --quick 20
  --cpu N             the processor to run on; default the last
  --json              one JSON document on stdout, with every run, instead of tables
  --markdown FILE     writes the tables to a file as well

Exit codes: 1 failure or wrong usage, 2 node-llama-cpp cannot be installed, 3 the engines disagree.
`

const kExitNoPeer = 2
const kExitDisagree = 3
const kParts = ['speed', 'retrieval']
const kEngines = ['llama.cpp', 'zipcache']
const kRetrievalLines = [100, 200]

/** The command line, checked. Throws ScriptError. */
function readOptions(args) {
  const text = { type: 'string' }
  const flag = { type: 'boolean', default: false }
  let values
  try {
    values = parseArgs({
      args,
      options: {
        quick: flag,
        models: { ...text, default: '25m,125m,line-retrieval' },
        parts: { ...text, default: kParts.join() },
        engines: { ...text, default: kEngines.join() },
        contexts: text,
        repeats: text,
        tokens: text,
        windows: text,
        'prefill-seconds': text,
        questions: text,
        cpu: text,
        json: flag,
        markdown: text,
        help: flag,
      },
    }).values
  } catch (error) {
    throw new ScriptError(`${error.message}\n\n${kUsage}`)
  }
  const { quick } = values
  const list = (name, known) => {
    const items = values[name].split(',')
    const unknown = items.find((item) => !known.includes(item))
    if (unknown === undefined) return items
    throw new ScriptError(`--${name}: ${unknown} is none of ${known.join(', ')}`)
  }
  const integer = (name, fallback, least) => {
    const value = values[name] === undefined ? fallback : Number(values[name])
    if (Number.isInteger(value) && value >= least) return value
    throw new ScriptError(`--${name}: is ${values[name]}, expected a whole number from ${least}`)
  }
  return {
    help: values.help,
    json: values.json,
    markdown: values.markdown,
    models: list('models', kModelNames),
    parts: list('parts', kParts),
    engines: list('engines', kEngines),
    contexts: values.contexts === undefined ? null : readContexts(values.contexts),
    repeats: integer('repeats', quick ? 2 : 5, 1),
    tokens: integer('tokens', 40, 1),
    windows: integer('windows', quick ? 3 : 20, 1),
    prefillSeconds: integer('prefill-seconds', quick ? 0 : 10, 0),
    questions: integer('questions', quick ? 20 : 60, 1),
    cpu: integer('cpu', cpus().length - 1, 0),
    retries: !quick,
    quick,
  }
}

function readContexts(text) {
  const contexts = text.split(',').map(Number)
  const base = contexts.findLast((context) => context <= kLongestPrefill)
  const isGood = (context, i) =>
    Number.isInteger(context) &&
    context > (contexts[i - 1] ?? 0) &&
    (context <= kLongestPrefill || context % base === 0)
  if (base !== undefined && contexts.every(isGood)) return contexts
  throw new ScriptError(
    `--contexts: is ${text}, expected ascending numbers, those above ${kLongestPrefill} ` +
      'multiples of the greatest of the others',
  )
}

/** Long contexts over every model would take hours. */
function contextsOf(name, { contexts, quick }) {
  if (contexts !== null) return contexts
  if (quick) return name === '125m' ? [1024] : [1024, 4096]
  return name === '25m' ? [1024, 4096, 8192, 16384] : [1024, 4096]
}

/** Shows where the run is: each step as a line, and on a terminal its cells, in a line of their own. */
function progress(started) {
  let shown = ''
  return (step, cell = '') => {
    const { isTTY } = process.stderr
    if (isTTY) process.stderr.write('\r\x1b[K')
    if (step !== shown) say(`${secondsSince(started)} s: ${step}`)
    shown = step
    if (isTTY && cell !== '') process.stderr.write(`  ${cell}`)
  }
}

function secondsSince(started) {
  return Math.round((performance.now() - started) / 1000)
}

async function main() {
  const options = readOptions(process.argv.slice(2))
  if (options.help) {
    process.stdout.write(kUsage)
    return
  }
  const started = performance.now()
  const onProgress = progress(started)
  await setup()
  const cache = path.join(root, 'build', 'peers')
  let nodeLlamaCpp
  try {
    nodeLlamaCpp = await installNodeLlamaCpp(cache)
  } catch (error) {
    reportFailure(error)
    process.exitCode = kExitNoPeer
    return
  }
  const host = { cpu: options.cpu, nodeLlamaCpp }
  const prepare = (name) => prepareModel(name, path.join(cache, 'models'))
  const timed = options.parts.includes('speed') ? options.models.map(prepare) : []
  const asked = options.parts.includes('retrieval') ? kShippedModels.map(prepare) : []

  const checks = []
  const byName = new Map([...timed, ...asked].map((model) => [model.name, model]))
  for (const model of byName.values()) {
    onProgress(`${model.name}: comparing logits`)
    checks.push(...(await checkModel(model, host)))
  }
  const disagreeing = checks.filter(({ agrees }) => !agrees)
  if (disagreeing.length > 0) {
    process.stderr.write(`${JSON.stringify(disagreeing, null, 2)}\n`)
    say('the engines compute different logits: nothing was measured')
    process.exitCode = kExitDisagree
    return
  }

  const { repeats, tokens, windows, prefillSeconds, questions, cpu, retries, quick } = options
  const settings = { repeats, tokens, windows, prefillSeconds, questions, cpu, quick, models: {} }
  settings.contexts = unique(timed.flatMap(({ name }) => contextsOf(name, options)))
  const speed = []
  for (const model of timed) {
    const hasPeer = options.engines.includes('llama.cpp')
    if (hasPeer) onProgress(`${model.name}: which weight type llama.cpp is faster with`)
    const weights = hasPeer ? await fasterWeights(model, host, tokens) : null
    const { shape, parameters } = model
    settings.models[model.name] = { ...shape, parameters, fasterWeights: weights }
    const contexts = contextsOf(model.name, options)
    const scratch = path.join(cache, 'states')
    const how = { repeats, tokens, windows, prefillSeconds, retries, contexts, scratch, onProgress }
    const cells = speedCells(weights).filter(({ engine }) => options.engines.includes(engine))
    speed.push(...(await measureSpeed(model, cells, how, host)))
  }
  const retrieval = await measureRetrieval(
    asked,
    { lines: kRetrievalLines, questions, onProgress },
    host,
    availableParallelism(),
  )

  const infoOf = (engine) => speed.find((row) => row.engine === engine && row.info)?.info
  const machine = {
    ...describeMachine(),
    zipcache: infoOf('zipcache'),
    llama: [`node-llama-cpp ${kNodeLlamaCppVersion}`, infoOf('llama.cpp')]
      .filter(Boolean)
      .join(', '),
  }
  settings.seconds = secondsSince(started)
  const result = { machine, settings, checks, speed, retrieval }
  const given = process.argv.slice(2).join(' ')
  const markdown = toMarkdown(result, `npm run bench:peers${given === '' ? '' : ` -- ${given}`}`)
  if (options.markdown !== undefined) writeFileSync(options.markdown, markdown)
  process.stdout.write(options.json ? `${JSON.stringify(result)}\n` : markdown)
  onProgress('done')
}

function unique(values) {
  return [...new Set(values)]
}

try {
  await main()
} catch (error) {
  reportFailure(error)
  process.exitCode = 1
}
