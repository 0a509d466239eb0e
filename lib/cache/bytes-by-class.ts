/** Bytes of one sequence's cache by what they hold. */
export interface BytesByClass {
  /** Pages of salient tokens. */
  high: number
  /** Pages of regular tokens. */
  low: number
  /** Pages of tokens that are not compressed. */
  tail: number
  /** Channel scales, zeros and normalisers. */
  params: number
  /** Which tokens are salient. */
  bitmaps: number
  /** Page tables. */
  tables: number
  /** Probe rows of the running window. */
  probes: number
  /** What recurrent layers keep, in 32 bits. */
  states: number
}

/** Nothing held. */
export function noBytes(): BytesByClass {
  return { high: 0, low: 0, tail: 0, params: 0, bitmaps: 0, tables: 0, probes: 0, states: 0 }
}

/** Adds `more` to `sum`. */
export function addBytes(sum: BytesByClass, more: Readonly<BytesByClass>): void {
  for (const name of Object.keys(sum) as (keyof BytesByClass)[]) sum[name] += more[name]
}

/** Bytes of all classes together. */
export function totalBytes(bytes: Readonly<BytesByClass>): number {
  return Object.values(bytes).reduce((sum: number, each: number) => sum + each, 0)
}
