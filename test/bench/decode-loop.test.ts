import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { end, kRoot, startNode } from '../cli/command-line'

const kModule = join(kRoot, 'scripts', 'cuda-kernels', 'decode-loop.mjs')
const kPages = 4 // of a unit
const kProducts = 8 // of K, and of V: a page of 16 tokens at head_dim 128

/** A listing of instructions, one each 16 bytes; `@name` before one is where a branch may lead. */
function listing(lines: readonly string[], hints: string): string {
  const labels = new Map<string, number>()
  const plain = lines.map((line, i) => {
    const [, label, text] = /^(?:(\w+): )?(.*)$/.exec(line) as RegExpExecArray
    if (label) labels.set(label, 16 * i)
    return text as string
  })
  return plain
    .map((text, i) => {
      const target = text.replace(/\{(\w+)\}/, (_, name) => `0x${labels.get(name)?.toString(16)}`)
      return `        /*${(16 * i).toString(16).padStart(4, '0')}*/                   ${target}${hints} ;`
    })
    .join('\n')
}

const products = new Array<string>(kProducts).fill('HMMA.16816.F32 R0, R4, R8, R0')
const mask = 'LOP3.LUT R1, R2, 0xf000f, RZ, 0xc0, !PT'
const consumer = [
  `key: ${mask}`,
  ...products,
  '@P5 BRA {rare}', // a larger maximum
  `value: ${mask}`,
  ...products,
  '@P4 BRA {key}',
  'SYNCS.ARRIVE.TRANS64.A1T0 RZ, [R7+URZ+0x19a40], RZ', // the unit's end
  'BRA {key}',
  'rare: FMUL R0, R0, R1',
  'FMUL R0, R0, R1',
  'BRA {value}',
]
const producer = [
  'round: BRA.DIV UR12, {parted}',
  '@P2 BRA {look}',
  'BRA {round}', // shorter, but nothing would be looked up
  'look: LD.E R133, desc[UR14][R38.64]',
  '@P3 BRA {round}', // nor copied
  'copy: UBLKCP.S.G [UR20], [UR18], UR12',
  '@P1 BRA.U.ANY {copy}',
  'BRA {round}',
  'parted: WARPSYNC.COLLECTIVE R36, {round}',
  'BRA {round}',
  'EXIT',
]
const loop = [...consumer, ...producer]

test.each([
  ['', ''],
  [', hints of when to issue behind each', ' &req={4,0} ?WAIT5_END_GROUP'],
])(
  'a unit is the shortest way round for one consumer, and a sixth of that which looks up and copies%s',
  async (_, hints) => {
    const folder = mkdtempSync(join(tmpdir(), 'zipcache-loop-'))
    try {
      const fake = join(folder, 'cuobjdump')
      writeFileSync(fake, `#!/bin/sh\ncat <<'END'\n${listing(loop, hints)}\nEND\n`)
      chmodSync(fake, 0o755)
      const source = `import { decodeLoops } from ${JSON.stringify(kModule)}
console.log(JSON.stringify(decodeLoops('a.cubin', 'kernel')))`
      const child = startNode(['--input-type=module', '-e', source], { CUOBJDUMP: fake })
      const { exitCode, stdout, stderr } = await end(child)
      expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
      // Pages' K and V with their masks and branches; of six units round, look-up and copies, two
      // slots for each unit.
      const own = kPages * (2 * (1 + kProducts) + 1 + 1)
      const brought = 1 + 1 + 2 + 2 * 12 + 1
      const instructions = Math.round(own + brought / 6)
      expect(JSON.parse(stdout)).toEqual([{ formats: 'K and V u4', instructions, codes: 512 }])
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  },
)
