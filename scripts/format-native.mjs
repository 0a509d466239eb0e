// Formats the C++ and CUDA of csrc/ and test/ in place, or with --check says which lines are not formatted.
import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { say } from './progress.mjs'

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)))
// The npm package carries the binaries; its own launcher only picks one.
const launcher = createRequire(import.meta.url).resolve('clang-format')

const isNative = /\.(h|cc|cu|cuh)$/
const files = ['csrc', 'test']
  .flatMap((folder) =>
    readdirSync(path.join(root, folder), { recursive: true }).map((name) =>
      path.join(folder, name),
    ),
  )
  .filter((name) => isNative.test(name))
  .sort()

const mode = process.argv.includes('--check') ? ['--dry-run', '--Werror'] : ['-i']
if (files.length > 0) {
  const args = [launcher, ...mode, ...files]
  const { status } = spawnSync(process.execPath, args, { cwd: root, stdio: 'inherit' })
  if (status !== 0) say('`npm run format` formats these files')
  process.exitCode = status ?? 1
}
