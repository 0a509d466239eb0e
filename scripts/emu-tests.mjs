// Tests of the CUDA kernels on the emulator (csrc/emu), in C++: the emulator's own, and every op
// against the CPU backend. The last line of stdout is `N passed, N failed`.
//   node scripts/emu-tests.mjs                 the plain build, in every order of events
//   node scripts/emu-tests.mjs --matrix        with AddressSanitizer and ThreadSanitizer too
//   node scripts/emu-tests.mjs --asan rope     one build; tests whose names hold a word
import { spawn } from 'node:child_process'
import { availableParallelism } from 'node:os'
import path from 'node:path'
import { reportFailure, runQuietly, ScriptError, say } from './progress.mjs'
import { root, setup } from './setup.mjs'

/**
 * What each build runs, and in which environment (csrc/emu/settings.h). `emu-tests` chooses its own
 * orders. Copies that take effect early find what is overwritten too soon, late ones find missing
 * waits; ThreadSanitizer needs no unusual order to see a race, and AddressSanitizer none to see a
 * wrong address.
 */
const eager = { ZC_SIMT_ASYNC: 'eager', ZC_SIMT_SCHED: 'forward' }
const late = { ZC_SIMT_ASYNC: 'late', ZC_SIMT_SCHED: 'reverse' }
/** Both emulated GPUs as an A100, between the Hopper and the one with little shared memory that they are. */
const a100 = { ...eager, ZC_EMU_ARCHITECTURE: '80' }
const random = (seed) => ({ ZC_SIMT_ASYNC: 'random', ZC_SIMT_SCHED: `random:${seed}` })
const runs = {
  plain: [
    { program: 'emu-tests' },
    { program: 'op-tests', mode: 'eager', env: eager },
    { program: 'op-tests', mode: 'eager, sm_80', env: a100 },
    { program: 'op-tests', mode: 'late', env: late },
    { program: 'op-tests', mode: 'random', env: random(1) },
  ],
  asan: [{ program: 'emu-tests' }, { program: 'op-tests', mode: 'random', env: random(2) }],
  tsan: [{ program: 'emu-tests' }, { program: 'op-tests', mode: 'eager', env: eager }],
}

function parseArguments(args) {
  const builds = args.includes('--matrix')
    ? Object.keys(runs)
    : Object.keys(runs).filter((build) => args.includes(`--${build}`))
  const known = ['--matrix', ...Object.keys(runs).map((build) => `--${build}`)]
  const [filter = '', ...others] = args.filter((arg) => !known.includes(arg))
  const wrong = [filter, ...others.slice(0, 1)].find((arg, i) => i > 0 || arg.startsWith('-'))
  if (wrong !== undefined) throw new ScriptError(`'${wrong}' is no argument`)
  return { builds: builds.length > 0 ? builds : ['plain'], filter }
}

async function build(builds) {
  await setup({ emulator: true, ts: false })
  const targets = builds.flatMap((name) => runs[name].map(({ program }) => `${program}-${name}`))
  const options = ['--build', 'build', '--parallel', String(availableParallelism())]
  await runQuietly(
    'building the tests of the emulator',
    'cmake',
    [...options, '--target', ...new Set(targets)],
    { cwd: root, nextStep: 'read the error above.' },
  )
}

/** Runs one program to its end; what it prints but its counts goes to stderr. */
async function run({ name, program, env, filter }) {
  const started = Date.now()
  const child = spawn(path.join(root, 'build', 'emu', program), filter ? [filter] : [], {
    cwd: root,
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 2],
  })
  let output = ''
  child.stdout.setEncoding('utf8').on('data', (chunk) => {
    output += chunk
  })
  const end = await new Promise((resolve) => {
    child.on('error', (error) => resolve(error.message))
    child.on('close', (code, signal) => resolve(signal ?? `exit code ${code}`))
  })
  const [, report, passed, failed] = /^(.*?)(\d+) passed, (\d+) failed\n$/s.exec(output) ?? []
  if (passed === undefined) {
    say(`${name}: ended without its counts (${end})\n${output}`)
    return { passed: 0, failed: 1 }
  }
  const seconds = ((Date.now() - started) / 1000).toFixed(1)
  say(`${name}: ${passed} passed, ${failed} failed, ${seconds} s${report && `\n${report}`}`)
  return { passed: Number(passed), failed: Number(failed) }
}

/** All runs, as many at a time as there are processors. */
async function runAll(waiting) {
  const total = { passed: 0, failed: 0 }
  const work = async () => {
    for (let next = waiting.shift(); next; next = waiting.shift()) {
      const counts = await run(next)
      total.passed += counts.passed
      total.failed += counts.failed
    }
  }
  await Promise.all(Array.from({ length: availableParallelism() }, work))
  return total
}

let total = { passed: 0, failed: 0 }
try {
  const { builds, filter } = parseArguments(process.argv.slice(2))
  await build(builds)
  total = await runAll(
    builds.flatMap((name) =>
      runs[name].map(({ program, mode, env }) => ({
        name: [program, name, mode].filter(Boolean).join(' '),
        program: `${program}-${name}`,
        env,
        filter,
      })),
    ),
  )
  if (total.passed + total.failed === 0) throw new ScriptError('no test has such a name')
} catch (error) {
  reportFailure(error)
  total.failed += 1
}
console.log(`${total.passed} passed, ${total.failed} failed`)
process.exitCode = total.failed > 0 ? 1 : 0
