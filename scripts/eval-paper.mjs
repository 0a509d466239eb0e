// `npm run eval:paper`: the tables and figures of docs/results/ for the models of this repository,
// measured anew. What was answered is kept in build/, so that an interrupted run goes on; further
// arguments go to `zipcache eval paper`, as --jobs 2.
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { reportFailure } from './progress.mjs'
import { root, setup } from './setup.mjs'

const models = ['line-retrieval', 'line-retrieval-base']

try {
  await setup()
  for (const model of models) {
    const results = path.join('docs', 'results', `eval-${model}`)
    const outputs = { markdown: `${results}.md`, json: `${results}.json`, html: `${results}.html` }
    const { status } = spawnSync(
      process.execPath,
      [
        path.join('dist', 'cli', 'main.js'),
        ...['eval', 'paper', '--model', `models/${model}`, '--questions', '40', '--seed', '71'],
        ...['--lines', '100', '--figure-lines', '20,50,200'],
        ...['--journal', path.join('build', `eval-${model}.jsonl`)],
        ...Object.entries(outputs).flatMap(([kind, file]) => [`--${kind}`, file]),
        ...process.argv.slice(2),
      ],
      { cwd: root, stdio: ['ignore', 'ignore', 'inherit'] },
    )
    if (status !== 0) {
      process.exitCode = status ?? 1
      break
    }
  }
} catch (error) {
  reportFailure(error)
  process.exitCode = 1
}
