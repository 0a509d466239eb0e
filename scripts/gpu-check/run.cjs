// Runs the packed suites without jest: node run.cjs [--device cuda] [--jobs 4] [part of a file's
// name …]. Each file is a process of its own, so that a crash fails that file alone. Prints a line a
// file, what failed, and at last `N passed, N failed`.
const { spawn } = require('node:child_process')
const { readdirSync } = require('node:fs')
const { createRequire } = require('node:module')
const path = require('node:path')

const TEST_TIMEOUT_MS = 60_000
const FILE_TIMEOUT_MS = 600_000

// ---- one file: describe, test and expect as jest has them ----

class Suite {
  constructor(name, parent) {
    this.name = name
    this.parent = parent
    this.entries = [] // suites and tests in the order of their declaration
    this.hooks = { beforeAll: [], beforeEach: [], afterEach: [], afterAll: [] }
  }
  /** The names from the outermost suite on. */
  get path() {
    return this.parent ? [...this.parent.path, this.name] : []
  }
}

function declareGlobals() {
  const { expect } = require('expect')
  const { bind } = require('jest-each')
  const top = new Suite('', null)
  let current = top

  const describe = (name, body) => {
    const suite = new Suite(name, current)
    current.entries.push(suite)
    current = suite
    body()
    current = suite.parent
  }
  const test = (name, body, timeoutMs = TEST_TIMEOUT_MS) =>
    current.entries.push({ name, body, timeoutMs })
  const nothing = () => {}
  nothing.each = () => nothing
  describe.each = bind(describe, false)
  describe.skip = nothing
  test.each = bind(test)
  test.skip = nothing
  Object.assign(globalThis, { describe, test, it: test, expect })
  for (const hook of Object.keys(top.hooks)) {
    globalThis[hook] = (body) => current.hooks[hook].push(body)
  }
  return top
}

/** Awaits what body gives; throws when it takes too long. */
async function within(timeoutMs, body) {
  let timer
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`took longer than ${timeoutMs} ms`)), timeoutMs)
  })
  try {
    await Promise.race([body(), late])
  } finally {
    clearTimeout(timer)
  }
}

async function runSuite(suite, outer, report) {
  const before = [...outer.before, ...suite.hooks.beforeEach]
  const after = [...suite.hooks.afterEach, ...outer.after]
  let broken = outer.broken
  const attempt = async (bodies, timeoutMs) => {
    for (const body of bodies) await within(timeoutMs, async () => body())
  }
  if (!broken) {
    await attempt(suite.hooks.beforeAll, TEST_TIMEOUT_MS).catch((error) => {
      broken = error
    })
  }
  for (const entry of suite.entries) {
    if (entry instanceof Suite) {
      await runSuite(entry, { before, after, broken }, report)
      continue
    }
    let failure = broken
    if (!failure) {
      const keep = (error) => {
        failure ??= error
      }
      await attempt([...before, entry.body], entry.timeoutMs).catch(keep)
      await attempt(after, TEST_TIMEOUT_MS).catch(keep)
    }
    report([...suite.path, entry.name].join(' › '), failure)
  }
  await attempt(suite.hooks.afterAll, TEST_TIMEOUT_MS).catch((error) => {
    report([...suite.path, 'afterAll'].join(' › '), error)
  })
}

async function runFile(file) {
  const top = declareGlobals()
  const result = { passed: 0, failures: [] }
  createRequire(file)(file)
  await runSuite(top, { before: [], after: [], broken: undefined }, (name, failure) => {
    if (failure === undefined) result.passed++
    else result.failures.push({ name, message: String(failure?.stack ?? failure) })
  })
  process.send(result, () => process.exit(0))
}

// ---- all files ----

function runInProcess(file, env) {
  return new Promise((resolve) => {
    const start = performance.now()
    let result = null
    let output = ''
    const child = spawn(process.execPath, [__filename, '--file', file], {
      env,
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
      timeout: FILE_TIMEOUT_MS,
      killSignal: 'SIGKILL',
    })
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (text) => (output += text))
    child.on('message', (message) => (result = message))
    child.on('close', (code, signal) => {
      const seconds = (performance.now() - start) / 1000
      result ??= {
        passed: 0,
        failures: [{ name: 'the file', message: `ended with ${signal ?? code}\n${output}` }],
      }
      resolve({ ...result, seconds })
    })
  })
}

async function runAll(args) {
  const options = { device: 'cuda', jobs: '4' }
  const parts = []
  while (args.length > 0) {
    const arg = args.shift()
    if (arg.startsWith('--')) options[arg.slice(2)] = args.shift()
    else parts.push(arg)
  }
  const root = path.join(__dirname, 'test')
  const files = readdirSync(root, { recursive: true })
    .filter((name) => name.endsWith('.test.js'))
    .filter((name) => parts.length === 0 || parts.some((part) => name.includes(part)))
    .sort()
  const env = { ...process.env, ZC_TEST_DEVICES: options.device }
  let passed = 0
  let failed = 0
  const queue = [...files]
  const work = async () => {
    for (let name = queue.shift(); name !== undefined; name = queue.shift()) {
      const { seconds, failures, ...rest } = await runInProcess(path.join(root, name), env)
      passed += rest.passed
      failed += failures.length
      const verdict = failures.length > 0 ? 'FAIL' : 'PASS'
      const counts = `${rest.passed} passed, ${failures.length} failed`
      console.log(`${verdict} ${name}: ${counts} (${seconds.toFixed(1)} s)`)
      for (const { name: test, message } of failures) {
        console.log(`  ● ${test}`)
        console.log(message.split('\n').slice(0, 25).join('\n').replace(/^/gm, '      '))
      }
    }
  }
  await Promise.all(Array.from({ length: Number(options.jobs) }, work))
  if (files.length === 0) failed++
  console.log(`${passed} passed, ${failed} failed`)
  process.exitCode = failed > 0 ? 1 : 0
}

const [first, ...rest] = process.argv.slice(2)
if (first === '--file') runFile(rest[0])
else runAll(first === undefined ? [] : [first, ...rest])
