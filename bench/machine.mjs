// What a benchmark says of the machine and of the commit it ran on.
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { availableParallelism, cpus } from 'node:os'
import { root } from '../scripts/setup.mjs'

const kFlags = ['avx2', 'fma', 'f16c', 'avx512f', 'avx512_bf16', 'avx512_vnni', 'amx_bf16', 'asimd']

export function describeMachine() {
  const text = readFileSync('/proc/cpuinfo', 'utf8')
  const present = /^(?:flags|Features)\s*:(.*)$/m.exec(text)?.[1].split(' ') ?? []
  return {
    cpu: cpus()[0].model.trim(),
    cores: availableParallelism(),
    flags: kFlags.filter((name) => present.includes(name)),
    os: `Linux ${process.arch}`,
    node: process.versions.node,
    commit: commitOf(root),
  }
}

/** With a + when files differ from it; `unknown` outside of a clone. */
function commitOf(dir) {
  const git = (...args) => execFileSync('git', args, { cwd: dir, encoding: 'utf8' }).trim()
  try {
    const isChanged = git('status', '--porcelain', '--untracked-files=no') !== ''
    return git('rev-parse', '--short', 'HEAD') + (isChanged ? '+' : '')
  } catch {
    return 'unknown'
  }
}
