/**
 * A pushdown automaton over bytes. A stack is a linked list of items, the top first; an item reads
 * bytes, or stands for other items in their place. Where several ways are open, all are followed:
 * a state is a set of stacks. Items, stacks and sets are the same object when they are equal, so that
 * a set remembers where each byte leads.
 */

/** Something on the stack. */
export abstract class Item {
  static #count = 0
  readonly id = Item.#count++
  /**
   * Stacks with this on top, by what is below. Weak: items that all grammars share (white space, any
   * text) would keep the stacks of every grammar there ever was.
   */
  readonly stacks = new WeakMap<Stack, Stack>()
  /** The stack of this alone. */
  bottom: Stack | null = null

  /** What it stands for: lists of items that may take its place; null for one that reads bytes. */
  expand(): readonly (readonly Item[])[] | null {
    return null
  }

  /** What takes its place after a byte: an item, DONE, or null where the byte may not come. */
  read(_byte: number): Item | typeof DONE | null {
    return null
  }

  /** Whether one that reads bytes may end here without another. */
  get mayEnd(): boolean {
    return false
  }
}

/** The item is complete. */
export const DONE = Symbol('done')

/** A top item and what is below it; null is the empty stack, at which the text is complete. */
export class Stack {
  private static count = 1
  readonly id = Stack.count++

  private constructor(
    readonly top: Item,
    readonly below: Stack | null,
  ) {}

  static of(top: Item, below: Stack | null): Stack {
    if (below === null) {
      top.bottom ??= new Stack(top, null)
      return top.bottom
    }
    let stack = top.stacks.get(below)
    if (!stack) {
      stack = new Stack(top, below)
      top.stacks.set(below, stack)
    }
    return stack
  }
}

/** How deep a text may nest. */
const MAX_DEPTH = 64
const MAX_STACK = MAX_DEPTH * 8

/** A set of stacks whose tops read bytes. */
export class StateSet {
  readonly #grammar: Grammar
  readonly #stacks: readonly Stack[]
  /** Whether the text may end here. */
  readonly isAccepting: boolean
  /** By byte, as far as it was asked for. */
  readonly #next: (StateSet | null | undefined)[] = new Array(256)

  /** @internal Use `Grammar.start` and `next`. */
  constructor(grammar: Grammar, stacks: readonly Stack[], isAccepting: boolean) {
    this.#grammar = grammar
    this.#stacks = stacks
    this.isAccepting = isAccepting
  }

  /** How many stacks it has: what a byte that was not asked for before costs. */
  get width(): number {
    return this.#stacks.length
  }

  /** Whether no byte can follow. */
  get isFinal(): boolean {
    return this.#stacks.length === 0
  }

  /** The state after a byte; null where it may not come. */
  next(byte: number): StateSet | null {
    let next = this.#next[byte]
    if (next === undefined) {
      next = this.#step(byte)
      this.#next[byte] = next
    }
    return next
  }

  #step(byte: number): StateSet | null {
    const stacks: (Stack | null)[] = []
    for (const { top, below } of this.#stacks) {
      const after = top.read(byte)
      if (after === DONE) stacks.push(below)
      else if (after) stacks.push(Stack.of(after, below))
    }
    return stacks.length === 0 ? null : this.#grammar.close(stacks)
  }
}

/** What a text must be: one item, and all states that reading it has led to. */
export class Grammar {
  readonly start: StateSet
  readonly #sets = new Map<string, StateSet>()

  constructor(root: Item) {
    this.start = this.close([Stack.of(root, null)])
  }

  /** How many states there have been so far. */
  get size(): number {
    return this.#sets.size
  }

  /** @internal The set of everything that stacks stand for. */
  close(stacks: readonly (Stack | null)[]): StateSet {
    const reading = new Set<Stack>()
    const seen = new Set<Stack | null>()
    let isAccepting = false
    const open = [...stacks]
    for (let stack = open.pop(); stack !== undefined; stack = open.pop()) {
      if (seen.has(stack)) continue
      seen.add(stack)
      if (stack === null) {
        isAccepting = true
        continue
      }
      const choices = stack.top.expand()
      if (choices === null) {
        reading.add(stack)
        if (stack.top.mayEnd) open.push(stack.below)
        continue
      }
      for (const items of choices) {
        const below = items.reduceRight<Stack | null>(
          (rest, item) => Stack.of(item, rest),
          stack.below,
        )
        if (depthOf(below) <= MAX_STACK) open.push(below)
      }
    }
    const all = [...reading].sort((a, b) => a.id - b.id)
    const key = `${isAccepting}:${all.map(({ id }) => id).join()}`
    let set = this.#sets.get(key)
    if (!set) {
      set = new StateSet(this, all, isAccepting)
      this.#sets.set(key, set)
    }
    return set
  }
}

function depthOf(stack: Stack | null): number {
  let depth = 0
  for (let rest = stack; rest; rest = rest.below) depth++
  return depth
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

/** The bytes of one of many texts, none of them empty: those that begin as what was read lie side by side. */
export class OneOf extends Item {
  /** In the order of their bytes, each once. */
  readonly #texts: readonly Uint8Array[]
  readonly #first: number
  readonly #last: number
  readonly #at: number
  readonly #next = new Map<number, OneOf | typeof DONE | null>()

  private constructor(texts: readonly Uint8Array[], first: number, last: number, at: number) {
    super()
    this.#texts = texts
    this.#first = first
    this.#last = last
    this.#at = at
  }

  static of(texts: readonly string[]): OneOf {
    const sorted = [...new Set(texts)].map((text) => Buffer.from(text)).sort(Buffer.compare)
    return new OneOf(sorted, 0, sorted.length, 0)
  }

  override get mayEnd(): boolean {
    return this.#at > 0 && this.#texts[this.#first]?.length === this.#at
  }

  override read(byte: number): Item | typeof DONE | null {
    let next = this.#next.get(byte)
    if (next === undefined) {
      next = this.#after(byte)
      this.#next.set(byte, next)
    }
    return next
  }

  #after(byte: number): OneOf | typeof DONE | null {
    const at = this.#at
    const first = this.#place(byte)
    const last = this.#place(byte + 1)
    if (first === last) return null
    const isWhole = last === first + 1 && this.#texts[first]?.length === at + 1
    return isWhole ? DONE : new OneOf(this.#texts, first, last, at + 1)
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
  #choices: readonly (readonly Item[])[] | null = null

  constructor(make: () => readonly (readonly Item[])[]) {
    super()
    this.#make = make
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

  constructor(
    state: S,
    step: (state: S, byte: number) => S | typeof DONE | null,
    ends: (state: S) => boolean,
    family = new Map<S, Machine<S>>(),
  ) {
    super()
    this.#state = state
    this.#step = step
    this.#ends = ends
    this.#family = family
    family.set(state, this)
  }

  override get mayEnd(): boolean {
    return this.#ends(this.#state)
  }

  override read(byte: number): Item | typeof DONE | null {
    const next = this.#step(this.#state, byte)
    if (next === null || next === DONE) return next
    return this.#family.get(next) ?? new Machine(next, this.#step, this.#ends, this.#family)
  }
}
