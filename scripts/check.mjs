// `npm run check`: everything that reads the code without running it. All checks run, so that one
// run names every fault.
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { reportFailure, say } from './progress.mjs'
import { root, setup } from './setup.mjs'

const installed = (...names) => path.join(root, 'node_modules', ...names)
const own = (name) => path.join(root, 'scripts', name)

const checks = {
  'format and lint (Biome)': [
    installed('@biomejs', 'biome', 'bin', 'biome'),
    'check',
    '--error-on-warnings',
  ],
  'native format (clang-format)': [own('format-native.mjs'), '--check'],
  'types (tsc)': [installed('typescript', 'bin', 'tsc'), '--noEmit'],
  'lint with types (ESLint)': [installed('eslint', 'bin', 'eslint.js'), '--max-warnings=0'],
  layers: [own('check-layers.mjs')],
  'API documentation (TypeDoc)': [installed('typedoc', 'bin', 'typedoc'), '--emit', 'none'],
}

try {
  await setup({ native: false, ts: false })
  const failed = Object.entries(checks).filter(([name, command]) => {
    say(`check ${name}`)
    return spawnSync(process.execPath, command, { cwd: root, stdio: ['ignore', 2, 2] }).status !== 0
  })
  for (const [name] of failed) say(`FAILED: ${name}`)
  console.log(
    `${Object.keys(checks).length - failed.length} checks passed, ${failed.length} failed`,
  )
  process.exitCode = failed.length > 0 ? 1 : 0
} catch (error) {
  reportFailure(error)
  process.exitCode = 1
}
