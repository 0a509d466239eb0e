// Packs the contract suites with what they need into a folder that runs on a machine with nothing but
// a GPU and its driver, by gpu-check.sh, and a .tar.xz of it:
//   node scripts/gpu-check/pack.mjs [folder]
// The CUDA backend is built before; the emulated one goes along if it is there.
import { spawnSync } from 'node:child_process'
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { transformFileSync } from '@swc/core'
import deviceSuites from '../../test/support/device-suites.cjs'
import { reportFailure, say } from '../progress.mjs'
import { root, setup } from '../setup.mjs'

/** Compiles the TypeScript below `from` that `wanted` takes, by its name there. */
function compile(from, to, wanted = () => true) {
  for (const name of readdirSync(from, { recursive: true })) {
    if (!name.endsWith('.ts') || !wanted(name)) continue
    const { code } = transformFileSync(path.join(from, name), {
      jsc: { parser: { syntax: 'typescript' }, target: 'es2022' },
      module: { type: 'commonjs' },
      sourceMaps: 'inline',
    })
    const file = path.join(to, name.replace(/\.ts$/, '.js'))
    mkdirSync(path.dirname(file), { recursive: true })
    writeFileSync(file, code)
  }
}

/** Copies packages and what they depend on, without their types and maps. */
function copyPackages(names, to) {
  const copied = new Set()
  // A package lies beside its user's, or in a folder above.
  const locate = (name, from) => {
    for (let at = from; ; at = path.dirname(at)) {
      const found = path.join(at, 'node_modules', name)
      if (existsSync(found)) return found
      if (at === root) throw new Error(`${name}, which ${from} needs, is not installed`)
    }
  }
  const copy = (name, from) => {
    const source = locate(name, from)
    if (copied.has(source)) return
    copied.add(source)
    cpSync(source, path.join(to, path.relative(root, source)), {
      recursive: true,
      dereference: true,
      filter: (file) => !/(\.d\.[mc]?ts|\.map|\.md)$/.test(file),
    })
    const { dependencies = {} } = JSON.parse(
      readFileSync(path.join(source, 'package.json'), 'utf8'),
    )
    for (const dependency of Object.keys(dependencies)) copy(dependency, source)
  }
  for (const name of names) copy(name, root)
}

function pack(folder) {
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder, { recursive: true })
  for (const name of ['gpu-check.sh', 'run.cjs']) {
    cpSync(path.join(root, 'scripts', 'gpu-check', name), path.join(folder, name))
  }
  const { version } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))
  const facts = { type: 'commonjs', version }
  writeFileSync(path.join(folder, 'package.json'), `${JSON.stringify(facts)}\n`)
  compile(path.join(root, 'lib'), path.join(folder, 'lib'))
  const isWanted = (name) =>
    !name.endsWith('.test.ts') || deviceSuites.some((suite) => name.startsWith(suite))
  compile(path.join(root, 'test'), path.join(folder, 'test'), isWanted)
  for (const name of ['test/fixtures/prompts.jsonl', 'models/line-retrieval']) {
    cpSync(path.join(root, name), path.join(folder, name), { recursive: true })
  }
  for (const file of ['zipcache.node', 'zipcache-cuda.so', 'zipcache-cuda-emu.so']) {
    const built = path.join(root, 'build', 'Release', file)
    if (existsSync(built)) cpSync(built, path.join(folder, 'build', 'Release', file))
  }
  const { dependencies } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))
  copyPackages([...Object.keys(dependencies), 'expect', 'jest-each', 'fast-check'], folder)
}

const [target, ...options] = process.argv.slice(2)
const folder = path.resolve(target ?? path.join(root, 'build', 'gpu-check'))
try {
  // `--as-built` packs what lies in build/Release, for a check of the packing itself.
  if (!options.includes('--as-built')) await setup({ cuda: true, ts: false })
  pack(folder)
  const archive = `${folder}.tar.xz`
  const tar = ['-C', path.dirname(folder), '-cJf', archive, path.basename(folder)]
  const { status } = spawnSync('tar', tar, { stdio: 'inherit' })
  if (status !== 0) throw new Error(`tar ended with ${status}`)
  say(`${archive}: ${(statSync(archive).size / 1e6).toFixed(1)} MB`)
} catch (error) {
  reportFailure(error)
  process.exitCode = 1
}
