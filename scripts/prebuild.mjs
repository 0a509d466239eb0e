// Builds and packs what is published, into dist-packages/: `zipcache`, the binaries of every platform
// that this machine has a compiler for, and the shipped model.
//   node scripts/prebuild.mjs [--without-cuda]
// ZC_CUDA_ARCHITECTURES names other GPUs than those that are released; minutes instead of an hour.
import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import path from 'node:path'
import { inspectBinary } from './prebuild/binary.mjs'
import { makeGlibcStubs } from './prebuild/glibc-stubs.mjs'
import { packages, platforms } from './prebuild/packages.mjs'
import { reportFailure, runQuietly, ScriptError, say } from './progress.mjs'
import { root, setup } from './setup.mjs'
import { requireToolchain } from './toolchain.mjs'

/** The oldest glibc of Node's own binaries, since Node 18. lib/native/platform.ts says it to users. */
export const newestGlibc = '2.28'
/** Machine code for every GPU from Ampere to Blackwell, and PTX for what comes after them. */
const releasedArchitectures = '80-real;86-real;89-real;90a-real;100-real;120'

const at = (...names) => path.join(root, ...names)
const work = at('build', 'prebuild')
const output = at('dist-packages')

/** The compiler for a platform; null: this machine has none for that one, which is not its own. */
async function compilerFor(platform) {
  if (platform.name === `${process.platform}-${process.arch}`) return requireToolchain()
  const found = platform.compiler && spawnSync(platform.compiler, ['--version']).status === 0
  if (found) return platform.compiler
  const needs = platform.compiler
    ? `needs ${platform.compiler} (Debian: ${platform.debian})`
    : 'is built on such a system alone'
  say(`${platform.name} is left out: it ${needs}`)
  return null
}

/** Builds the targets of a platform; the folders of the binaries by target. */
async function buildBinaries(platform, compiler, withCuda) {
  const own = path.join(work, platform.name)
  const stubs = path.join(own, 'glibc')
  makeGlibcStubs({ folder: stubs, newest: newestGlibc, compiler })
  const folders = {}
  for (const target of withCuda ? ['zipcache', 'zipcache-cuda'] : ['zipcache']) {
    const folder = path.join(own, target)
    const isCuda = target === 'zipcache-cuda'
    const settings = {
      CMAKE_BUILD_TYPE: 'Release',
      CMAKE_CXX_COMPILER: compiler,
      ...(compiler === platform.compiler && {
        CMAKE_SYSTEM_NAME: 'Linux',
        CMAKE_SYSTEM_PROCESSOR: platform.processor,
      }),
      ZC_GLIBC_STUBS: stubs,
      ZC_CUDA: isCuda ? 'ON' : 'OFF',
      ...(isCuda && {
        ZC_CUDA_ARCHITECTURES: process.env.ZC_CUDA_ARCHITECTURES ?? releasedArchitectures,
        ZC_CUBINS: path.join(folder, 'cubins'),
      }),
    }
    const configure = ['-S', root, '-B', folder]
    for (const [name, value] of Object.entries(settings)) configure.push(`-D${name}=${value}`)
    const what = `${target} for ${platform.name}`
    await runQuietly(`configuring ${what}`, 'cmake', configure, { cwd: root })
    const build = ['--build', folder, '--target', target, '--parallel', `${availableParallelism()}`]
    await runQuietly(`building ${what}`, 'cmake', build, { cwd: root })
    folders[target] = path.join(folder, 'Release')
  }
  return folders
}

/** Fills a package's folder and returns it. */
function stage({ manifest, files }, folders) {
  const folder = path.join(work, 'packages', manifest.name)
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder, { recursive: true })
  for (const { from, to, filter } of files) {
    const base = path.resolve(
      root,
      from.replace(/^\$(zipcache[\w-]*)/, (_, name) => folders[name]),
    )
    if (!existsSync(base)) throw new ScriptError(`${manifest.name}: there is no ${base}`)
    const target = path.join(folder, to)
    mkdirSync(path.dirname(target), { recursive: true })
    cpSync(base, target, { recursive: true, filter: filter ?? (() => true) })
  }
  writeFileSync(path.join(folder, 'package.json'), `${JSON.stringify(manifest, null, 2)}\n`)
  return folder
}

function check({ manifest, binary }, folder) {
  if (!binary) return
  const file = path.join(folder, binary.file)
  const rules = { ...binary, newestGlibc, forbidden: [root] }
  const { problems, sizeBytes, glibc } = inspectBinary(file, rules)
  const size = `${(sizeBytes / 1e6).toFixed(1)} MB`
  if (problems.length > 0) {
    throw new ScriptError(`${manifest.name}: ${binary.file} (${size})\n  ${problems.join('\n  ')}`)
  }
  say(`${binary.file}: ${size}, glibc ${glibc} or newer`)
}

function pack(folder) {
  const npm = process.env.npm_execpath ? [process.execPath, process.env.npm_execpath] : ['npm']
  const args = ['pack', '--json', '--ignore-scripts', '--pack-destination', output]
  const [command, ...first] = npm
  const { status, stdout, stderr } = spawnSync(command, [...first, ...args], {
    cwd: folder,
    encoding: 'utf8',
  })
  if (status !== 0) throw new ScriptError(`npm pack failed in ${folder}:\n${stderr}`)
  const [{ filename, size, unpackedSize }] = JSON.parse(stdout)
  const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`
  say(`${filename}: ${megabytes(size)}, unpacked ${megabytes(unpackedSize)}`)
}

/** @param {{ cuda: boolean }} options whether the CUDA backend is built and packed too */
async function prebuild({ cuda }) {
  await setup({ native: false })
  const binaries = new Map() // platform -> the folders of its targets
  for (const platform of platforms) {
    const compiler = await compilerFor(platform)
    if (!compiler) continue
    binaries.set(platform, await buildBinaries(platform, compiler, cuda && platform.hasCuda))
  }
  rmSync(output, { recursive: true, force: true })
  mkdirSync(output)
  for (const one of packages(JSON.parse(readFileSync(at('package.json'), 'utf8')))) {
    if ((one.needsCuda && !cuda) || (one.platform && !binaries.has(one.platform))) continue
    const folder = stage(one, binaries.get(one.platform))
    check(one, folder)
    pack(folder)
  }
}

try {
  await prebuild({ cuda: !process.argv.includes('--without-cuda') })
} catch (error) {
  reportFailure(error)
  process.exitCode = 1
}
