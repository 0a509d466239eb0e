import { spawn } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { delimiter, dirname, join } from 'node:path'
import type { Command } from 'commander'
import { ZipCacheError } from '../errors.js'
import { integer, kPackageRoot } from './options.js'
import { say } from './output.js'

interface BuildOptions {
  readonly cuda?: boolean
  readonly cudaArchitectures?: string
  readonly jobs?: number
}

/** What building needs beside CMake and a compiler: installed when it is asked for. */
type Tools = Readonly<Record<string, string>>

/**
 * `zipcache build`: compiles the addon from the sources in the package, for systems that there are no
 * binaries for. What is built in place is loaded before any other.
 */
export function addBuildCommand(program: Command, signal: AbortSignal): void {
  program
    .command('build')
    .description(
      'compile the native addon for this system, from the sources in the package; needs CMake 3.20 ' +
        'and a C++20 compiler (GCC 11, Clang 14 or newer)',
    )
    .option('--cuda', 'the CUDA backend too, which needs nvcc 13 and takes many minutes')
    .option('--cuda-architectures <list>', "GPUs to build for, as CMake names them: '86;120'")
    .option('--jobs <n>', 'files to compile at a time', integer(1, 1024))
    .action(async (options: BuildOptions) => {
      await build(options, signal)
    })
}

async function build(options: BuildOptions, signal: AbortSignal): Promise<void> {
  await expectProgram('cmake', ['--version'], 'CMake 3.20 or newer', signal)
  const modules = await findTools(signal)
  const cmakeJs = join(modules, 'cmake-js', 'bin', 'cmake-js')
  // CMakeLists.txt asks `node` where the headers lie: this one, and there.
  const env = {
    ...process.env,
    NODE_PATH: [modules, process.env.NODE_PATH].filter(Boolean).join(delimiter),
    PATH: [dirname(process.execPath), process.env.PATH].filter(Boolean).join(delimiter),
  }
  const settings = { ZC_CUDA: options.cuda ? 'ON' : 'OFF' } as Record<string, string>
  if (options.cudaArchitectures) settings.ZC_CUDA_ARCHITECTURES = options.cudaArchitectures
  const defines = Object.entries(settings).map(([name, value]) => `--CD${name}=${value}`)
  const run = (what: string, ...args: string[]) =>
    runProgram(what, process.execPath, [cmakeJs, ...args, '--directory', kPackageRoot], {
      env,
      signal,
    })
  // Another compiler or folder cannot be changed in what was configured before.
  rmSync(join(kPackageRoot, 'build', 'CMakeCache.txt'), { force: true })
  await run('configuring', 'configure', ...defines)
  const jobs = options.jobs ? ['--parallel', `${options.jobs}`] : []
  for (const target of options.cuda ? ['zipcache', 'zipcache-cuda'] : ['zipcache']) {
    await run(`building ${target}`, 'build', '--target', target, ...jobs)
    const suffix = target === 'zipcache' ? 'node' : 'so'
    const file = join(kPackageRoot, 'build', 'Release', `${target}.${suffix}`)
    if (!existsSync(file)) throw failed(`the build did not write ${file}`)
    say(`built ${file}`)
  }
}

/** The folder of node_modules where the tools are, after they were installed where they were not. */
async function findTools(signal: AbortSignal): Promise<string> {
  const tools = wantedTools()
  const inClone = join(kPackageRoot, 'node_modules')
  if (Object.keys(tools).every((name) => existsSync(join(inClone, name)))) return inClone
  const folder = join(kPackageRoot, 'build', 'tools')
  const modules = join(folder, 'node_modules')
  if (Object.keys(tools).every((name) => existsSync(join(modules, name)))) return modules
  try {
    mkdirSync(folder, { recursive: true })
    // A project of its own, for npm to install into. With --prefix npm would read another global
    // configuration than the user's, and know neither his registry nor his certificates.
    writeFileSync(join(folder, 'package.json'), '{ "private": true }\n')
  } catch (cause) {
    throw failed(`${kPackageRoot} cannot be written`, cause)
  }
  const packages = Object.entries(tools).map(([name, range]) => `${name}@${range}`)
  const quiet = ['--no-save', '--ignore-scripts', '--no-audit', '--no-fund']
  const npm = process.env.npm_execpath
  const args = ['install', ...quiet, ...packages]
  const what = `installing ${Object.keys(tools).join(', ')}`
  const how = { cwd: folder, signal }
  // Under npx, npm says where it is.
  if (npm?.endsWith('npm-cli.js')) await runProgram(what, process.execPath, [npm, ...args], how)
  else await runProgram(what, 'npm', args, how)
  return modules
}

function wantedTools(): Tools {
  const text = readFileSync(join(kPackageRoot, 'package.json'), 'utf8')
  const { buildDependencies, devDependencies } = JSON.parse(text) as {
    buildDependencies?: Tools
    devDependencies?: Tools
  }
  if (buildDependencies) return buildDependencies
  const names = ['cmake-js', 'node-addon-api', 'node-api-headers']
  return Object.fromEntries(names.map((name) => [name, devDependencies?.[name] ?? '*']))
}

async function expectProgram(
  command: string,
  args: string[],
  what: string,
  signal: AbortSignal,
): Promise<void> {
  try {
    await collect(command, args, { signal })
  } catch (cause) {
    signal.throwIfAborted()
    throw failed(`${command} was not found: install ${what} and a C++20 compiler`, cause)
  }
}

/** Where a program runs; where it is silent, as this process does. */
interface Running {
  readonly env?: NodeJS.ProcessEnv
  readonly cwd?: string
  readonly signal: AbortSignal
}

/** Runs a program to its end; its output is shown only if it fails. */
async function runProgram(
  what: string,
  command: string,
  args: string[],
  how: Running,
): Promise<void> {
  say(`${what} ...`)
  try {
    await collect(command, args, how)
  } catch (cause) {
    how.signal.throwIfAborted()
    const { output = '', message } = cause as Error & { output?: string }
    if (output) say(output)
    throw failed(`${what} failed (${message}); the lines above say why`, cause)
  }
}

async function collect(command: string, args: string[], how: Running): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { ...how, stdio: ['ignore', 'pipe', 'pipe'] })
    let output = ''
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8').on('data', (chunk: string) => {
        output += chunk
      })
    }
    child.on('error', reject)
    child.on('close', (code, killer) => {
      if (code === 0) resolve()
      else reject(Object.assign(new Error(killer ?? `exit code ${code}`), { output }))
    })
  })
}

function failed(reason: string, cause?: unknown): ZipCacheError {
  return new ZipCacheError('ERR_ZC_NATIVE', `build: ${reason}`, { cause })
}
