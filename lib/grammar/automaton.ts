import { ZipCacheError } from '../errors.js'

/**
 * A pushdown automaton over bytes. The top item of a stack reads bytes, or stands for other items in
 * its place. Where several ways are open, all are followed: a state is a set of stacks. Those with
 * the same top are one entry of it, the top over the set of what is below, so that ways which differ
 * in few items share the others. Sets are the same object when they are equal, so that one
 * remembers where each byte leads.
 */

/** Something on the stack. */
export abstract class Item {
  static #count = 0
  readonly id = Item.#count++

  /** What it stands for: lists of items that may take its place; null for one that reads bytes. */
  expand(): readonly (readonly Item[])[] | null {
    return null
  }

  /** What takes its place after a byte: an item, DONE, or null where the byte may not come. */
  read(_byte: number): Item | typeof DONE | null {
    return null
  }

  /**
   * Whether an item that reads bytes may end here without another byte. One that stands for others
   * may leave it false: what it stands for is followed anyway, only in more steps.
   */
  get mayEnd(): boolean {
    return false
  }

  /** Whether it is white space that says nothing. */
  get isBlank(): boolean {
    return false
  }
}

/** The item is complete. */
export const DONE = Symbol('done')

/** How deep a text may nest. */
const MAX_DEPTH = 64
const MAX_STACK = MAX_DEPTH * 8

/** Tops of a set that are asked for all bytes that may come: more would take milliseconds. */
const MAX_ASKED = 32

/** Entries of sets that one byte may make and look at: some 10 ms. */
const MAX_WORK = 1 << 14
/** Entries that a grammar remembers at a time, those of each set and one more: some 40 MB. */
const MAX_SIZE = 1 << 15

let nStates = 0

/** One that no other state of any grammar has. */
export function nextStateId(): number {
  return nStates++
}

/** How far a text has come, and what may follow. */
export interface GrammarState {
  readonly id: number
  /** Whether the text may end here. */
  readonly isAccepting: boolean
  /** Whether no byte can follow. */
  readonly isFinal: boolean
  /** The only byte that may come, as far as that is known; null: there is another one, or none. */
  readonly onlyByte: number | null
  /** Whether it was found out before where a byte leads; it is looked up then. */
  knows(byte: number): boolean
  /** The state after a byte; null where it may not come. */
  next(byte: number): GrammarState | null
}

/** A set of stacks. */
export class StateSet implements GrammarState {
  /** @internal */
  readonly id = nextStateId()
  /** Whether the text may end here: the empty stack is one of them. */
  readonly isAccepting: boolean
  /** @internal By each top, what is below it. */
  readonly belows: ReadonlyMap<Item, StateSet>
  /** @internal Items of the shortest stack. */
  readonly depth: number
  /** @internal The sets of this below one item. */
  readonly above = new Map<Item, StateSet>()
  readonly #grammar: Grammar
  /** By byte, as far as it was asked for. */
  #next: (StateSet | null | undefined)[] = []
  #onlyByte: number | null | undefined

  /** @internal Use `Grammar.start` and `next`. */
  constructor(grammar: Grammar, isAccepting: boolean, belows: ReadonlyMap<Item, StateSet>) {
    this.#grammar = grammar
    this.isAccepting = isAccepting
    this.belows = belows
    let depth = isAccepting ? 0 : Number.POSITIVE_INFINITY
    for (const below of belows.values()) depth = Math.min(depth, below.depth + 1)
    this.depth = depth
  }

  /** Whether no byte can follow: as behind a number by itself that has all the digits it may have. */
  get isFinal(): boolean {
    if (this.belows.size === 0 || !this.isAccepting) return this.belows.size === 0
    for (let byte = 0; byte < 256; byte++) if (this.next(byte)) return false
    return true
  }

  /**
   * The only byte that may come, white space between tokens left out; null where there is another one,
   * where the text may end, or where too many ways are open to find out. Tops alone are asked: `next` may
   * find that it leads nowhere.
   */
  get onlyByte(): number | null {
    if (this.#onlyByte === undefined) this.#onlyByte = this.#findOnlyByte()
    return this.#onlyByte
  }

  #findOnlyByte(): number | null {
    if (this.isAccepting || this.belows.size > MAX_ASKED) return null
    let only: number | null = null
    for (const top of this.belows.keys()) {
      if (top.isBlank) continue
      for (let byte = 0; byte < 256; byte++) {
        if (byte === only || top.read(byte) === null) continue
        if (only !== null) return null
        only = byte
      }
    }
    return only
  }

  /** @internal Forgets where bytes lead, and what is above it and all that is below it. */
  forget(): void {
    const sets = new Set<StateSet>([this])
    for (const set of sets) {
      set.#next = []
      set.above.clear()
      for (const below of set.belows.values()) sets.add(below)
    }
  }

  /** Whether it was found out before where a byte leads; it is looked up then. */
  knows(byte: number): boolean {
    return this.#next[byte] !== undefined
  }

  /**
   * The state after a byte; null where it may not come.
   *
   * Throws `ERR_ZC_UNSUPPORTED` where too many ways are open to follow all.
   */
  next(byte: number): StateSet | null {
    let next = this.#next[byte]
    if (next === undefined) {
      next = this.#grammar.step(this, byte)
      this.#next[byte] = next
    }
    return next
  }
}

/** What a text must be: one item, and all states that reading it has led to. */
export class Grammar {
  readonly start: StateSet
  /** By their entries; those of one are found from what is below. */
  readonly #sets = new Map<string, StateSet>()
  #size = 0
  #work = 0
  /** Work at which the running step is given up. */
  #mostWork = MAX_WORK
  /** Of the running step. */
  readonly #unions = new Map<string, StateSet>()

  /** `nParts`: how many it was made of, for those who have several. */
  constructor(
    root: Item,
    readonly nParts = 0,
  ) {
    const empty = new StateSet(this, true, new Map())
    this.start = this.#close([this.#push(root, empty)])
  }

  /** How many entries its sets have so far. */
  get size(): number {
    return this.#size
  }

  /** How many entries of sets were made and looked at so far. */
  get work(): number {
    return this.#work
  }

  /** @internal Use `StateSet.next`. */
  step(from: StateSet, byte: number): StateSet | null {
    this.#mostWork = this.#work + MAX_WORK
    this.#unions.clear()
    if (this.#size > MAX_SIZE) this.#forget(from)
    const { belows } = from
    const sets: StateSet[] = []
    for (const [top, below] of belows) {
      const after = top.read(byte)
      if (after === DONE) sets.push(below)
      else if (after) sets.push(this.#push(after, below))
    }
    const next = this.#close(sets)
    return next.isFinal && !next.isAccepting ? null : next
  }

  /** Begins anew: what it knows of other states goes with those who hold them. */
  #forget(state: StateSet): void {
    this.#size = 0
    this.#sets.clear()
    this.start.forget()
    state.forget()
  }

  /** The set of everything that stacks stand for: all tops read bytes. */
  #close(sets: readonly StateSet[]): StateSet {
    let isAccepting = false
    const closed = new Map<Item, StateSet>()
    /** What else is below tops, not looked at yet. */
    const more = new Map<Item, StateSet[]>()
    /** Those tops by depth: the lower ones first, since the higher ones wait for what they push. */
    const open: Set<Item>[] = []
    let depth = 0
    const add = (top: Item, below: StateSet) => {
      const belows = more.get(top)
      if (belows) belows.push(below)
      else more.set(top, [below])
      open[below.depth] ??= new Set()
      open[below.depth]?.add(top)
      depth = Math.min(depth, below.depth)
    }
    const addAll = (set: StateSet) => {
      isAccepting ||= set.isAccepting
      this.#spend(set.belows.size)
      for (const [top, below] of set.belows) add(top, below)
    }
    sets.forEach(addAll)
    while (depth < open.length) {
      const [top] = open[depth] ?? []
      if (!top) {
        depth++
        continue
      }
      open[depth]?.delete(top)
      const known = closed.get(top)
      const below = this.#union([...(known ? [known] : []), ...(more.get(top) ?? [])])
      more.delete(top)
      if (below === known) continue
      closed.set(top, below)
      if (top.mayEnd) addAll(below)
      for (const [first, ...rest] of top.expand() ?? []) {
        if (!first) addAll(below)
        else {
          const pushed = rest.reduceRight((set, item) => this.#push(item, set), below)
          if (pushed.depth < MAX_STACK) add(first, pushed)
        }
      }
    }
    for (const top of closed.keys()) if (top.expand()) closed.delete(top)
    return this.#setOf(isAccepting, closed)
  }

  #union(sets: readonly StateSet[]): StateSet {
    const [first, ...others] = new Set(sets)
    if (others.length === 0) return first as StateSet
    const all = [first as StateSet, ...others].sort((a, b) => a.id - b.id)
    const key = all.map(({ id }) => id).join()
    let union = this.#unions.get(key)
    if (!union) {
      const belows = new Map<Item, StateSet[]>()
      for (const set of all) {
        this.#spend(set.belows.size)
        for (const [top, below] of set.belows) {
          const others = belows.get(top)
          if (others) others.push(below)
          else belows.set(top, [below])
        }
      }
      union = this.#setOf(
        all.some(({ isAccepting }) => isAccepting),
        new Map([...belows].map(([top, below]) => [top, this.#union(below)])),
      )
      this.#unions.set(key, union)
    }
    return union
  }

  #push(item: Item, below: StateSet): StateSet {
    let set = below.above.get(item)
    if (!set) {
      set = this.#made(false, new Map([[item, below]]))
      below.above.set(item, set)
    }
    return set
  }

  #setOf(isAccepting: boolean, belows: ReadonlyMap<Item, StateSet>): StateSet {
    const [one] = belows
    if (one && belows.size === 1 && !isAccepting) return this.#push(...one)
    const entries = [...belows].map(([top, below]) => `${top.id}.${below.id}`).sort()
    const key = `${isAccepting}:${entries.join()}`
    let set = this.#sets.get(key)
    if (!set) {
      set = this.#made(isAccepting, belows)
      this.#sets.set(key, set)
    }
    return set
  }

  #made(isAccepting: boolean, belows: ReadonlyMap<Item, StateSet>): StateSet {
    this.#spend(belows.size)
    this.#size += belows.size + 1
    return new StateSet(this, isAccepting, belows)
  }

  #spend(nEntries: number): void {
    this.#work += nEntries
    if (this.#work > this.#mostWork) throw tooManyWays()
  }
}

/** What is thrown where one byte would take too long. */
export function tooManyWays(): ZipCacheError {
  return new ZipCacheError(
    'ERR_ZC_UNSUPPORTED',
    'json: the schema leaves more ways open at once than can be followed, which is not supported',
    { argument: 'json' },
  )
}

// ---- items that every grammar is made of ----

/** The bytes of a text. */
export class Literal extends Item {
  readonly #bytes: Uint8Array
  readonly #at: number
  #next: Literal | null = null

  constructor(text: string | Uint8Array, at = 0) {
    super()
    this.#bytes = typeof text === 'string' ? Buffer.from(text) : text
    this.#at = at
  }

  override read(byte: number): Item | typeof DONE | null {
    if (byte !== this.#bytes[this.#at]) return null
    if (this.#at + 1 === this.#bytes.length) return DONE
    this.#next ??= new Literal(this.#bytes, this.#at + 1)
    return this.#next
  }
}

/** Texts in the order of their bytes, each once. */
export function inByteOrder(texts: readonly string[]): Buffer[] {
  return [...new Set(texts)].map((text) => Buffer.from(text)).sort(Buffer.compare)
}

/**
 * The bytes of one of many texts, none of them empty. The texts are sorted, so those that begin with
 * what was read so far lie side by side.
 */
export class OneOf extends Item {
  readonly #texts: readonly Uint8Array[]
  readonly #after: ((text: Uint8Array) => Item) | null
  readonly #first: number
  readonly #last: number
  readonly #at: number
  readonly #next = new Map<number, Item | typeof DONE>()

  /** `texts`: as `inByteOrder` has them. `after`: what follows each, where none begins another. */
  constructor(
    texts: readonly Uint8Array[],
    after: ((text: Uint8Array) => Item) | null = null,
    [first, last, at]: readonly [number, number, number] = [0, texts.length, 0],
  ) {
    super()
    this.#texts = texts
    this.#after = after
    this.#first = first
    this.#last = last
    this.#at = at
  }

  override get mayEnd(): boolean {
    return this.#at > 0 && this.#texts[this.#first]?.length === this.#at
  }

  override read(byte: number): Item | typeof DONE | null {
    const known = this.#next.get(byte)
    if (known !== undefined) return known
    const first = this.#place(byte)
    const last = this.#place(byte + 1)
    if (first === last) return null
    const next = this.#follow(first, last)
    this.#next.set(byte, next)
    return next
  }

  #follow(first: number, last: number): Item | typeof DONE {
    const at = this.#at + 1
    const text = this.#texts[first] as Uint8Array
    const isWhole = last === first + 1 && text.length === at
    if (!isWhole) return new OneOf(this.#texts, this.#after, [first, last, at])
    return this.#after ? this.#after(text) : DONE
  }

  /** The first text whose next byte is none below this one; those that end here come before. */
  #place(byte: number): number {
    let low = this.#first
    let high = this.#last
    while (low < high) {
      const middle = (low + high) >> 1
      if (((this.#texts[middle] as Uint8Array)[this.#at] ?? -1) < byte) low = middle + 1
      else high = middle
    }
    return low
  }
}

/** One of several lists of items, made when it is first asked for: they may name each other. */
export class Choice extends Item {
  readonly #make: () => readonly (readonly Item[])[]
  readonly #mayEnd: boolean
  #choices: readonly (readonly Item[])[] | null = null

  constructor(make: () => readonly (readonly Item[])[], mayEnd = false) {
    super()
    this.#make = make
    this.#mayEnd = mayEnd
  }

  override get mayEnd(): boolean {
    return this.#mayEnd
  }

  override expand(): readonly (readonly Item[])[] {
    this.#choices ??= this.#make()
    return this.#choices
  }
}

/** An item that reads bytes by a table of states: `step` says where a byte leads. */
export class Machine<S extends string | number> extends Item {
  readonly #state: S
  readonly #step: (state: S, byte: number) => S | typeof DONE | null
  readonly #ends: (state: S) => boolean
  readonly #family: Map<S, Machine<S>>
  readonly #isBlank: boolean

  constructor(
    state: S,
    step: (state: S, byte: number) => S | typeof DONE | null,
    ends: (state: S) => boolean,
    isBlank = false,
    family = new Map<S, Machine<S>>(),
  ) {
    super()
    this.#state = state
    this.#step = step
    this.#ends = ends
    this.#isBlank = isBlank
    this.#family = family
    family.set(state, this)
  }

  override get mayEnd(): boolean {
    return this.#ends(this.#state)
  }

  override get isBlank(): boolean {
    return this.#isBlank
  }

  override read(byte: number): Item | typeof DONE | null {
    const next = this.#step(this.#state, byte)
    if (next === null || next === DONE) return next
    return (
      this.#family.get(next) ??
      new Machine(next, this.#step, this.#ends, this.#isBlank, this.#family)
    )
  }
}
