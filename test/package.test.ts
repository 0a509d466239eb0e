/** What published packages promise, as far as it can be told without building them. */
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { kMinimumGlibc } from '../lib/native/platform.js'

const root = path.join(__dirname, '..')
const read = (name: string) => readFileSync(path.join(root, name), 'utf8')

test('binaries are linked for the glibc that users are told of', () => {
  expect(read('scripts/prebuild.mjs')).toContain(`newestGlibc = '${kMinimumGlibc}'`)
})

test('nothing runs when the package is installed, and the repository is not published', () => {
  const { private: isPrivate, gypfile, scripts } = JSON.parse(read('package.json'))
  expect({ isPrivate, gypfile }).toEqual({ isPrivate: true, gypfile: false })
  expect(Object.keys(scripts).filter((name) => /install|prepare|prebuild$/.test(name))).toEqual([])
})

test('every entry point has its types for import and for require', () => {
  const { exports } = JSON.parse(read('package.json'))
  for (const [name, entry] of Object.entries<Record<string, Record<string, string>>>(exports)) {
    if (name === './package.json') continue
    expect(entry.import?.types).toMatch(/\.d\.mts$/)
    expect(entry.import?.default).toMatch(/\.mjs$/)
    expect(entry.require?.types).toMatch(/\.d\.ts$/)
  }
})
