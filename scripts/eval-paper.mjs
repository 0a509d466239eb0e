// `npm run eval:paper`: the tables and figures of docs/results/ for the models of this repository,
// measured anew, and beside them the tasks that are not in the paper. What was answered is kept in
// build/, so that an interrupted run goes on; further arguments go to every `zipcache eval`, as
// --jobs 2.
import { spawnSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { reportFailure } from './progress.mjs'
import { root, setup } from './setup.mjs'

const seed = 71
/** The model that tells methods apart has more questions. */
const models = { 'line-retrieval-base': 60, 'line-retrieval': 40 }
const methods = [
  ...['fp16', 'uniform4', 'rotated4', 'zipcache', 'zipcache-plus', 'mikv', 'mikv-paper'],
  ...['kivi2', 'gear4', 'h2o', 'snapkv'],
].join()
/** What models of lines of records read: such lines, so many prompts of them. */
const text = { file: path.join('build', 'eval-lines.txt'), prompts: 16 }
const others = {
  'multi-turn': { questions: 8, options: ['--lines', '100'] },
  needle: { questions: 4, options: ['--lines', '100', '--ask', 'after'] },
  perplexity: {
    questions: 4,
    options: ['--data', text.file, '--prefix', '1024', '--tokens', '128', '--no-special-tokens'],
  },
}

try {
  await setup()
  writeText()
  for (const [model, questions] of Object.entries(models)) {
    const results = path.join('docs', 'results', `eval-${model}`)
    run(
      ['paper', '--lines', '100', '--figure-lines', '20,50,200'],
      ['--markdown', `${results}.md`, '--html', `${results}.html`],
      { model, questions, name: model },
    )
    for (const [task, { questions, options }] of Object.entries(others)) {
      run([task, ...options], ['--policy', methods], { model, questions, name: `${model}-${task}` })
    }
  }
} catch (error) {
  reportFailure(error)
  process.exitCode = 1
}

function run(task, options, { model, questions, name }) {
  const { status } = spawnSync(
    process.execPath,
    [
      ...[path.join('dist', 'cli', 'main.js'), 'eval', ...task],
      ...['--model', `models/${model}`, '--questions', questions, '--seed', seed].map(String),
      ...['--journal', path.join('build', `eval-${name}.jsonl`)],
      ...['--json-file', path.join('docs', 'results', `eval-${name}.json`), ...options],
      ...process.argv.slice(2),
    ],
    { cwd: root, stdio: ['ignore', 'ignore', 'inherit'] },
  )
  if (status !== 0) throw new Error(`zipcache eval ${task[0]} of ${model} ended with ${status}`)
}

/** A text for the perplexity task; the answers' numbers stand in it, too. */
function writeText() {
  const { generateLineRetrieval } = createRequire(import.meta.url)(path.join(root, 'dist'))
  const prompts = Array.from({ length: text.prompts }, (_, i) => {
    const { text, answerText } = generateLineRetrieval({ lines: 100, seed: seed + i })
    return `${text}${answerText}\n`
  })
  writeFileSync(path.join(root, text.file), prompts.join(''))
}
