import { execFileSync, spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import path from 'node:path'

const kObjects = path.join(__dirname, '../../build/CMakeFiles/zipcache.dir/csrc/cpu')
const kHasNm = spawnSync('nm', ['--version']).status === 0

function objects(): string[] {
  try {
    return readdirSync(kObjects).filter((name) => /^isa_\w+\.cc\.o$/.test(name))
  } catch {
    return [] // built by node-gyp, or a package
  }
}

// The linker keeps one of all inline functions of a name: were it one compiled for AVX-512, a
// processor without it would die of it.
describe.each(objects())('%s', (name) => {
  const isa = name.replace(/^isa_|\.cc\.o$/g, '')

  ;(kHasNm ? test : test.skip)('has no inline function that another instruction set shares', () => {
    const lines = execFileSync('nm', ['-C', path.join(kObjects, name)], { encoding: 'utf8' })
    const weak = lines.split('\n').filter((line) => /^\S*\s+[WVu] /.test(line))
    const isData = (line: string) => /\b(?:DW\.ref\.|typeinfo|vtable)/.test(line)
    expect(weak.filter((line) => !isData(line) && !line.includes(`zc::cpu::${isa}::`))).toEqual([])
  })
})

test('some objects of instruction sets were found where CMake has built', () => {
  const built = readdirSync(path.join(kObjects, '../../../..')).includes('build.ninja')
  expect(objects().length > 0).toBe(built)
})
