import type { GrammarState } from './automaton.js'

/** Work that pauses every so often: whoever drives it decides when it goes on. */
export type Steps<T = void> = Generator<undefined, T, undefined>

/** Tokens between two pauses, or nodes whose states are known: well below a millisecond. */
const TOKENS_A_STEP = 256
const NODES_A_STEP = 512

/** States whose tokens are remembered: 16 KiB each with a vocabulary of 128k. */
const MAX_MASKS = 512

/** The nodes of a trie in preorder. */
interface Nodes {
  readonly count: number
  readonly byte: Uint8Array
  /** From 1 on. */
  readonly depth: Uint16Array
  /** The node behind those below this one. */
  readonly end: Int32Array
  /** Where the tokens that end here begin in `ids`; those of the next node follow. */
  readonly firstToken: Int32Array
  /** Tokens by their bytes. */
  readonly ids: Int32Array
}

/**
 * The tokens of a vocabulary, by their bytes, and which of them states of grammars allow. It is made
 * in pieces, when it is first needed.
 */
export class TokenTrie {
  /** How many ids there are. */
  readonly size: number
  /** The bytes of all tokens, one after the other, and where each begins. */
  #bytes = new Uint8Array(1 << 16)
  readonly #starts: Int32Array
  #nodes: Nodes | null = null
  readonly #building: Steps
  /**
   * What states allow, those of all grammars, by their ids: states would hold their grammars. The one that was
   * asked for longest ago comes first.
   */
  readonly #masks = new Map<number, Uint8Array>()

  /** `bytesOf`: of each token; null for those that are no text, which no grammar allows. */
  constructor(size: number, bytesOf: (id: number) => Uint8Array | null) {
    this.size = size
    this.#starts = new Int32Array(size + 1)
    this.#building = this.#build(bytesOf)
  }

  /** The bytes of a token; it has to be built. */
  bytesOf(id: number): Uint8Array {
    return this.#bytes.subarray(this.#starts[id], this.#starts[id + 1])
  }

  /** Which tokens a state allows: one bit each, of as many bytes as they need. */
  *mask(state: GrammarState): Steps<Uint8Array> {
    while (!this.#nodes) {
      // One builds for all who wait.
      this.#building.next()
      yield
    }
    let mask = this.#masks.get(state.id)
    this.#masks.delete(state.id)
    mask ??= yield* this.#walk(this.#nodes, state)
    this.#masks.set(state.id, mask)
    const [oldest] = this.#masks.keys()
    if (this.#masks.size > MAX_MASKS) this.#masks.delete(oldest as number)
    return mask
  }

  *#walk(
    { count, byte, depth, end, firstToken, ids }: Nodes,
    start: GrammarState,
  ): Steps<Uint8Array> {
    const mask = new Uint8Array(Math.ceil(this.size / 8))
    /** The states along the way to the running node. */
    const states: GrammarState[] = [start]
    let nLeft = NODES_A_STEP
    for (let node = 0; node < count; ) {
      const at = depth[node] as number
      const state = states[at - 1] as GrammarState
      // A byte that was not asked for before may take as long as all of them.
      if (--nLeft === 0 || !state.knows(byte[node] as number)) {
        yield
        nLeft = NODES_A_STEP
      }
      const next = state.next(byte[node] as number)
      if (!next) {
        node = end[node] as number
        continue
      }
      states[at] = next
      const last = firstToken[node + 1] as number
      for (let i = firstToken[node] as number; i < last; i++) {
        const id = ids[i] as number
        mask[id >> 3] = (mask[id >> 3] as number) | (1 << (id & 7))
      }
      node++
    }
    return mask
  }

  *#build(bytesOf: (id: number) => Uint8Array | null): Steps {
    const starts = this.#starts
    for (let id = 0; id < this.size; id++) {
      if (id % TOKENS_A_STEP === TOKENS_A_STEP - 1) yield
      this.#append(id, bytesOf(id) ?? new Uint8Array(0))
    }
    const bytes = this.#bytes
    const ids = yield* this.#sorted()
    const nBytes = starts[this.size] as number
    const nodes = {
      byte: new Uint8Array(nBytes),
      depth: new Uint16Array(nBytes),
      end: new Int32Array(nBytes),
      firstToken: new Int32Array(nBytes + 1),
    }
    let count = 0
    const path: number[] = []
    const leave = (depth: number) => {
      while (path.length > depth) nodes.end[path.pop() as number] = count
    }
    for (let i = 0; i < ids.length; i++) {
      if (i % TOKENS_A_STEP === TOKENS_A_STEP - 1) yield
      const first = starts[ids[i] as number] as number
      const length = (starts[(ids[i] as number) + 1] as number) - first
      let shared = 0
      while (shared < path.length && shared < length) {
        if (nodes.byte[path[shared] as number] !== bytes[first + shared]) break
        shared++
      }
      leave(shared)
      for (let at = shared; at < length; at++) {
        nodes.byte[count] = bytes[first + at] as number
        nodes.depth[count] = at + 1
        nodes.firstToken[count] = i
        path.push(count++)
      }
      nodes.firstToken[count] = i + 1
    }
    leave(0)
    this.#nodes = {
      count,
      ids,
      byte: nodes.byte.slice(0, count),
      depth: nodes.depth.slice(0, count),
      end: nodes.end.slice(0, count),
      firstToken: nodes.firstToken.slice(0, count + 1),
    }
  }

  #append(id: number, token: Uint8Array): void {
    const start = this.#starts[id] as number
    const end = start + token.length
    if (end > this.#bytes.length) {
      const more = new Uint8Array(Math.max(end, 2 * this.#bytes.length))
      more.set(this.#bytes)
      this.#bytes = more
    }
    this.#bytes.set(token, start)
    this.#starts[id + 1] = end
  }

  /** The ids of tokens that have bytes, by these: dealt out by the first two, then each pile by itself. */
  *#sorted(): Steps<Int32Array> {
    const bytes = this.#bytes
    const starts = this.#starts
    const pileOf = (id: number) => {
      const start = starts[id] as number
      const length = (starts[id + 1] as number) - start
      if (length === 0) return -1
      return ((bytes[start] as number) << 8) | (length > 1 ? (bytes[start + 1] as number) : 0)
    }
    const places = new Int32Array((1 << 16) + 1)
    for (let id = 0; id < this.size; id++) {
      const pile = pileOf(id)
      if (pile >= 0) places[pile + 1] = (places[pile + 1] as number) + 1
    }
    for (let pile = 0; pile < 1 << 16; pile++) {
      places[pile + 1] = (places[pile + 1] as number) + (places[pile] as number)
    }
    const ids = new Int32Array(places[1 << 16] as number)
    const ends = places.slice()
    for (let id = 0; id < this.size; id++) {
      const pile = pileOf(id)
      if (pile < 0) continue
      const place = ends[pile] as number
      ids[place] = id
      ends[pile] = place + 1
    }
    yield
    const compare = (a: number, b: number) => {
      const [startA, startB] = [starts[a] as number, starts[b] as number]
      const lengthA = (starts[a + 1] as number) - startA
      const lengthB = (starts[b + 1] as number) - startB
      for (let i = 0; i < lengthA && i < lengthB; i++) {
        const difference = (bytes[startA + i] as number) - (bytes[startB + i] as number)
        if (difference !== 0) return difference
      }
      return lengthA - lengthB || a - b
    }
    let nSorted = 0
    for (let pile = 0; pile < 1 << 16; pile++) {
      const [first, last] = [places[pile] as number, places[pile + 1] as number]
      if (last - first > 1) ids.subarray(first, last).sort(compare)
      nSorted += last - first
      if (nSorted < TOKENS_A_STEP) continue
      yield
      nSorted = 0
    }
    return ids
  }
}
