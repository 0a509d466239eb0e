// lib/ to dist/: TypeScript compiled once, to CommonJS, then for each entry point a thin ES module
// over it. Wrapping instead of compiling twice keeps one instance of every class and one loaded
// addon, however a program mixes the two.
import { spawnSync } from 'node:child_process'
import { chmodSync, cpSync, existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)))
const dist = path.join(root, 'dist')
const require = createRequire(import.meta.url)

function compile() {
  rmSync(dist, { recursive: true, force: true })
  const tsc = require.resolve('typescript/bin/tsc')
  const args = [tsc, '-p', path.join(root, 'tsconfig.build.json')]
  const { status } = spawnSync(process.execPath, args, { cwd: root, stdio: 'inherit' })
  if (status !== 0) process.exit(1)
}

/** Writes the ES module and its types beside a compiled entry point such as dist/ops/index.js. */
function wrap(entry) {
  // Named one by one: `export *` would leave the names to Node's guess about the CommonJS text.
  const names = Object.keys(require(entry))
    .filter((name) => name !== 'default')
    .sort()
  const lines = ["import commonJs from './index.js'", '']
  lines.push(...names.map((name) => `export const ${name} = commonJs.${name}`), '')
  writeFileSync(entry.replace(/\.js$/, '.mjs'), lines.join('\n'))
  writeFileSync(entry.replace(/\.js$/, '.d.mts'), "export * from './index.js'\n")
}

compile()
const { exports: entryPoints } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))
for (const entryPoint of Object.values(entryPoints)) {
  if (entryPoint.require) wrap(path.join(root, entryPoint.require.default))
}
// What the server's page is made of runs in a browser, as it is.
const page = path.join('server', 'page')
cpSync(path.join(root, 'lib', page), path.join(dist, page), { recursive: true })
// `npx zipcache` in a clone runs the file itself.
const main = path.join(dist, 'cli', 'main.js')
if (existsSync(main)) chmodSync(main, 0o755)
