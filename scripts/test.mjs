// `npm test`: sets up what is missing, then runs jest; arguments go to jest (`npm test --
// quantize`). With `--on cuda` first, what runs on devices runs on that one alone, which has to be
// there. jest's own report goes to stderr. The last line of stdout is `N passed, N failed`, counted
// from jest's JSON.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { reportFailure, say } from './progress.mjs'
import { root, setup } from './setup.mjs'

function runJest(args) {
  const scratch = mkdtempSync(path.join(tmpdir(), 'zipcache-test-'))
  try {
    const resultFile = path.join(scratch, 'results.json')
    const jest = path.join(root, 'node_modules', 'jest', 'bin', 'jest.js')
    const jestArgs = [jest, '--json', `--outputFile=${resultFile}`, ...args]
    const { status } = spawnSync(process.execPath, jestArgs, {
      cwd: root,
      stdio: ['inherit', 2, 2],
    })
    const results = existsSync(resultFile) ? JSON.parse(readFileSync(resultFile, 'utf8')) : null
    return { status, results }
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
}

/** A suite that could not run counts as a failure, and so does a run without tests. */
function count({ status, results }) {
  const passed = results?.numPassedTests ?? 0
  const skipped = (results?.numPendingTests ?? 0) + (results?.numTodoTests ?? 0)
  let failed = (results?.numFailedTests ?? 0) + (results?.numRuntimeErrorTestSuites ?? 0)
  if (failed === 0 && status !== 0) failed = 1
  if (failed === 0 && passed === 0) {
    say('no test ran')
    failed = 1
  }
  return { passed, failed, skipped }
}

let counts = { passed: 0, failed: 1, skipped: 0 }
try {
  const args = process.argv.slice(2)
  if (args[0] === '--on') process.env.ZC_TEST_DEVICES = args.splice(0, 2)[1]
  const onGpu = /^cuda\b(?!-)/.test(process.env.ZC_TEST_DEVICES ?? '')
  await setup({ emulator: !onGpu, cuda: onGpu })
  counts = count(runJest(args))
} catch (error) {
  reportFailure(error)
}
const { passed, failed, skipped } = counts
console.log(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`)
process.exitCode = failed > 0 ? 1 : 0
