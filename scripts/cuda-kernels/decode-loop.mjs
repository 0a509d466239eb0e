// Instructions that mixedAttention issues for a code in its steady state, counted in what a disassembler
// makes of a cubin: the shortest way round its loop over units.
import { spawnSync } from 'node:child_process'

const disassembler = process.env.CUOBJDUMP ?? 'cuobjdump'

/** Whether machine code can be read here: cuobjdump of the CUDA toolkit, or the one that CUOBJDUMP names. */
export function canDisassemble() {
  return spawnSync(disassembler, ['--version']).status === 0
}

/** Codes of K and V that are told apart, as mixedAttention unpacks them. */
const kForms = [
  // what masks a field of K and of V, and is in no other form; tokens of a unit
  { formats: 'K and V u2', keys: '0x30003', without: '0x40004', tokens: 64 },
  { formats: 'K u3, V u2', keys: '0x40004', values: '0x30003', tokens: 32 },
  { formats: 'K and V u4', keys: '0xf000f', tokens: 32 },
]

/**
 * For each form of packed cache: the instructions of one unit of a warp at head_dim `headDim`, and how
 * many of its codes a lane has. The way round the loop goes through the matrix products of K, those
 * of V and the copy of a later unit; what happens rarely (another segment, a larger maximum, a masked
 * end) is not on the shortest way.
 *
 * @param {string} cubin a file
 * @param {string} symbol the kernel's, mangled
 * @param {number} headDim
 * @returns {{ formats: string, instructions: number, codes: number }[]}
 */
export function decodeLoops(cubin, symbol, headDim) {
  const { status, stdout, stderr } = spawnSync(
    disassembler,
    ['--dump-sass', '--function', symbol, cubin],
    { encoding: 'utf8', maxBuffer: 1 << 28 },
  )
  if (status !== 0) throw new Error(`${disassembler} ${cubin}: ${stderr}`)
  const graph = new Graph(instructionsOf(stdout))
  return kForms.flatMap(({ formats, keys, without, values = keys, tokens }) => {
    // A tile of 16 tokens takes headDim / 16 products for K and as many for V.
    const products = ((tokens / 16) * headDim) / 16
    const find = (wanted) =>
      graph.blocks.filter(
        (block) =>
          block.products === products &&
          block.text.includes(wanted) &&
          !(without && block.text.includes(without)),
      )
    const ways = find(keys).flatMap((key) =>
      find(values)
        .filter((value) => value !== key)
        .flatMap((value) => graph.copies.map((copy) => graph.round([key, value, copy]))),
    )
    const instructions = Math.min(...ways)
    const codes = (2 * tokens * headDim) / 32
    return Number.isFinite(instructions) ? [{ formats, instructions, codes }] : []
  })
}

/** Lines of a listing that are instructions: where, and what. */
function instructionsOf(listing) {
  return [...listing.matchAll(/\/\*([0-9a-f]{4,6})\*\/\s+(.*?)\s*;/g)].map(([, address, text]) => ({
    address: Number.parseInt(address, 16),
    text,
  }))
}

const kBranch = /\bBRA\b/
const kEnds = /\b(?:BRA|EXIT|BRX|RET|BSYNC)\b/
const targetOf = (text) => Number.parseInt(/0x([0-9a-f]+)\s*$/.exec(text)?.[1] ?? 'x', 16)

/** Basic blocks, and where each goes on. */
class Graph {
  blocks
  #next = new Map()

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
      block.products = block.text.match(/\bHMMA\b/g)?.length ?? 0
      const { address, text } = block.lines.at(-1)
      const isConditional = text.startsWith('@')
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
  }

  /** Blocks that copy into shared memory without waiting: in bulk from Hopper on, else by lanes. */
  get copies() {
    const bulk = this.blocks.filter(({ text }) => /\bUBLKCP\b/.test(text))
    return bulk.length > 0 ? bulk : this.blocks.filter(({ text }) => /\bLDGSTS\b/.test(text))
  }

  /** Instructions of the shortest way from each block to the next, and from the last to the first. */
  round(stops) {
    return stops.reduce(
      (sum, stop, i) => sum + this.#distance(stop, stops[(i + 1) % stops.length]),
      0,
    )
  }

  #distance(from, to) {
    const best = new Map([[from, 0]])
    const waiting = [from]
    while (waiting.length > 0) {
      waiting.sort((a, b) => best.get(b) - best.get(a))
      const block = waiting.pop()
      if (block === to && block !== from) return best.get(to)
      for (const next of this.#next.get(block)) {
        const length = best.get(block) + block.lines.length
        if (length < (best.get(next) ?? Number.POSITIVE_INFINITY)) {
          if (!best.has(next)) waiting.push(next)
          best.set(next, length)
        }
      }
    }
    return Number.POSITIVE_INFINITY
  }
}
