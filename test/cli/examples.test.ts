import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { end, kRoot, startNode } from './command-line'

async function runExample(name: string): Promise<string> {
  const child = startNode([join(kRoot, 'examples', name)])
  child.stdin.end()
  const { exitCode, stdout, stderr } = await end(child)
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
  return stdout
}

test('compressed-cache.mjs answers right', async () => {
  const [answer, check, size] = (await runExample('compressed-cache.mjs')).split('\n')
  expect(answer?.replaceAll(' ', '').slice(-5)).toBe(check?.slice(-5))
  expect(size).toMatch(/^\d+ tokens in \d+ bytes; 16 bits take \d+ \(\d\.\d\dx\)$/)
})

test('multi-turn.mjs answers every turn right', async () => {
  const turns = (await runExample('multi-turn.mjs'))
    .split('\n')
    .flatMap((line) => [/< ([\d ]+) > .*\(it is (\d{5})\)/.exec(line) ?? []])
    .filter((match) => match.length > 0)
  expect(turns).toHaveLength(3)
  for (const [, answer, number] of turns) expect(answer?.replaceAll(' ', '')).toBe(number)
})

test('many-questions.mjs answers every question right, and one more from a file', async () => {
  const lines = (await runExample('many-questions.mjs')).trim().split('\n')
  const answers = lines.flatMap((line) => {
    const match = /< ([\d ]+) \(it is (\d{5})\)/.exec(line)
    return match ? [[match[1]?.replaceAll(' ', ''), match[2]]] : []
  })
  expect(answers).toHaveLength(9)
  for (const [answer, number] of answers) expect(answer).toBe(number)
  expect(lines.at(-2)).toMatch(/^104 tokens in \d+ steps, \d+ bytes of caches$/)
})

describe('the README', () => {
  // Within the package, where it can import itself.
  const folder = join(kRoot, 'build', 'readme')
  beforeAll(() => mkdirSync(folder, { recursive: true }))
  afterAll(() => rmSync(folder, { recursive: true }))

  /** Its programs that stand on their own. */
  function programs(): string[] {
    const text = readFileSync(join(kRoot, 'README.md'), 'utf8')
    const blocks = [...text.matchAll(/^```(?:js|ts)\n(.*?)^```$/gms)].map(
      ([, code]) => code as string,
    )
    return blocks.filter((code) => /^(\/\/.*\n)?import .*loadModel/.test(code))
  }

  test('has two such programs', () => {
    expect(programs()).toHaveLength(2)
  })

  test.each([0, 1])('program %i runs, and answers', async (index) => {
    const file = join(folder, `program-${index}.mjs`)
    const code = programs()[index] as string
    writeFileSync(
      file,
      code.replace(
        "'models/line-retrieval'",
        JSON.stringify(join(kRoot, 'models', 'line-retrieval')),
      ),
    )
    const child = startNode([file])
    child.stdin.end()
    const { exitCode, stdout, stderr } = await end(child)
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
    expect(stdout.replaceAll(' ', '')).toMatch(/\d{5}/)
    const check = /it is (\d{5})/.exec(stdout)
    if (check) expect(stdout.replaceAll(' ', '').slice(0, stdout.indexOf('('))).toContain(check[1])
  })
})
