import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'

const root = join(__dirname, '..')
const read = (...path: string[]) => readFileSync(join(root, ...path), 'utf8')
/** Without imports, which stand at the head of a file, and without what a formatter decides. */
const squash = (code: string) =>
  code
    .replace(/^import .*$/gm, '')
    .replace(/\s+/g, ' ')
    .trim()

// What stands there is compiled by `npm run check`.
test.each(['README.md', 'docs/library.md'])(
  'the TypeScript of %s stands in test/types/readme.ts',
  (file) => {
    const compiled = squash(read('test', 'types', 'readme.ts'))
    const blocks = [...read(file).matchAll(/```ts\n(.*?)```/gs)].map(([, code]) => code)
    expect(blocks.length).toBeGreaterThan(2)
    for (const code of blocks) expect(compiled).toContain(squash(code as string))
  },
)

const documents = [
  'README.md',
  'CONTRIBUTING.md',
  'models/README.md',
  ...readdirSync(join(root, 'docs'), { recursive: true }).map((name) =>
    join('docs', name as string),
  ),
].filter((name) => name.endsWith('.md'))

/** A heading as GitHub links to it. */
const anchor = (heading: string) =>
  heading
    .toLowerCase()
    .replace(/[^\p{L}\p{N} _-]/gu, '')
    .replaceAll(' ', '-')

test.each(documents)('the links of %s lead somewhere', (file) => {
  const links = [...read(file).matchAll(/\]\(([^)\s]+)\)/g)].map(([, target]) => target as string)
  const broken = links.filter((link) => {
    if (/^https?:/.test(link)) return false
    const [name = '', heading] = link.split('#')
    const target = name === '' ? file : join(dirname(file), name)
    if (!existsSync(join(root, target))) return true
    if (heading === undefined || !target.endsWith('.md')) return false
    return ![...read(target).matchAll(/^#+ (.*)$/gm)].some(
      ([, text]) => anchor(text as string) === heading,
    )
  })
  expect(broken).toEqual([])
})
