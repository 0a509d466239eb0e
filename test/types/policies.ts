/** Options of cache policies: each policy has its own, and no other's. */
import type { CachePolicy, PolicySpec, resolvePolicy } from '../../lib/index.js'
import { type Equal, expectType } from './equal.js'

expectType<Equal<ReturnType<typeof resolvePolicy>, CachePolicy>>()

export const accepted: PolicySpec[] = [
  'zipcache',
  'uniform4-group',
  { name: 'full' },
  { name: 'zipcache', saliencyRatio: 0.6, highBits: 4, lowBits: 2, window: 100 },
  { name: 'zipcache', saliencyRatio: 'auto', auto: { coverage: 0.9, budgetBytes: 1e6 } },
  { name: 'zipcache-plus', keyBits: { high: 8 }, keyRange: { norm: 3 }, probes: { recent: 0.1 } },
  { name: 'zipcache', valueRange: { low: { norm: 2 } }, metric: 'locality', probes: 'special' },
  { name: 'uniform', bits: 3, granularity: 'cst' },
  { name: 'kivi', bits: 2, groupSize: 32, residual: 128 },
  { name: 'h2o', heavy: 0.2, recent: 0.2 },
  { name: 'snapkv', capacity: 1024, kernel: 7 },
  { name: 'rotated', bits: 4, groupSize: 64 },
  { name: 'uniform4', window: 64 },
  { name: 'uniform3-group' },
  { name: 'mikv-paper', lowBits: 3 },
  { name: 'kivi2', residual: 64 },
]

export const refused: PolicySpec[] = [
  // @ts-expect-error: options belong to a policy
  { saliencyRatio: 0.6 },
  // @ts-expect-error: no such policy
  { name: 'zipcash' },
  // @ts-expect-error: no codes of 5 bits
  { name: 'zipcache', highBits: 5 },
  // @ts-expect-error: misspelled
  { name: 'zipcache', saliencyratio: 0.6 },
  // @ts-expect-error: the ratio is a number or `auto`
  { name: 'zipcache', saliencyRatio: 'automatic' },
  // @ts-expect-error: no such metric
  { name: 'zipcache', metric: 'normalised' },
  // @ts-expect-error: no such strategy
  { name: 'zipcache', probes: 'newest' },
  // @ts-expect-error: the search minimises powers of 2 to 6
  { name: 'zipcache', keyRange: { norm: 1 } },
  // @ts-expect-error: MiKV looks at all rows
  { name: 'mikv', probes: 'recent' },
  // @ts-expect-error: the authors' code has one metric
  { name: 'zipcache-official', metric: 'normalized' },
  // @ts-expect-error: an option of another policy
  { name: 'kivi', saliencyRatio: 0.6 },
  // @ts-expect-error: KIVI's codes are of 2 or 4 bits
  { name: 'kivi', bits: 3 },
  // @ts-expect-error: the name says it
  { name: 'uniform4', bits: 2 },
  // @ts-expect-error: a 16-bit cache has no options
  { name: 'fp16', window: 100 },
]
