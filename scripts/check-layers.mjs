// Holds lib/ and csrc/ to the layers of CONTRIBUTING.md: calls go down only. Prints each violation
// as file:line.
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = process.argv[2] ?? path.dirname(path.dirname(fileURLToPath(import.meta.url)))
const require = createRequire(import.meta.url)

// A layer is a folder of lib/, or a file directly in it. What each may import beside itself:
const shared = ['errors', 'random']
const belowEngine = ['grammar', 'policy', 'cache', 'model', 'ops', ...shared]
const typescriptLayers = {
  errors: [],
  random: ['errors'],
  // The judge of all backends depends on nothing it judges.
  reference: ['errors'],
  native: ['errors'],
  ops: ['native', ...shared],
  // Which bytes may come next: no tensors, no tokens' meaning.
  grammar: shared,
  // Policies decide from facts: no tensors, no native code.
  policy: shared,
  cache: ['ops', ...shared],
  model: ['ops', 'cache', ...shared],
  engine: belowEngine,
  // What a model's answer to a chat thinks, says and calls.
  chat: ['model', ...shared],
  eval: ['chat', 'engine', ...belowEngine],
  bench: ['engine', 'reference', ...belowEngine],
  server: ['chat', 'engine', ...belowEngine],
  // Looks at how the addon and its plugins were found, which nobody else above ops may.
  doctor: ['bench', 'reference', 'native', ...belowEngine],
  cli: ['bench', 'doctor', 'eval', 'server', 'chat', 'engine', ...belowEngine],
}
// The public surface gathers from everywhere, and nobody below imports it.
typescriptLayers.index = Object.keys(typescriptLayers)

// Layers that import no package, not even one of Node's: they run without file system, clock and
// network.
const pureLayers = ['errors', 'random', 'reference', 'policy', 'grammar']

const nativeLayers = {
  core: [],
  math: ['core'],
  ops: ['core', 'math'],
  cpu: ['core', 'math', 'ops'],
  // csrc/cuda/device/simt.h takes the hardware's instructions or the emulator's.
  cuda: ['core', 'math', 'ops', 'emu'],
  // The CUDA kernels once more, built by a host compiler.
  emu: ['core', 'math', 'ops', 'cuda'],
  // A device is a backend with a queue and memory.
  runtime: ['core', 'math', 'ops', 'cpu'],
  napi: ['core', 'math', 'ops', 'runtime'],
}

// Headers of one framework live in one layer.
const ownedHeaders = [
  { header: /^(napi|node_api|js_native_api|node_api_types|uv|v8|node)\.h$/, owner: 'napi' },
  { header: /^(cuda|cublas|cooperative_groups|nvrtc|mma\.h)/, owner: 'cuda' },
]

const violations = []

function report(file, line, message) {
  violations.push(`${path.relative(root, file)}:${line}: ${message}`)
}

function filesBelow(start, pattern) {
  if (!existsSync(start)) return []
  return readdirSync(start, { recursive: true })
    .filter((name) => pattern.test(name))
    .map((name) => path.join(start, name))
    .sort()
}

/** 'ops' for lib/ops/quantize.ts, 'errors' for lib/errors.ts, undefined outside of base. */
function layerOf(base, file) {
  const [first] = path.relative(base, file).split(path.sep)
  return first === '..' ? undefined : first.replace(/\.[^.]*$/, '')
}

function checkTypeScript() {
  const ts = require('typescript')
  const lib = path.join(root, 'lib')
  for (const file of filesBelow(lib, /\.ts$/)) {
    const layer = layerOf(lib, file)
    const allowed = typescriptLayers[layer]
    if (!allowed) {
      report(file, 1, `lib/${layer} is not a layer known to scripts/check-layers.mjs`)
      continue
    }
    const text = readFileSync(file, 'utf8')
    for (const { fileName: specifier, pos } of ts.preProcessFile(text, true, true).importedFiles) {
      const line = text.slice(0, pos).split('\n').length
      if (!specifier.startsWith('.')) {
        if (pureLayers.includes(layer)) {
          report(file, line, `lib/${layer} imports no package, but here '${specifier}'`)
        }
        continue
      }
      // The version stands there, and nowhere else.
      if (specifier.endsWith('/package.json')) continue
      const target = layerOf(lib, path.resolve(path.dirname(file), specifier))
      if (target === undefined) {
        report(file, line, `'${specifier}' is outside of lib/`)
      } else if (target !== layer && !allowed.includes(target)) {
        report(file, line, `lib/${layer} must not import lib/${target} ('${specifier}')`)
      }
    }
  }
}

function checkNative() {
  const csrc = path.join(root, 'csrc')
  for (const file of filesBelow(csrc, /\.(h|cc|cu|cuh)$/)) {
    const layer = layerOf(csrc, file)
    const allowed = nativeLayers[layer]
    if (!allowed) {
      report(file, 1, `csrc/${layer} is not a layer known to scripts/check-layers.mjs`)
      continue
    }
    for (const [index, text] of readFileSync(file, 'utf8').split('\n').entries()) {
      const [, included] = /^\s*#\s*include\s*[<"]([^>"]+)[>"]/.exec(text) ?? []
      if (included === undefined) continue
      const line = index + 1
      const owner = ownedHeaders.find(({ header }) => header.test(included))?.owner
      if (owner && owner !== layer) {
        report(file, line, `${included} is included under csrc/${owner} alone`)
      }
      // As the compiler looks: beside the including file, then from the root ("csrc/core/error.h").
      const places = [path.resolve(path.dirname(file), included), path.join(root, included)]
      const found = places.find((place) => existsSync(place))
      if (!found) continue // a header of the system or of a package
      const target = layerOf(csrc, found)
      if (target === undefined) {
        report(file, line, `${included} is outside of csrc/`)
      } else if (target !== layer && !allowed.includes(target)) {
        report(file, line, `csrc/${layer} must not include csrc/${target} (${included})`)
      }
    }
  }
}

checkTypeScript()
checkNative()
for (const violation of violations) console.error(violation)
if (violations.length > 0) {
  console.error(`${violations.length} layer violation${violations.length > 1 ? 's' : ''}`)
  process.exitCode = 1
}
