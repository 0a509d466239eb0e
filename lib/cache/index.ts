/** The packed KV cache: pages, segments, page tables, and their bytes. */
export { codeFormat, FORMATS, type Format, isQuantized, PAGE_TOKENS, pageBytes } from './format.js'
export {
  type BytesByClass,
  fp16CacheBytes,
  type GroupPlan,
  KvCache,
  type KvShape,
  type StagedGroup,
} from './kv-cache.js'
export { PagePool, SUPERBLOCK_BYTES } from './page-pool.js'
