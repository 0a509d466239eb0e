// Shared libraries with the names and versions of a glibc older than this machine's, and no code: to
// link against. Of each symbol they have the newest version that is old enough, so that the linker
// binds to that one, and reports what an old system lacks as undefined.
import { execFileSync } from 'node:child_process'
import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { ScriptError } from '../progress.mjs'

/** Of what Node links itself. Since 2.34 libc has all that was in libdl, libpthread and librt. */
const libraries = ['libc.so.6', 'libm.so.6']

/** `2.17` before `2.2.5`? Compares versions number by number. */
export function compareVersions(a, b) {
  return a.localeCompare(b, 'en', { numeric: true })
}

/** Symbols that a library defines: { name, type, size, version } with version `GLIBC_2.17`. */
function definedSymbols(file) {
  const table = execFileSync('readelf', ['-W', '--dyn-syms', file], {
    encoding: 'utf8',
    maxBuffer: 1 << 26,
  })
  const row =
    /^ *\d+: [0-9a-f]+ +(\d+) (FUNC|OBJECT|IFUNC|TLS) +(?:GLOBAL|WEAK) +DEFAULT +\d+ (\w+)@@?(GLIBC_[\d.]+)$/gm
  return [...table.matchAll(row)].map(([, size, type, name, version]) => {
    return { name, type, size: Number(size), version }
  })
}

function chooseVersions(symbols, newest) {
  const chosen = new Map()
  for (const symbol of symbols) {
    const number = symbol.version.slice('GLIBC_'.length)
    if (compareVersions(number, newest) > 0) continue
    const known = chosen.get(symbol.name)
    if (!known || compareVersions(symbol.version, known.version) > 0)
      chosen.set(symbol.name, symbol)
  }
  return [...chosen.values()]
}

function writeStub(compiler, file, soname, symbols) {
  const lines = []
  for (const { name, type, size } of symbols) {
    const kind = { FUNC: 'function', IFUNC: 'function', OBJECT: 'object', TLS: 'tls_object' }[type]
    const section = { OBJECT: '.data', TLS: '.section .tdata,"awT",%progbits' }[type] ?? '.text'
    lines.push(section, `.globl ${name}`, `.type ${name}, %${kind}`, `${name}:`)
    lines.push(`.skip ${Math.max(size, 8)}`, `.size ${name}, ${size}`)
  }
  lines.push('.section .note.GNU-stack,"",%progbits', '')
  const versions = [...new Set(symbols.map(({ version }) => version))].sort(compareVersions)
  const script = versions.map((version) => {
    const names = symbols.filter((symbol) => symbol.version === version).map(({ name }) => name)
    return `${version} { global: ${names.join('; ')}; };`
  })
  writeFileSync(`${file}.s`, lines.join('\n'))
  writeFileSync(`${file}.map`, `${script.join('\n')}\n`)
  const link = ['-shared', '-nostdlib', `-Wl,-soname,${soname}`, `-Wl,--version-script=${file}.map`]
  execFileSync(compiler, [...link, '-o', file, `${file}.s`])
}

/**
 * Makes the stubs in a folder, where `-L` finds them before the system's libraries.
 * @param {{ folder: string, newest: string, compiler: string }} options newest: `2.28`
 */
export function makeGlibcStubs({ folder, newest, compiler }) {
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder, { recursive: true })
  const find = (name) => {
    const file = execFileSync(compiler, [`-print-file-name=${name}`], { encoding: 'utf8' }).trim()
    if (!path.isAbsolute(file))
      throw new ScriptError(`${name} was not found: this needs a system with glibc`)
    return file
  }
  for (const soname of libraries) {
    const symbols = chooseVersions(definedSymbols(find(soname)), newest)
    const name = soname.replace(/\.\d+$/, '')
    // libc.so is a script of the linker: the library, and what is linked statically.
    writeStub(compiler, path.join(folder, name === 'libc.so' ? soname : name), soname, symbols)
  }
  const loader = /\S*ld-linux\S*\.so\.\d+/.exec(
    execFileSync('readelf', ['-dW', find('libc.so.6')], { encoding: 'utf8' }),
  )
  const members = [path.join(folder, 'libc.so.6'), find('libc_nonshared.a')]
  if (loader) members.push(`AS_NEEDED ( ${find(loader[0].replace(/^\[/, ''))} )`)
  writeFileSync(path.join(folder, 'libc.so'), `GROUP ( ${members.join(' ')} )\n`)
}
