// `npm run bench:cuda`: attention over the packed cache, prefill, products and whole steps on an NVIDIA GPU,
// beside PyTorch's attention where PyTorch is installed.
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { cpus } from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { reportFailure, runQuietly, ScriptError, say } from '../../scripts/progress.mjs'
import { root, setup } from '../../scripts/setup.mjs'

const kParts = ['attention', 'prefill', 'products', 'steps', 'peers']
const kUsage = `usage: npm run bench:cuda [-- OPTIONS]
  --full           longer contexts, and more of them
  --parts LIST     of ${kParts.join(', ')}; default: what this machine can run
  --plugin FILE    a built CUDA backend, zipcache-cuda.so: nothing is built then, and dist/ and
                   build/Release are used as they are; default: this clone's, built when it is stale
  --budget SECONDS  of steps, the most important ones first
  --layers N       of steps' model, instead of all 32
  --folder DIR     where steps writes its model of 16 GB; default the system's for temporary files
  --json           one JSON document on stdout instead of tables
  --json-file FILE  writes the JSON document to a file as well
  --markdown FILE  writes the tables to a file as well
  --html FILE      writes a page with plots
  --check          small shapes, checked and hardly timed: also for the emulated backend

  attention  mixedAttention over caches of random codes, LLaMA3-8B's heads (with --full Gemma 3 4B's
             and Phi-3-mini's, too), each result held against double precision before it is timed
  prefill    flashAttention and probeAttention; needs nvcc
  products   linear, LLaMA3-8B's products of prompts, by wgmma and by mma; needs nvcc
  steps      prompts, decode steps and memory of a model in LLaMA3-8B's shape with random weights,
             batch 1, 8 and 64, and the paper's figure 6
  peers      PyTorch's scaled_dot_product_attention, each backend by itself; needs python3 with PyTorch

Exit codes: 1 wrong usage, or a part failed and is not in the report, or not whole; 2 no GPU that can
be used.
`
const kExitNoGpu = 2

/** The command line, checked. Throws ScriptError. */
function readOptions(args) {
  const flag = { type: 'boolean', default: false }
  const text = { type: 'string' }
  let values
  try {
    const options = { full: flag, check: flag, help: flag, json: flag, parts: text, plugin: text }
    Object.assign(options, { budget: text, layers: text, folder: text, 'json-file': text })
    values = parseArgs({ args, options: { ...options, markdown: text, html: text } }).values
  } catch (error) {
    throw new ScriptError(`${error.message}\n\n${kUsage}`)
  }
  const parts = values.parts?.split(',') ?? null
  const unknown = parts?.find((part) => !kParts.includes(part))
  if (unknown !== undefined) {
    throw new ScriptError(`--parts: ${unknown} is none of ${kParts.join(', ')}`)
  }
  if (values.plugin !== undefined && !existsSync(values.plugin)) {
    throw new ScriptError(`--plugin: there is no ${values.plugin}`)
  }
  if (values.budget !== undefined && !(Number(values.budget) > 0)) {
    throw new ScriptError(`--budget: is ${values.budget}, expected seconds above 0`)
  }
  return { ...values, parts }
}

/** Runs a program to its end; its lines of JSON. Throws ScriptError, with `lines`, when it fails. */
async function jsonLines(what, command, args) {
  const started = performance.now()
  say(`${what} ...`)
  const child = spawn(command, args, { cwd: root, stdio: ['ignore', 'pipe', 'inherit'] })
  let output = ''
  child.stdout.setEncoding('utf8').on('data', (chunk) => {
    output += chunk
  })
  const code = await new Promise((resolve, reject) => {
    child.on('error', (error) => reject(new ScriptError(`${command}: ${error.message}`)))
    child.on('close', (status, signal) => resolve(status ?? signal))
  })
  const lines = output
    .split('\n')
    .slice(0, -1) // what was begun is no line
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line))
  if (code !== 0) throw Object.assign(new ScriptError(`${what} ended with ${code}`), { lines })
  say(`${what} took ${((performance.now() - started) / 1000).toFixed(1)} s`)
  return lines
}

const folder = path.join(root, 'build', 'bench')

async function attention({ plugin, full, check }) {
  const program = path.join(folder, 'mixed_attention')
  const sources = ['-x', 'c++', 'bench/cuda/mixed_attention.cc', 'csrc/core/error.cc']
  const flags = ['-std=c++20', '-O2', '-I.', '-Wno-unknown-pragmas']
  const compiler = process.env.CXX ?? 'c++'
  await runQuietly(
    'compiling mixed_attention',
    compiler,
    [...flags, ...sources, '-o', program, '-ldl'],
    { cwd: root },
  )
  const mode = check ? ['--check'] : full ? ['--full'] : []
  return await jsonLines('mixedAttention', program, [path.resolve(plugin), ...mode])
}

/**
 * Compiles bench/cuda/`name`.cu with the kernels whose files begin with a word of `kernels`, and runs
 * it. `computeCapability` as of nvidia-smi: 9.0.
 */
async function compiled(name, kernels, what, { computeCapability, full, check }) {
  const program = path.join(folder, name)
  const number = computeCapability.replace('.', '')
  const architecture = number === '90' ? '90a' : number
  const target = ['-gencode', `arch=compute_${architecture},code=sm_${architecture}`]
  const sources = readdirSync(path.join(root, 'csrc/cuda/kernels'))
    .filter((file) => file.endsWith('.cu') && kernels.some((word) => file.startsWith(word)))
    .map((file) => `csrc/cuda/kernels/${file}`)
  const own = ['csrc/cuda/check_cuda.cu', 'csrc/core/error.cc']
  await runQuietly(
    `compiling ${name}`,
    'nvcc',
    [
      ...['-std=c++20', '-O3', ...target, '-I.', '-o', program],
      ...[`bench/cuda/${name}.cu`, ...sources, ...own],
    ],
    { cwd: root },
  )
  const mode = check ? ['--check'] : full ? [] : ['--quick']
  return await jsonLines(what, program, mode)
}

const prefill = (how) =>
  compiled(
    'flash_attention',
    ['flash_attention', 'probe_attention'],
    'flashAttention and probeAttention',
    how,
  )

const products = (how) => compiled('linear', ['linear'], 'linear', how)

async function steps({ device, full, check, budget, layers, folder: parent }) {
  const options = [
    ...['--device', device ?? 'cuda-emu'],
    ...(full ? ['--full'] : []),
    ...(check ? ['--check'] : []),
    ...(budget === undefined ? [] : ['--budget', budget]),
    ...(layers === undefined ? [] : ['--layers', layers]),
    ...(parent === undefined ? [] : ['--folder', path.resolve(parent)]),
  ]
  return await jsonLines('whole steps', process.execPath, ['bench/cuda/steps/main.mjs', ...options])
}

async function peers({ full }) {
  return await jsonLines('PyTorch', 'python3', ['bench/cuda/peers.py', ...(full ? ['--full'] : [])])
}

/** What nvidia-smi says of the first GPU, by its own names; null where there is none. */
function askDriver() {
  const fields = ['name', 'driver_version', 'compute_cap', 'clocks.max.sm', 'clocks.max.mem']
  const query = [`--query-gpu=${fields.join(',')}`, '--format=csv,noheader', '--id=0']
  const { status, stdout } = spawnSync('nvidia-smi', query, { encoding: 'utf8' })
  if (status !== 0) return null
  const values = stdout.trim().split(', ')
  return Object.fromEntries(fields.map((field, i) => [field, values[i]]))
}

const runs = (command, ...args) => spawnSync(command, args, { stdio: 'ignore' }).status === 0

const needsNvcc = (gpu) => (gpu && runs('nvcc', '--version') ? null : 'needs a GPU and nvcc')

/** Why a part cannot run here; null where it can. */
const kObstacles = {
  attention: () => null,
  prefill: needsNvcc,
  products: needsNvcc,
  steps: (gpu, { check, device }) =>
    device || (check && !gpu) ? null : 'needs a GPU that can be used',
  peers: (gpu) =>
    gpu && runs('python3', '-c', 'import torch; assert torch.cuda.is_available()')
      ? null
      : 'needs python3 with PyTorch for CUDA',
}

function commit() {
  // A machine with a GPU may have no git, nor a clone.
  const git = (...args) => spawnSync('git', args, { cwd: root, encoding: 'utf8' }).stdout?.trim()
  const changed = git('status', '--porcelain', '--untracked-files=no') ? '+' : ''
  return `${git('rev-parse', '--short', 'HEAD') || 'unknown'}${changed}`
}

/** The CUDA device of `Device.list()` that can be used; else null, with the reason said. */
async function usableDevice() {
  const { Device } = await import('../../dist/ops/index.mjs')
  const gpus = (await Device.list()).filter(({ name }) => /^cuda(:\d+)?$/.test(name))
  const usable = gpus.find(({ available }) => available)
  if (!usable) for (const { name, reason } of gpus) say(`${name}: ${reason}`)
  return usable ?? null
}

/** Has the package load the CUDA backend of `file`. Throws ScriptError where the rest is not built. */
function usePlugin(file) {
  const missing = ['dist/index.mjs', 'build/Release/zipcache.node'].find(
    (name) => !existsSync(path.join(root, name)),
  )
  if (missing) throw new ScriptError(`there is no ${missing}`, 'run `npm run build` first.')
  process.env.ZIPCACHE_PLUGIN_PATH = path.dirname(path.resolve(file))
}

async function main() {
  const options = readOptions(process.argv.slice(2))
  if (options.help) {
    process.stdout.write(kUsage)
    return
  }
  const gpu = askDriver()
  const wantsPlugin = options.plugin === undefined
  if (wantsPlugin && !gpu) {
    say('nvidia-smi finds no GPU: nothing was measured')
    process.exitCode = kExitNoGpu
    return
  }
  if (wantsPlugin) await setup({ cuda: true })
  else usePlugin(options.plugin)
  const device = gpu && (await usableDevice())
  if (wantsPlugin && !device) {
    process.exitCode = kExitNoGpu
    return
  }
  mkdirSync(folder, { recursive: true })
  const plugin = options.plugin ?? path.join(root, 'build', 'Release', 'zipcache-cuda.so')
  const how = {
    ...options,
    plugin,
    device: device?.name,
    computeCapability: gpu?.compute_cap,
  }
  const result = {
    machine: { gpu, cpu: cpus()[0].model.trim(), node: process.versions.node, commit: commit() },
    command: ['npm run bench:cuda', ...(process.argv.length > 2 ? ['--'] : [])]
      .concat(process.argv.slice(2))
      .join(' '),
    leftOut: {},
  }
  for (const [part, run] of Object.entries({ attention, prefill, products, steps, peers })) {
    if (options.parts && !options.parts.includes(part)) continue
    const obstacle = kObstacles[part](gpu, how)
    // Asked for by name, it must not be missing from the report unnoticed.
    if (obstacle && options.parts) throw new ScriptError(`--parts: ${part} ${obstacle}`)
    if (obstacle) {
      result.leftOut[part] = obstacle
      continue
    }
    try {
      result[part] = await run(how)
    } catch (error) {
      if (!(error instanceof ScriptError)) throw error
      // The other parts, and what there is of this one, are worth their minutes.
      reportFailure(error)
      process.exitCode = 1
      result.leftOut[part] = `failed: ${error.message.split('\n')[0]}`
      if (error.lines?.length > 0) result[part] = error.lines
    }
  }
  const { toMarkdown, toPage } = await import('./report.mjs')
  const markdown = toMarkdown(result)
  if (options.markdown !== undefined) writeFileSync(options.markdown, markdown)
  if (options.html !== undefined) writeFileSync(options.html, toPage(result))
  const document = `${JSON.stringify(result)}\n`
  if (options['json-file'] !== undefined) writeFileSync(options['json-file'], document)
  process.stdout.write(options.json ? document : markdown)
}

try {
  await main()
} catch (error) {
  reportFailure(error)
  process.exitCode = 1
}
