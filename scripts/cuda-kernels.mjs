// What nvcc makes of the CUDA kernels: registers, spills, stack, shared memory, instructions and
// occupancy of every kernel on every architecture, written to docs/results/kernels.md.
//   node scripts/cuda-kernels.mjs            compiles for the architectures of a release; writes the page
//   node scripts/cuda-kernels.mjs 86 89      compiles for these; the page is written of all compiled ones
//   node scripts/cuda-kernels.mjs --prebuilt compiles nothing: reads what `npm run prebuilds` kept
// Device code alone, a file and an architecture at a time, by the commands of the CMake build. What
// was compiled from the same sources before (build/kernels) is not compiled again. The last line of
// stdout is `N passed, N failed`: pairs of a file and an architecture, failed where nvcc or ptxas
// warns, spills or uses a stack.
import { spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import path from 'node:path'
import { canDisassemble, decodeLoops } from './cuda-kernels/decode-loop.mjs'
import { reportFailure, runQuietly, ScriptError, say } from './progress.mjs'
import { root } from './setup.mjs'

const releaseArchitectures = ['80', '86', '89', '90a', '100', '120']
const folder = path.join(root, 'build', 'kernels')
const prebuilt = path.join(root, 'build', 'prebuild', 'linux-x64', 'zipcache-cuda', 'cubins')
const page = path.join(root, 'docs', 'results', 'kernels.md')

/**
 * A multiprocessor, by the CUDA programming guide's table of compute capabilities: warps, blocks and
 * KB of shared memory that it holds. Everywhere 65536 registers, given to a warp in 256s, and 1 KB of
 * shared memory that a block loses.
 */
const multiprocessors = {
  80: { warps: 64, blocks: 32, sharedKb: 164 },
  86: { warps: 48, blocks: 16, sharedKb: 100 },
  89: { warps: 48, blocks: 24, sharedKb: 100 },
  '90a': { warps: 64, blocks: 32, sharedKb: 228 },
  100: { warps: 64, blocks: 32, sharedKb: 228 },
  120: { warps: 48, blocks: 24, sharedKb: 100 },
}

/** A form of another architecture traps, and is shorter than this. */
const kEmptyKernel = 32
const disassembles = canDisassemble()

/** Dynamic shared memory in bytes, by the launchers' formulas, of kernels whose occupancy it decides. */
const dynamicBytes = [
  [/mixed_attention_kernel<(\d+), (true|false), (true|false)>/, mixedAttentionBytes],
  [
    /flash_attention_kernel<.*FlashShape<(\d+), (\d+), (\d+), (\d+), (\d+)>/,
    (width, warps, tiles, keys, parts) => ((16 * tiles * warps) / parts + 2 * keys) * width * 2,
  ],
  [
    /flash_attention_hopper_kernel<.*HopperShape<(\d+), (\d+), (\d+)>/,
    (width, consumers, keys) => (64 * consumers + 4 * keys) * width * 2 + 512,
  ],
  [/probe_attention_kernel<.*, (\d+)>/, (width) => (width > 256 ? 1 : 2) * 64 * (width * 2 + 12)],
  [/probe_attention_hopper_kernel<.*, (\d+)>/, (width) => 2 * 64 * (width * 2 + 12)],
  [/linear_tiles_kernel<.*, (\d+)>/, (rows) => (rows === 128 ? 3 : 4) * (128 + rows) * 128],
  [
    /linear_hopper_kernel<.*HopperTile<(\d+)>/,
    (columns) => (columns === 256 ? 3 * 49168 + 2 * 32768 : 5 * 32784 + 2 * 18432),
  ],
]

/** BlockShape of csrc/cuda/mixed_attention/layout.h. */
function mixedAttentionBytes(dim, bulk, littleMemory) {
  const large = dim === 256
  const consumers = large ? (littleMemory ? 4 : bulk ? 6 : 5) : 6
  const stages = large ? (littleMemory ? 2 : bulk ? 4 : 3) : dim > 64 && littleMemory ? 3 : 4
  return consumers * stages * (32 * dim + 304) + (16 + 2 * consumers) * dim + 1616
}

function parseArguments(args) {
  for (const arg of args)
    if (!multiprocessors[arg]) {
      const known = Object.keys(multiprocessors).join(', ')
      throw new ScriptError(`architecture '${arg}' is none of ${known}`)
    }
  return args.length > 0 ? args : releaseArchitectures
}

/** The commands of the CMake build, as lists of words; file: relative to the root. */
async function compileCommands() {
  const settings = [
    '-DZC_CUDA=ON',
    '-DZC_CUDA_EMU=OFF',
    '-DZC_WERROR=OFF',
    '-DCMAKE_BUILD_TYPE=Release',
  ]
  const args = ['-S', root, '-B', folder, ...settings, '-DCMAKE_EXPORT_COMPILE_COMMANDS=ON']
  await runQuietly('configuring', 'cmake', args, {
    nextStep: 'this needs nvcc: install the CUDA toolkit, or name it by CUDACXX=/path/to/nvcc.',
  })
  const commands = JSON.parse(readFileSync(path.join(folder, 'compile_commands.json'), 'utf8'))
  return commands
    .filter(({ file }) => file.endsWith('.cu') && file.includes(`${path.sep}kernels${path.sep}`))
    .map(({ file, command, directory }) => ({
      file: path.relative(root, file),
      words: command.split(/\s+/),
      directory,
    }))
}

/** The command for one architecture's machine code, ptxas saying what each kernel takes. */
function deviceCommand(words, architecture, cubin) {
  const compiler = words.findIndex((word) => path.basename(word) === 'nvcc')
  if (compiler < 0) throw new ScriptError(`no nvcc in the command: ${words.join(' ')}`)
  const dropsNext = new Set(['-o', '-MF', '-MT', '-x'])
  const kept = []
  for (let i = compiler + 1; i < words.length; ++i) {
    const word = words[i].replaceAll('\\"', '"')
    if (dropsNext.has(word)) i += 1
    else if (!/^(--generate-code=|--threads=|-MD$|-c$|-rdc=)/.test(word)) kept.push(word)
  }
  const source = kept.pop()
  const own = ['-cubin', `-arch=sm_${architecture}`, '-o', cubin, source]
  return [words[compiler], ...kept, ...own]
}

/** Sections of a cubin, an ELF file, by name: offset, size, and the number of the section it links to. */
function sectionsOf(elf) {
  const at = Number(elf.readBigUInt64LE(40))
  const entryBytes = elf.readUInt16LE(58)
  const header = (i) => {
    const entry = elf.subarray(at + i * entryBytes)
    return {
      name: entry.readUInt32LE(0),
      offset: Number(entry.readBigUInt64LE(24)),
      size: Number(entry.readBigUInt64LE(32)),
      link: entry.readUInt32LE(40),
    }
  }
  const all = Array.from({ length: elf.readUInt16LE(60) }, (_, i) => header(i))
  const names = all[elf.readUInt16LE(62)].offset
  const sections = new Map(all.map((one) => [textAt(elf, names + one.name), one]))
  return { sections, textsOf: (section) => all[section.link].offset }
}

const textAt = (elf, offset) => elf.toString('latin1', offset, elf.indexOf(0, offset))

/** Attributes of a section .nv.info that have values: { attribute, values }. */
function* attributesOf(elf, { offset, size }) {
  for (let at = offset; at < offset + size; ) {
    const [form, attribute] = elf.subarray(at)
    const length = form === 4 ? elf.readUInt16LE(at + 2) : 0
    const values = Array.from({ length: length >> 2 }, (_, i) => elf.readUInt32LE(at + 4 + 4 * i))
    if (form === 4) yield { attribute, values }
    at += 4 + length
  }
}

// Attributes of .nv.info, whose first value is a symbol's number, and of .nv.info.<kernel>.
const kFrameSize = 0x11
const kRegisters = 0x2f
const kMaxThreads = 0x05

/** What a cubin says of each kernel. */
function kernelsOf(cubin) {
  const elf = readFileSync(cubin)
  const { sections, textsOf } = sectionsOf(elf)
  const symbols = sections.get('.symtab')
  const nameOf = (i) => textAt(elf, textsOf(symbols) + elf.readUInt32LE(symbols.offset + 24 * i)) // an entry's first word
  const facts = new Map() // attribute -> symbol -> value
  const all = sections.get('.nv.info')
  for (const { attribute, values } of all ? attributesOf(elf, all) : []) {
    if (!facts.has(attribute)) facts.set(attribute, new Map())
    facts.get(attribute).set(nameOf(values[0]), values[1])
  }
  // From Hopper on, of a block: added to what a kernel has of its own.
  const reserved = sections.has('.nv.shared.reserved.0') ? 1024 : 0
  const kernels = []
  for (const [name, code] of sections) {
    const symbol = name.slice('.text.'.length)
    const info = sections.get(`.nv.info.${symbol}`)
    if (!name.startsWith('.text.') || !info) continue // a function that is no kernel
    const limit = [...attributesOf(elf, info)].find(({ attribute }) => attribute === kMaxThreads)
    kernels.push({
      symbol,
      stack: facts.get(kFrameSize)?.get(symbol) ?? 0,
      registers: facts.get(kRegisters)?.get(symbol),
      sharedBytes: Math.max(0, (sections.get(`.nv.shared.${symbol}`)?.size ?? 0) - reserved),
      instructions: code.size / 16,
      loops: loopsOf(cubin, symbol, code.size / 16),
      threads: limit ? limit.values.reduce((n, values) => n * values, 1) : null,
    })
  }
  return kernels
}

/** The decode loop's counts, of the kernel that has one; null where nothing can read machine code. */
function loopsOf(cubin, symbol, instructions) {
  const hasLoop = symbol.includes('mixed_attention_kernelILi128E')
  return disassembles && hasLoop && instructions >= kEmptyKernel ? decodeLoops(cubin, symbol) : null
}

async function runNvcc([command, ...args], cwd) {
  let output = ''
  const child = spawn(command, args, { cwd })
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (chunk) => {
      output += chunk
    })
  const code = await new Promise((resolve) => {
    child.on('error', (error) => resolve(error.message))
    child.on('close', resolve)
  })
  return { output, code }
}

/** Compiles one file for one architecture, unless that was done. */
async function measure({ file, words, directory }, architecture, hash) {
  const name = `${path.basename(file, '.cu')}.${architecture}`
  const stored = path.join(folder, `${name}.json`)
  if (existsSync(stored)) {
    const before = JSON.parse(readFileSync(stored, 'utf8'))
    if (before.hash === hash) return before
  }
  const cubin = path.join(folder, `${name}.cubin`)
  const { output, code } = await runNvcc(deviceCommand(words, architecture, cubin), directory)
  if (code !== 0)
    return { file, architecture, problems: [`nvcc ended with ${code}`, output], kernels: [] }
  const problems = output.split('\n').filter((line) => /warning|error/i.test(line))
  const result = { hash, file, architecture, problems, kernels: kernelsOf(cubin) }
  rmSync(cubin)
  writeFileSync(stored, JSON.stringify(result))
  say(`${file} for sm_${architecture}: ${result.kernels.length} kernels`)
  return result
}

/** Names what a file's kernels come of: the file, and all headers. */
function sourceHashes(commands) {
  const headers = createHash('sha256')
  const below = (where) =>
    readdirSync(path.join(root, where), { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile() && /\.(h|def)$/.test(entry.name))
      .map((entry) => path.join(entry.parentPath ?? entry.path, entry.name))
      .sort()
  for (const where of ['csrc/core', 'csrc/math', 'csrc/ops', 'csrc/cuda'])
    for (const file of below(where))
      headers.update(file.slice(root.length)).update(readFileSync(file))
  return new Map(
    commands.map(({ file }) => [
      file,
      headers
        .copy()
        .update(readFileSync(path.join(root, file)))
        .update(disassembles ? 'with loops' : '')
        .digest('hex'),
    ]),
  )
}

/** `kernel<arguments>` of a mangled name, without namespaces. */
function readableNames(symbols) {
  const { stdout, status } = spawnSync('c++filt', { input: symbols.join('\n'), encoding: 'utf8' })
  if (status !== 0) return symbols
  return stdout.split('\n').map((line) =>
    line
      .replace(
        /\(anonymous namespace\)::|zc::cuda::|zc::|\(__?_?GLOBAL__N_[^)]*\)::|_GLOBAL__N__\w+::/g,
        '',
      )
      .replace(/^void /, '')
      .replace(/\(.*\)$/, ''),
  )
}

/** Warps of this kernel that a multiprocessor holds; 0 when it does not hold a block. */
function residentWarps(kernel, name, architecture) {
  const sm = multiprocessors[architecture]
  const warps = Math.ceil((kernel.threads ?? 1024) / 32)
  const perWarp = Math.ceil((kernel.registers * 32) / 256) * 256
  let dynamic = 0
  for (const [pattern, bytes] of dynamicBytes) {
    const match = pattern.exec(name)
    if (match) dynamic = bytes(...match.slice(1).map((word) => JSON.parse(word)))
  }
  const shared = kernel.sharedBytes + dynamic + 1024
  const blocks = Math.min(
    sm.blocks,
    Math.floor(sm.warps / warps),
    Math.floor(Math.floor(65536 / perWarp) / warps),
    Math.floor((sm.sharedKb * 1024) / shared),
  )
  return { warps: blocks * warps, share: (blocks * warps) / sm.warps, dynamic }
}

function table(header, rows) {
  const line = (cells) => `| ${cells.join(' | ')} |`
  return [
    line(header),
    line(header.map((_, i) => (i === 0 ? '---' : '---:'))),
    ...rows.map(line),
  ].join('\n')
}

/** Instructions a code of the decode loop, where they were counted. */
function loopText(decode) {
  const rows = decode.flatMap(([name, kernels]) =>
    Object.entries(kernels).flatMap(([architecture, { loops }]) =>
      (loops ?? []).map(({ formats, instructions, codes }) => [
        `\`${name}\``,
        `sm_${architecture}`,
        formats,
        instructions,
        codes,
        (instructions / codes).toFixed(2),
      ]),
    ),
  )
  if (rows.length === 0) {
    return `Counting slots takes a disassembler (\`cuobjdump\`, or the one that CUOBJDUMP names), which was not there; the table has the size of
the whole kernel, all formats of K and V with it.`
  }
  return `Of a unit of 64 tokens in the steady state: four times the shortest way round a consumer's loop over pages, through the products of K and of V, and a sixth of the producer's,
which looks up and copies a unit for each of six consumers (pages of a slot lying one after another). Not counted is what a consumer does once a unit, waiting for it and freeing its slots.

${table(['kernel', 'architecture', 'cache', 'instructions of a unit', 'codes of a lane', 'instructions a code'], rows)}`
}

function compose(results, version) {
  const architectures = releaseArchitectures.filter((a) =>
    results.some((r) => r.architecture === a),
  )
  const rows = new Map() // readable name -> architecture -> kernel
  for (const { architecture, kernels } of results) {
    const names = readableNames(kernels.map((kernel) => kernel.symbol))
    kernels.forEach((kernel, i) => {
      if (kernel.instructions < kEmptyKernel) return
      if (!rows.has(names[i])) rows.set(names[i], {})
      rows.get(names[i])[architecture] = kernel
    })
  }
  const sorted = [...rows].sort(([a], [b]) => (a < b ? -1 : 1))
  const cell = (name, kernels, architecture) => {
    const kernel = kernels[architecture]
    if (!kernel) return ''
    const { warps, share } = residentWarps(kernel, name, architecture)
    return warps === 0
      ? `${kernel.registers}, none`
      : `${kernel.registers}, ${warps} (${Math.round(100 * share)}%)`
  }
  const any = (kernels) => Object.values(kernels)[0]
  const decode = sorted.filter(([name]) => name.startsWith('mixed_attention_kernel<128'))
  const guilty = results.flatMap(({ file, architecture, kernels }) =>
    kernels
      .filter((kernel) => kernel.stack > 0)
      .map((kernel) => `- ${file}, sm_${architecture}: ${kernel.stack} bytes of stack`),
  )
  return `# What nvcc makes of the kernels

Written by \`npm run report:cuda-kernels\`: ${version}, device code alone, for ${architectures.map((a) => `sm_${a}`).join(', ')}.
Nothing here was run on a GPU.

Registers of a thread, and warps that a multiprocessor holds at once (their share of what it could hold: occupancy), of
${rows.size} kernels. Threads are those of \`__launch_bounds__\`, 1024 where a kernel has none. Dynamic shared memory counts where a
number stands under "dynamic"; other kernels take none, or little.

${guilty.length === 0 ? 'No kernel spills a register or has a stack frame on any of these architectures.' : `These spill, or have a stack frame:\n\n${guilty.join('\n')}`}

## The decode loop beside its target

The design asks of mixedAttention at head_dim 128: no spills, two blocks of eight warps on a multiprocessor, which leaves a
thread 128 registers, and 1.1 to 1.3 issue slots a code of the inner loop.

${table(
  [
    'kernel',
    'architecture',
    'registers',
    'warps',
    'static shared, bytes',
    'dynamic, bytes',
    'instructions',
  ],
  decode.flatMap(([name, kernels]) =>
    architectures
      .filter((a) => kernels[a])
      .map((a) => {
        const { warps, dynamic } = residentWarps(kernels[a], name, a)
        const k = kernels[a]
        return [
          `\`${name}\``,
          `sm_${a}`,
          k.registers,
          warps || 'does not fit',
          k.sharedBytes,
          dynamic,
          k.instructions,
        ]
      }),
  ),
)}

${loopText(decode)}

It has more registers and fewer warps than was asked: two rows of q, each as two float16, and four stages of copies a warp take the place of
the warps that would have hidden latency. What came of it on an H200 is in cuda.md.

## All kernels

Each cell: registers, warps (occupancy).

${table(
  ['kernel', 'threads', 'static shared', 'dynamic', ...architectures.map((a) => `sm_${a}`)],
  sorted.map(([name, kernels]) => {
    const first = any(kernels)
    const { dynamic } = residentWarps(first, name, Object.keys(kernels)[0])
    return [
      `\`${name}\``,
      first.threads ?? '',
      first.sharedBytes || '',
      dynamic || '',
      ...architectures.map((a) => cell(name, kernels, a)),
    ]
  }),
)}
`
}

/** Stored results of these sources. */
function storedResults(hashes) {
  return readdirSync(folder)
    .filter((name) => name.endsWith('.json') && name !== 'compile_commands.json')
    .map((name) => JSON.parse(readFileSync(path.join(folder, name), 'utf8')))
    .filter((result) => result.hash === hashes.get(result.file))
}

/** What the cubins that a build kept say, a file and an architecture each. */
function prebuiltResults() {
  const pattern = /^(\w+)\.compute_(\w+?)(?:\.sm_\w+)?\.cubin$/
  const cubins = existsSync(prebuilt)
    ? readdirSync(prebuilt).filter((name) => pattern.test(name))
    : []
  const results = cubins.flatMap((name) => {
    const [, source, architecture] = pattern.exec(name)
    const file = path.join('csrc', 'cuda', 'kernels', `${source}.cu`)
    if (!existsSync(path.join(root, file))) return [] // of the device
    const kernels = kernelsOf(path.join(prebuilt, name))
    return [{ file, architecture, problems: [], kernels }]
  })
  if (results.length > 0) return results
  throw new ScriptError(`no machine code of kernels in ${prebuilt}`, 'npm run prebuilds')
}

function versionOf(nvcc) {
  const { stdout } = spawnSync(nvcc, ['--version'], { encoding: 'utf8' })
  return `nvcc ${/release [^\n]*V([\d.]+)/.exec(stdout)?.[1] ?? ''}`
}

/** Compiles what is missing; the results asked for, and those of the same sources from before. */
async function compileAll(architectures) {
  mkdirSync(folder, { recursive: true })
  const commands = await compileCommands()
  const hashes = sourceHashes(commands)
  const waiting = architectures.flatMap((a) => commands.map((command) => [command, a]))
  const results = []
  const work = async () => {
    for (let next = waiting.shift(); next; next = waiting.shift())
      results.push(await measure(next[0], next[1], hashes.get(next[0].file)))
  }
  await Promise.all(Array.from({ length: availableParallelism() }, work))
  const nvcc = commands[0].words.find((word) => path.basename(word) === 'nvcc')
  return { results, all: storedResults(hashes), version: versionOf(nvcc) }
}

function readPrebuilt() {
  const results = prebuiltResults()
  const cache = readFileSync(path.join(prebuilt, '..', 'CMakeCache.txt'), 'utf8')
  const nvcc = /^CMAKE_CUDA_COMPILER:\w+=(.*)$/m.exec(cache)?.[1] ?? 'nvcc'
  return { results, all: results, version: versionOf(nvcc) }
}

let counts = { passed: 0, failed: 1 }
try {
  const args = process.argv.slice(2)
  const { results, all, version } =
    args[0] === '--prebuilt' ? readPrebuilt() : await compileAll(parseArguments(args))
  const failed = results.filter(
    ({ problems, kernels }) => problems.length > 0 || kernels.some((kernel) => kernel.stack > 0),
  )
  for (const { file, architecture, problems } of failed)
    say(`FAILED ${file} for sm_${architecture}\n${problems.join('\n')}`)
  counts = { passed: results.length - failed.length, failed: failed.length }
  writeFileSync(page, compose(all, version))
  say(`wrote ${path.relative(root, page)}`)
} catch (error) {
  reportFailure(error)
}
console.log(`${counts.passed} passed, ${counts.failed} failed`)
process.exitCode = counts.failed > 0 ? 1 : 0
