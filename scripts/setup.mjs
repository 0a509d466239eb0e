// Brings a clone to where it can run: npm packages, native addon, compiled TypeScript. `npm run
// demo` and `npm test` begin here. Plain Node without dependencies, since it runs before anything
// is installed. Each step is skipped when its inputs are the same.
//   node scripts/setup.mjs           npm packages, the addon, TypeScript
//   node scripts/setup.mjs native    npm packages, the addon, and the emulated CUDA backend, for tests
//   node scripts/setup.mjs cuda      npm packages, the addon, and the CUDA backend, by nvcc
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import path from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { reportFailure, runQuietly, ScriptError, say } from './progress.mjs'
import { requireToolchain } from './toolchain.mjs'

export const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)))
const at = (...names) => path.join(root, ...names)
const readJson = (file) => JSON.parse(readFileSync(file, 'utf8'))

/** Every file below a path, sorted, so that a hash over them is stable. */
function filesBelow(start) {
  if (!existsSync(start)) return []
  return readdirSync(start, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.join(entry.parentPath ?? entry.path, entry.name))
    .sort()
}

/** One hash over the names and contents of files, and over facts that are not files. */
function hashInputs(files, facts) {
  const hash = createHash('sha256').update(JSON.stringify(facts))
  for (const file of files) {
    hash.update(`\0${path.relative(root, file)}\0`).update(readFileSync(file))
  }
  return hash.digest('hex')
}

/** Versions as locked: known before anything is installed. */
function lockedVersions(...names) {
  const { packages } = readJson(at('package-lock.json'))
  return names.map((name) => packages[`node_modules/${name}`].version)
}

function requireNode() {
  const minimum = readJson(at('package.json')).engines.node.replace('>=', '')
  const isOlder = minimum.localeCompare(process.versions.node, 'en', { numeric: true }) > 0
  if (isOlder) {
    throw new ScriptError(
      `Node is ${process.versions.node}, expected ${minimum} or newer`,
      'install a current Node from https://nodejs.org, and run this command again.',
    )
  }
}

/**
 * Whether node_modules holds what the lock file asks for. npm writes what it installed to
 * node_modules/.package-lock.json, whoever called it, so that a person's own `npm install` counts
 * too. Optional packages are those of other platforms.
 */
function packagesAreCurrent() {
  const installedFile = at('node_modules', '.package-lock.json')
  if (!existsSync(installedFile)) return false
  const installed = readJson(installedFile).packages
  return Object.entries(readJson(at('package-lock.json')).packages).every(([where, locked]) => {
    if (where === '') return true
    const there = installed[where]
    if (!there) return locked.optional === true
    return there.version === locked.version && there.integrity === locked.integrity
  })
}

async function installPackages() {
  // npm tells its scripts where it lives; without that (node scripts/setup.mjs) it is found on the
  // PATH.
  const npmScript = process.env.npm_execpath?.endsWith('npm-cli.js')
    ? [process.env.npm_execpath]
    : null
  const [npm, ...npmArgs] = npmScript ? [process.execPath, ...npmScript] : ['npm']
  // No dependency of ours needs its install script. Development packages are asked for, since
  // NODE_ENV=production would omit them.
  const args = ['ci', '--ignore-scripts', '--include=dev', '--include=optional']
  const quiet = ['--prefer-offline', '--no-audit', '--no-fund', '--no-update-notifier']
  await runQuietly('installing npm packages', npm, [...npmArgs, ...args, ...quiet], {
    cwd: root,
    nextStep: 'read the lines above (often the network or a proxy), and run this command again.',
  })
}

/** What is built natively: targets of CMakeLists.txt. */
const libraries = {
  zipcache: { file: 'zipcache.node', name: 'the native addon' },
  'zipcache-cuda-emu': { file: 'zipcache-cuda-emu.so', name: 'the emulated CUDA backend' },
  'zipcache-cuda': { file: 'zipcache-cuda.so', name: 'the CUDA backend' },
}
const builtFile = (target) => at('build', 'Release', libraries[target].file)
const targetStamp = (target) => at('build', `.stamp-${target}`)

// Our own CI sets ZC_WERROR=1. It is off for users: a newer compiler's new warning must not break
// their build.
const werror = process.env.ZC_WERROR === '1' ? 'ON' : 'OFF'
// GPUs to build for, as CMake names them; default as CMakeLists.txt has it.
const architectures = process.env.ZC_CUDA_ARCHITECTURES ?? ''

function nativeInputs() {
  const headers = lockedVersions('node-addon-api', 'node-api-headers')
  const { platform, arch, env } = process
  const { version } = readJson(at('package.json'))
  const facts = [version, platform, arch, env.CXX ?? '', werror, architectures, headers]
  return hashInputs([at('CMakeLists.txt'), ...filesBelow(at('csrc'))], facts)
}

/**
 * cmake-js does the building. It downloads nothing: package.json has binary.napi_versions, and for
 * such packages cmake-js 8 takes the headers from node-api-headers. `configure` and `build`, never
 * `compile`, which answers every compile error with a full rebuild.
 */
async function buildNative(compiler, targets, inputs) {
  const cuda = targets.includes('zipcache-cuda') ? 'ON' : 'OFF'
  const configuration = JSON.stringify({ root, compiler, werror, cuda, architectures })
  const configurationStamp = at('build', '.configuration')
  const configured = existsSync(configurationStamp)
    ? JSON.parse(readFileSync(configurationStamp, 'utf8'))
    : {}
  // CMake cannot change a configured directory's compiler or source folder, and node-gyp uses
  // build/ too: then begin afresh.
  const isUsable = configured.root === root && configured.compiler === compiler
  if (!isUsable) rmSync(at('build'), { recursive: true, force: true })
  for (const target of targets) rmSync(targetStamp(target), { force: true })

  const cmakeJs = at('node_modules', 'cmake-js', 'bin', 'cmake-js')
  const settings = { WERROR: werror, CUDA_EMU: 'ON', CUDA: cuda }
  if (architectures) settings.CUDA_ARCHITECTURES = architectures
  const configure = [cmakeJs, 'configure', '--cc', compiler, '--cxx', compiler]
  for (const [name, value] of Object.entries(settings)) configure.push(`--CDZC_${name}=${value}`)
  const options = {
    cwd: root,
    // CMakeLists.txt asks `node` where the headers are: let it be this one.
    env: {
      ...process.env,
      PATH: path.dirname(process.execPath) + path.delimiter + process.env.PATH,
    },
    nextStep: 'read the error above. `rm -rf build` and this command again build from nothing.',
  }
  await runQuietly('configuring the native addon', process.execPath, configure, options)
  writeFileSync(configurationStamp, configuration)
  for (const target of targets) {
    const build = [cmakeJs, 'build', '--target', target, '--parallel']
    const args = [...build, String(availableParallelism())]
    await runQuietly(`building ${libraries[target].name}`, process.execPath, args, options)
    const file = builtFile(target)
    if (!existsSync(file))
      throw new ScriptError(`the build did not write ${file}`, options.nextStep)
    writeFileSync(targetStamp(target), inputs)
  }
}

const distStamp = at('dist', '.stamp')

function distInputs() {
  const own = [at('tsconfig.json'), at('tsconfig.build.json'), at('scripts', 'build-ts.mjs')]
  return hashInputs([...own, ...filesBelow(at('lib'))], lockedVersions('typescript'))
}

async function buildDist(inputs) {
  await runQuietly('compiling TypeScript', process.execPath, [at('scripts', 'build-ts.mjs')], {
    cwd: root,
    nextStep: 'read the error above.',
  })
  mkdirSync(at('dist'), { recursive: true })
  writeFileSync(distStamp, inputs)
}

function isStamped(stamp, product, inputs) {
  return existsSync(product) && existsSync(stamp) && readFileSync(stamp, 'utf8') === inputs
}

/**
 * Does what is stale among the steps and says so on stderr. Throws ScriptError with the reason and
 * the next step.
 * @param {{ native?: boolean, emulator?: boolean, cuda?: boolean, ts?: boolean }} steps which builds
 * are wanted beside the npm packages: the addon, the emulated CUDA backend that tests run, the CUDA
 * backend, dist/. A CUDA backend that is there is kept as new as the addon.
 */
export async function setup({ native = true, emulator = false, cuda = false, ts = true } = {}) {
  requireNode()
  const wanted = { zipcache: native, 'zipcache-cuda-emu': emulator, 'zipcache-cuda': cuda }
  if (native && existsSync(builtFile('zipcache-cuda'))) wanted['zipcache-cuda'] = true
  const nativeHash = native ? nativeInputs() : ''
  const distHash = ts ? distInputs() : ''
  const targets = Object.keys(libraries).filter(
    (target) => wanted[target] && !isStamped(targetStamp(target), builtFile(target), nativeHash),
  )
  const buildsDist = ts && !isStamped(distStamp, at('dist', 'index.js'), distHash)
  const installs = !packagesAreCurrent()
  if (!installs && targets.length === 0 && !buildsDist) {
    say('up to date')
    return
  }
  // First the check that can ask the person for something, then the slow steps.
  const compiler = targets.length > 0 ? await requireToolchain() : ''
  if (installs) await installPackages()
  if (targets.length > 0) await buildNative(compiler, targets, nativeHash)
  if (buildsDist) await buildDist(distHash)
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [only] = process.argv.slice(2)
  const steps = {
    native: { emulator: true, ts: false },
    cuda: { cuda: true, ts: false },
  }
  try {
    await setup(steps[only])
  } catch (error) {
    reportFailure(error)
    process.exitCode = 1
  }
}
