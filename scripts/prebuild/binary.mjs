// What a published binary must be: linked to nothing but what Node itself links, to nothing newer
// than the oldest glibc we name, stripped, small, and without this machine's paths.
import { execFileSync } from 'node:child_process'
import { readFileSync, statSync } from 'node:fs'
import { compareVersions } from './glibc-stubs.mjs'

/** Libraries that a process of Node has loaded already. */
const allowedLibraries =
  /^(libc\.so\.6|libm\.so\.6|libdl\.so\.2|libpthread\.so\.0|librt\.so\.1|libgcc_s\.so\.1|ld-linux-[\w-]+\.so\.\d)$/
/** Of libgcc_s, which comes with every system that has this glibc. */
const newestGcc = '4.8'

const readelf = (...args) =>
  execFileSync('readelf', ['-W', ...args], { encoding: 'utf8', maxBuffer: 1 << 28 })

/**
 * What is wrong with a binary, a line each, and what it needs.
 * @param {string} file
 * @param {{ newestGlibc: string, budgetBytes: number, exports: string[], forbidden: string[] }} rules
 * `exports`: the symbols it may give; `forbidden`: texts that must not be in it
 */
export function inspectBinary(file, { newestGlibc, budgetBytes, exports, forbidden }) {
  const problems = []
  const sizeBytes = statSync(file).size
  if (sizeBytes > budgetBytes) problems.push(`has ${sizeBytes} bytes, expected ${budgetBytes}`)

  const dynamic = readelf('-d', file)
  for (const [, library] of dynamic.matchAll(/\(NEEDED\).*\[(.*)\]/g)) {
    if (!allowedLibraries.test(library)) problems.push(`needs ${library}`)
  }
  if (/\((RPATH|RUNPATH)\)/.test(dynamic)) problems.push('has a search path of its own')

  const sections = readelf('-S', file)
  if (/\.symtab|\.debug_/.test(sections)) problems.push('is not stripped')

  let glibc = '0'
  const symbols = readelf('--dyn-syms', file)
  for (const [, name, library, version] of symbols.matchAll(/UND (\w+)@([A-Z]+)_([\d.]+)/g)) {
    if (library === 'GLIBC') {
      if (compareVersions(version, glibc) > 0) glibc = version
      if (compareVersions(version, newestGlibc) > 0) problems.push(`${name} needs glibc ${version}`)
    } else if (library !== 'GCC' || compareVersions(version, newestGcc) > 0) {
      problems.push(`${name} needs ${library}_${version}`)
    }
  }
  // Only Node-API is found in the process without a version.
  for (const [, name] of symbols.matchAll(/ GLOBAL +DEFAULT +UND (\w+)(?![\w@])/g)) {
    if (!/^(napi|node_api)_/.test(name)) problems.push(`needs ${name}, which no library gives`)
  }
  const given = [
    ...symbols.matchAll(/(?:GLOBAL|WEAK|UNIQUE) +(?:DEFAULT|PROTECTED) +\d+ (\S+)/g),
  ].map(([, name]) => name)
  for (const name of given) if (!exports.includes(name)) problems.push(`gives the symbol ${name}`)
  for (const name of exports) if (!given.includes(name)) problems.push(`lacks the symbol ${name}`)

  const bytes = readFileSync(file)
  for (const text of forbidden) if (bytes.includes(text)) problems.push(`holds the text ${text}`)
  return { problems, sizeBytes, glibc }
}
