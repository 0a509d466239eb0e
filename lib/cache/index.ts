/** The packed KV cache: pages, segments, page tables, and their bytes. */
export { CacheDemand } from './cache-demand.js'
export { CacheMemory } from './cache-memory.js'
export { codeBytes, joinCodes, splitCodes } from './code-bits.js'
export {
  bitmapBytes,
  codeFormat,
  FORMATS,
  type Format,
  hiddenPages,
  isQuantized,
  PAGE_TOKENS,
  pageBytes,
  pageCount,
  paramsBytes,
} from './format.js'
export {
  type BytesByClass,
  type CacheSegment,
  fp16CacheBytes,
  type GroupPlan,
  KvCache,
  type KvShape,
  type StagedGroup,
  tableWords,
} from './kv-cache.js'
export { PagePool, SUPERBLOCK_BYTES } from './page-pool.js'
export { type ProbeShape, ProbeSlots } from './probe-slots.js'
export { TableArena } from './table-arena.js'
