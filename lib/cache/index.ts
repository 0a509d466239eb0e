/** The packed KV cache: pages, segments, page tables, and their bytes. */
export { addBytes, type BytesByClass, noBytes, totalBytes } from './bytes-by-class.js'
export { CacheDemand } from './cache-demand.js'
export { CacheMemory } from './cache-memory.js'
export { codeBytes, joinCodes, splitCodes } from './code-bits.js'
export {
  bitmapBytes,
  bitsOf,
  codeFormat,
  FORMATS,
  type Format,
  fp16CacheBytes,
  type GroupPlan,
  hiddenPages,
  isQuantized,
  type KvShape,
  PAGE_TOKENS,
  PAGE_UNIT_BYTES,
  pageBytes,
  pageCount,
  paramsBytes,
} from './format.js'
export {
  type CacheSegment,
  KvCache,
  type StagedGroup,
} from './kv-cache.js'
export { PagePool, SUPERBLOCK_BYTES } from './page-pool.js'
export { tableWords } from './page-table.js'
export { type ProbeRows, type ProbeShape, ProbeSlots } from './probe-slots.js'
export {
  addStates,
  RecurrentState,
  type StateShape,
  stateBytes,
  stateTableBytes,
} from './recurrent-state.js'
export { SequenceCache } from './sequence-cache.js'
export { TableArena } from './table-arena.js'
