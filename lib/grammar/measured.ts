/** Texts of a pattern that have a length, as items of an automaton. */
import { DONE, Grammar, Item, Literal, type StateSet, tooManyWays } from './automaton.js'
import type { Budget } from './budget.js'

/**
 * A JSON text of a pattern (`patternText`) that has [min, max] characters; null where there is none. An
 * escape counts as one.
 *
 * The text is followed in an automaton of its own, with how many characters it has. Lengths that it may
 * still gain are sets of bits, so that no way is taken that ends nowhere. Throws what the budget throws.
 */
export function measuredText(text: Item, min: number, max: number, budget: Budget): Item | null {
  const lengths = new Lengths(text, Number.isFinite(max) ? max + 1 : min, budget)
  const wanted = lengths.between(min, max)
  const { start } = new Grammar(text)
  if ((lengths.ofSet(start) & wanted) === 0n) return null
  /** By how many characters there are: whether the text can still get a length that is wanted. */
  const possible = new Map<StateSet, (boolean | undefined)[]>()
  const isPossible = (set: StateSet, n: number): boolean => {
    const known = possible.get(set) ?? []
    possible.set(set, known)
    known[n] ??= (lengths.after(lengths.ofSet(set), n) & wanted) !== 0n
    return known[n]
  }
  const items = new Map<StateSet, Record<Place, Measured[]>>()
  const at = (set: StateSet, n: number, place: Place): Measured => {
    const known = items.get(set) ?? { before: [], inside: [], escaped: [] }
    items.set(set, known)
    known[place][n] ??= new Measured((byte) => step(set, n, place, byte))
    return known[place][n]
  }
  const step = (set: StateSet, nBefore: number, place: Place, byte: number) => {
    lengths.begin()
    const next = set.next(byte)
    if (!next) return null
    if (place === 'before') return at(next, 0, 'inside')
    if (place === 'escaped') return at(next, nBefore, 'inside')
    const isEnd = byte === 0x22
    const isContinuation = byte >> 6 === 0b10
    const n = isEnd || isContinuation ? nBefore : Math.min(nBefore + 1, lengths.cap)
    if (!isPossible(next, n)) return null
    if (isEnd) return DONE
    return at(next, n, byte === 0x5c ? 'escaped' : 'inside')
  }
  return at(start, 0, 'before')
}

type Place = 'before' | 'inside' | 'escaped'

class Measured extends Item {
  readonly #step: (byte: number) => Item | typeof DONE | null

  constructor(step: (byte: number) => Item | typeof DONE | null) {
    super()
    this.#step = step
  }

  override read(byte: number): Item | typeof DONE | null {
    return this.#step(byte)
  }
}

/** Words of 64 bits in sums of lengths that take as long as one part of a schema. */
const WORDS_A_PART = 128
/** Words that sums may take for one byte of a text: some 10 ms. */
const MAX_WORK = 1 << 22

/** How many characters the texts of items have: bit n for n of them, bit `cap` for that many and more. */
class Lengths {
  readonly cap: number
  readonly #mask: bigint
  /** Items that begin a character, or stand for others; what is none of them is within a character. */
  readonly #ofItems = new Map<Item, bigint>()
  readonly #ofSets = new Map<StateSet, bigint>()
  /** Words since the byte that is read, or the item that is measured, was begun with. */
  #work = 0

  constructor(root: Item, cap: number, budget: Budget) {
    this.cap = cap
    this.#mask = (1n << BigInt(cap)) - 1n
    // Items are made after those that they stand for, but for loops of one.
    for (const item of itemsBelow(root).sort((a, b) => a.id - b.id)) {
      this.begin()
      this.#measure(item)
      budget.spend(1 + Math.floor(this.#work / WORDS_A_PART))
    }
    this.begin()
  }

  /** Another byte is read. */
  begin(): void {
    this.#work = 0
  }

  between(min: number, max: number): bigint {
    const last = Number.isFinite(max) ? max : this.cap
    return ((1n << BigInt(last - min + 1)) - 1n) << BigInt(min)
  }

  /** Of the texts that a set of stacks goes on with. */
  ofSet(set: StateSet): bigint {
    let lengths = this.#ofSets.get(set)
    if (lengths === undefined) {
      lengths = set.isAccepting ? 1n : 0n
      for (const [top, below] of set.belows) lengths |= this.#sum(this.#of(top), this.ofSet(below))
      this.#ofSets.set(set, lengths)
    }
    return lengths
  }

  /** Lengths with so many characters before. */
  after(lengths: bigint, count: number): bigint {
    const all = lengths << BigInt(count)
    return (all & this.#mask) | (all > this.#mask ? this.#mask + 1n : 0n)
  }

  #of(item: Item): bigint {
    return this.#ofItems.get(item) ?? 1n
  }

  #measure(item: Item): void {
    const lists = item.expand()
    if (!lists) {
      this.#ofItems.set(item, item instanceof Literal ? 1n : this.after(1n, 1))
      return
    }
    // One that names itself, of these alone, is anything so many times: those that are there, once more.
    this.#ofItems.set(item, 0n)
    const isLoop = lists.some((list) => list.includes(item))
    const once = lists.flatMap((list) => {
      const others = isLoop ? list.filter((one) => one !== item) : list
      return [others.reduce((sum, one) => this.#sum(sum, this.#of(one)), 1n)]
    })
    let lengths = once.reduce((all, one) => all | one, 0n)
    for (let before = 0n; isLoop && lengths !== before; ) {
      before = lengths
      lengths = this.#sum(lengths, lengths)
    }
    this.#ofItems.set(item, lengths)
  }

  /** Of one text after another. */
  #sum(a: bigint, b: bigint): bigint {
    const [few, many] = a < b ? [a, b] : [b, a]
    const bits = few.toString(2)
    const nWords = 1 + (this.cap >> 6)
    this.#work += nWords
    let sum = 0n
    // Run by run: so many lengths in a row, each shift doubles how many of them are in.
    for (const { 0: run, index } of bits.matchAll(/1+/g)) {
      let spread = many
      for (let n = 1; n < run.length; ) {
        const more = Math.min(n, run.length - n)
        spread |= spread << BigInt(more)
        n += more
        this.#work += nWords
      }
      sum |= spread << BigInt(bits.length - index - run.length)
      this.#work += nWords
      if (this.#work > MAX_WORK) throw tooManyWays()
    }
    return this.after(sum, 0)
  }
}

/** An item, what it stands for, and so on. */
function itemsBelow(root: Item): Item[] {
  const items = new Set([root])
  for (const item of items)
    for (const list of item.expand() ?? []) for (const one of list) items.add(one)
  return [...items]
}
