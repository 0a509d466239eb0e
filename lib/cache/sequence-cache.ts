import { addBytes, type BytesByClass, noBytes } from './bytes-by-class.js'
import type { CacheDemand } from './cache-demand.js'
import type { CacheMemory } from './cache-memory.js'
import type { Format, GroupPlan } from './format.js'
import { type CacheSegment, KvCache } from './kv-cache.js'

/**
 * The cache of one sequence: of each shape that its layers' heads have (`CacheMemory.shapes`) a `KvCache`, all of the
 * same tokens. What changes its tokens changes all of them or, where one finds no memory, none.
 */
export class SequenceCache {
  readonly memory: CacheMemory
  /** (n_shapes) */
  readonly ofShapes: readonly KvCache[]

  private constructor(memory: CacheMemory, ofShapes: readonly KvCache[]) {
    this.memory = memory
    this.ofShapes = ofShapes
  }

  /** An empty one. Throws `ERR_ZC_OUT_OF_MEMORY` when there is no room for its page tables. */
  static make(memory: CacheMemory, tailFormat: Format): SequenceCache {
    const shapes = [...memory.shapes.keys()]
    return new SequenceCache(
      memory,
      allOrNone(shapes, (shape) => new KvCache(memory, shape, tailFormat)),
    )
  }

  /**
   * A cache of the same content, sharing its pages. Not while a group is staged.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY` when there is no room for its page tables.
   */
  fork(): SequenceCache {
    return new SequenceCache(
      this.memory,
      allOrNone(this.ofShapes, (own) => own.fork()),
    )
  }

  /** Any of them, for what all have in common. */
  get #any(): KvCache {
    return this.ofShapes[0] as KvCache
  }

  /** Format of tokens that are not compressed. */
  get tailFormat(): Format {
    return this.#any.tailFormat
  }

  /** Tokens held. */
  get length(): number {
    return this.#any.length
  }

  /** Tokens of the tail. */
  get tailLength(): number {
    return this.#any.tailLength
  }

  /** Position of the tail's first token: everything before is compressed. */
  get tailStart(): number {
    return this.#any.tailStart
  }

  /** Whether some group's KV heads may differ in how many tokens are salient. */
  get isUneven(): boolean {
    return this.#any.isUneven
  }

  /** Whether a group is staged that was not published yet. */
  get isStaged(): boolean {
    return this.#any.isStaged
  }

  /** The words of `memory.tables` where the page tables begin, one for each shape: see `KvCache.start`. */
  get starts(): number[] {
    return this.ofShapes.map(({ start }) => start)
  }

  /** Packed segments, the oldest first: of all (layer, KV head)s, those of one shape after the other's. */
  get segments(): readonly CacheSegment[] {
    const ofShapes = this.ofShapes.map(({ segments }) => segments)
    return this.#any.segments.map((segment, index) => {
      if (!segment.counts || ofShapes.length === 1) return segment
      const counts = ofShapes.flatMap((own) => [...((own[index] as CacheSegment).counts ?? [])])
      const nTokens = counts.reduce((sum, n) => sum + n, 0) / counts.length
      return { ...segment, nTokens, counts: Int32Array.from(counts) }
    })
  }

  /**
   * As `KvCache.extendTail`.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY`, leaving the cache as it was.
   */
  extendTail(nTokens: number): void {
    const extended: KvCache[] = []
    try {
      for (const own of this.ofShapes) {
        own.extendTail(nTokens)
        extended.push(own)
      }
    } catch (error) {
      for (const own of extended) own.shrinkTail(nTokens)
      throw error
    }
  }

  /** As `KvCache.shrinkTail`. */
  shrinkTail(nTokens: number): void {
    for (const own of this.ofShapes) own.shrinkTail(nTokens)
  }

  /**
   * As `KvCache.stage`, of all shapes.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY`, leaving the cache as it was.
   */
  stage(plan: GroupPlan): void {
    try {
      for (const own of this.ofShapes) own.stage(plan)
    } catch (error) {
      this.unstage()
      throw error
    }
  }

  /** Gives staged pages back that were never published. */
  unstage(): void {
    for (const own of this.ofShapes) own.unstage()
  }

  /** Makes the staged group visible, which is staged of all shapes, and empties the tail. */
  publish(nTokens: number): void {
    for (const own of this.ofShapes) own.publish(nTokens)
  }

  /** As `KvCache.dropHidden`. */
  dropHidden(): void {
    for (const own of this.ofShapes) own.dropHidden()
  }

  /** As `KvCache.dropHiddenTail`. */
  dropHiddenTail(): void {
    for (const own of this.ofShapes) own.dropHiddenTail()
  }

  /** As `KvCache.bytesByClass`. */
  bytesByClass(): BytesByClass {
    const bytes = noBytes()
    for (const own of this.ofShapes) addBytes(bytes, own.bytesByClass())
    return bytes
  }

  /** Adds what this sequence holds, as if nobody shared it. */
  addHeldTo(demand: CacheDemand): void {
    for (const own of this.ofShapes) own.addHeldTo(demand)
  }

  dispose(): void {
    for (const own of this.ofShapes) own.dispose()
  }
}

/** Caches made of `parts`, which are disposed of where a later one cannot be made. */
function allOrNone<T>(parts: readonly T[], make: (part: T) => KvCache): KvCache[] {
  const made: KvCache[] = []
  try {
    for (const part of parts) made.push(make(part))
    return made
  } catch (error) {
    for (const own of made) own.dispose()
    throw error
  }
}
