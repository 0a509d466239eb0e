// Instructions that mixedAttention issues for a code in its steady state, counted in what a disassembler
// makes of a cubin: the shortest way round its loop over pages.
import { spawnSync } from 'node:child_process'

const disassembler = process.env.CUOBJDUMP ?? 'cuobjdump'

/** Whether machine code can be read here: cuobjdump of the CUDA toolkit, or the one that CUOBJDUMP names. */
export function canDisassemble() {
  return spawnSync(disassembler, ['--version']).status === 0
}

/** Codes of K and V that are told apart, as mixedAttention unpacks them. */
const kForms = [
  // what masks a field of K and of V, and is in no other form; slots of a unit; bytes of a page
  { formats: 'K and V u2', keys: '0x30003', without: '0x70007', slots: 1, bytes: 1088 },
  { formats: 'K u3, V u2', keys: '0x70007', values: '0x30003', slots: 2, bytes: 1344 },
  { formats: 'K and V u4', keys: '0xf000f', slots: 2, bytes: 2112 },
]
/** Tokens of a unit, and of a page. */
const kTokens = 64
const kPageTokens = 16
/** Warps that multiply, each of which gets a unit from the producer's loop when it goes round once. */
const kConsumers = 6
/** What a warp's lanes copy in one step where there are no copies in bulk. */
const kLaneCopyBytes = 512

/**
 * For each form of packed cache: the instructions of one unit of a warp at head_dim 128, and how many
 * of its codes a lane has. A consumer's way round its loop over pages, which takes each of a unit's,
 * goes through the matrix products of K and those of V; the producer's, a sixth of which is counted,
 * through the look into the page table and the copies of six units: one a slot, pages lying one after another, or a step for each 512 bytes.
 * What happens rarely (another segment, a larger maximum, a masked end) is not on the shortest way.
 *
 * @param {string} cubin a file
 * @param {string} symbol the kernel's, mangled
 * @returns {{ formats: string, instructions: number, codes: number }[]}
 */
export function decodeLoops(cubin, symbol) {
  const headDim = 128
  const { status, stdout, stderr } = spawnSync(
    disassembler,
    ['--dump-sass', '--function', symbol, cubin],
    { encoding: 'utf8', maxBuffer: 1 << 28 },
  )
  if (status !== 0) throw new Error(`${disassembler} ${cubin}: ${stderr}`)
  const graph = new Graph(instructionsOf(stdout))
  // A page takes headDim / 16 products for K and as many for V.
  const products = headDim / 16
  const pages = kTokens / kPageTokens
  return kForms.flatMap(({ formats, keys, without, values = keys, slots, bytes }) => {
    const find = (wanted) =>
      graph.blocks.filter(
        (block) =>
          block.products === products &&
          block.text.includes(wanted) &&
          !(without && block.text.includes(without)),
      )
    const consumer = Math.min(
      ...find(keys).flatMap((key) =>
        find(values)
          .filter((value) => value !== key)
          .map((value) => graph.round([key, value])),
      ),
    )
    const producer = Math.min(
      ...graph.copies.flatMap((copy) => {
        const steps = graph.isBulk ? slots : pages * Math.ceil(bytes / kLaneCopyBytes)
        const again = (kConsumers * steps - 1) * copy.lines.length
        return graph.loads.map((load) => again + graph.round([copy, load]))
      }),
    )
    const instructions = Math.round(pages * consumer + producer / kConsumers)
    const codes = (2 * kTokens * headDim) / 32
    return Number.isFinite(instructions) ? [{ formats, instructions, codes }] : []
  })
}

/** Lines of a listing that are instructions: where, and what, without hints of when (&req={0} ?trans5). */
function instructionsOf(listing) {
  return [...listing.matchAll(/\/\*([0-9a-f]{4,6})\*\/\s+(.*?)\s*;/g)].map(([, address, text]) => ({
    address: Number.parseInt(address, 16),
    text: text.replace(/\s+[&?][A-Za-z].*$/, ''),
  }))
}

const kBranch = /\bBRA\b/
const kEnds = /\b(?:BRA|EXIT|BRX|RET|BSYNC)\b/
const targetOf = (text) => Number.parseInt(/0x([0-9a-f]+)\s*$/.exec(text)?.[1] ?? 'x', 16)

/** Basic blocks, and where each goes on. */
class Graph {
  blocks
  #next = new Map()
  #lengths = new Map()

  constructor(instructions) {
    const begins = new Set([instructions[0].address])
    const reconvergences = [] // of BSSY: the register, from where, to where
    instructions.forEach(({ address, text }, i) => {
      if (kBranch.test(text)) begins.add(targetOf(text))
      const reconverges = /\bBSSY\S*\s+(B\d+)/.exec(text)
      if (reconverges) {
        begins.add(targetOf(text))
        reconvergences.push({ register: reconverges[1], from: address, to: targetOf(text) })
      }
      if (kEnds.test(text) && instructions[i + 1]) begins.add(instructions[i + 1].address)
    })
    this.blocks = []
    for (const { address, text } of instructions) {
      if (begins.has(address)) this.blocks.push({ begin: address, lines: [] })
      this.blocks.at(-1).lines.push({ address, text })
    }
    const at = new Map(this.blocks.map((block) => [block.begin, block]))
    this.blocks.forEach((block, i) => {
      block.text = block.lines.map(({ text }) => text).join('\n')
      // Where lanes have parted, each vote and shuffle is made a second time, elsewhere.
      block.isDetour = /\bWARPSYNC\.COLLECTIVE\b/.test(block.text)
      block.products = block.text.match(/\bHMMA\b/g)?.length ?? 0
      const { address, text } = block.lines.at(-1)
      // A branch may have conditions of its own: BRA.DIV UR4, 0x…; BRA P2, 0x….
      const isConditional = text.startsWith('@') || (kBranch.test(text) && !/^BRA\s+0x/.test(text))
      const next = []
      if (kBranch.test(text)) next.push(targetOf(text))
      if (/\bBSYNC\b/.test(text)) {
        const register = /\b(B\d+)\b/.exec(text)[1]
        const own = reconvergences.findLast(
          ({ register: of, from, to }) => of === register && from < address && to >= address,
        )
        if (own) next.push(own.to)
      }
      if (next.length === 0 || isConditional) {
        const falls = isConditional || !/\b(?:EXIT|BRX|RET|BRA)\b/.test(text)
        if (falls && this.blocks[i + 1]) next.push(this.blocks[i + 1].begin)
      }
      this.#next.set(
        block,
        next.map((begin) => at.get(begin)).filter((found) => found),
      )
    })
    for (const [block, next] of this.#next) {
      this.#next.set(
        block,
        next.filter(({ isDetour }) => !isDetour),
      )
    }
  }

  /** Whether copies into shared memory are those of Hopper: a page at a time. */
  get isBulk() {
    return this.blocks.some(({ text }) => /\bUBLKCP\b/.test(text))
  }

  /** Blocks that copy into shared memory without waiting. */
  get copies() {
    const copy = this.isBulk ? /\bUBLKCP\b/ : /\bLDGSTS\b/
    return this.blocks.filter(({ text }) => copy.test(text))
  }

  /** Blocks that read memory of the device. */
  get loads() {
    return this.blocks.filter(({ text }) => /\b(?:LD|LDG)\.E\b/.test(text))
  }

  /** Instructions of the shortest way from each block to the next, and from the last to the first. */
  round(stops) {
    return stops.reduce(
      (sum, stop, i) => sum + this.#distance(stop, stops[(i + 1) % stops.length]),
      0,
    )
  }

  #distance(from, to) {
    let lengths = this.#lengths.get(from)
    if (!lengths) {
      lengths = this.#lengthsFrom(from)
      this.#lengths.set(from, lengths)
    }
    return lengths.get(to) ?? Number.POSITIVE_INFINITY
  }

  /** Instructions from a block's beginning to those of all others, and back to its own. */
  #lengthsFrom(from) {
    const lengths = new Map()
    const waiting = [[from, 0]]
    for (let i = 0; i < waiting.length; i++) {
      const [block, before] = waiting[i]
      if (i > 0 && before > lengths.get(block)) continue // a shorter way was found since
      const after = before + block.lines.length
      for (const next of this.#next.get(block)) {
        if (after >= (lengths.get(next) ?? Number.POSITIVE_INFINITY)) continue
        lengths.set(next, after)
        waiting.push([next, after])
      }
    }
    return lengths
  }
}
