import { readFileSync } from 'node:fs'
import { join } from 'node:path'

const root = join(__dirname, '..')
const read = (...path: string[]) => readFileSync(join(root, ...path), 'utf8')
/** Without imports, which stand at the head of a file, and without what a formatter decides. */
const squash = (code: string) =>
  code
    .replace(/^import .*$/gm, '')
    .replace(/\s+/g, ' ')
    .trim()

// What stands there is compiled by `npm run check`.
test('the TypeScript of README.md stands in test/types/readme.ts', () => {
  const compiled = squash(read('test', 'types', 'readme.ts'))
  const blocks = [...read('README.md').matchAll(/```ts\n(.*?)```/gs)].map(([, code]) => code)
  expect(blocks.length).toBeGreaterThan(2)
  for (const code of blocks) expect(compiled).toContain(squash(code as string))
})
