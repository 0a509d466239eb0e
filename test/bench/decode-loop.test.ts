import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { end, kRoot, startNode } from '../cli/command-line'

const kModule = join(kRoot, 'scripts', 'cuda-kernels', 'decode-loop.mjs')
const kProducts = 16 // of K, and of V: two tiles of 16 tokens at head_dim 128

/** A listing of instructions, one each 16 bytes; `@name` before one is where a branch may lead. */
function listing(lines: readonly string[]): string {
  const labels = new Map<string, number>()
  const plain = lines.map((line, i) => {
    const [, label, text] = /^(?:(\w+): )?(.*)$/.exec(line) as RegExpExecArray
    if (label) labels.set(label, 16 * i)
    return text as string
  })
  return plain
    .map((text, i) => {
      const target = text.replace(/\{(\w+)\}/, (_, name) => `0x${labels.get(name)?.toString(16)}`)
      return `        /*${(16 * i).toString(16).padStart(4, '0')}*/                   ${target} ;`
    })
    .join('\n')
}

const products = new Array<string>(kProducts).fill('HMMA.16816.F32 R0, R4, R8, R0')
const mask = 'LOP3.LUT R1, R2, 0xf000f, RZ, 0xc0, !PT'
const loop = [
  `key: ${mask}`,
  ...products,
  '@P5 BRA {rare}', // a larger maximum
  `value: ${mask}`,
  ...products,
  '@P1 BRA {key}', // shorter, but nothing would be copied
  'copy: UBLKCP.S.G [UR20], [UR18], UR12',
  '@P1 BRA.U.ANY {copy}',
  '@P2 BRA {again}', // past the look into the table
  'LD.E R133, desc[UR14][R38.64]',
  'again: BRA.DIV UR12, {parted}',
  'BRA {key}',
  'parted: WARPSYNC.COLLECTIVE R36, {again}',
  'BRA {key}',
  'rare: FMUL R0, R0, R1',
  'FMUL R0, R0, R1',
  'BRA {value}',
  'EXIT',
]

test('a unit is the shortest way that copies and looks into the table, a step for each page', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'zipcache-loop-'))
  try {
    const fake = join(folder, 'cuobjdump')
    writeFileSync(fake, `#!/bin/sh\ncat <<'END'\n${listing(loop)}\nEND\n`)
    chmodSync(fake, 0o755)
    const source = `import { decodeLoops } from ${JSON.stringify(kModule)}
console.log(JSON.stringify(decodeLoops('a.cubin', 'kernel')))`
    const child = startNode(['--input-type=module', '-e', source], { CUOBJDUMP: fake })
    const { exitCode, stdout, stderr } = await end(child)
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
    // K and V with their masks and branches; the copy twice, for two pages; on to the loop's head.
    const instructions = 2 * (1 + kProducts + 1) + 2 * 2 + 1 + 1 + 2
    expect(JSON.parse(stdout)).toEqual([{ formats: 'K and V u4', instructions, codes: 256 }])
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
})
