import {
  bitmapBytes,
  type GroupPlan,
  type KvShape,
  pageBytes,
  pageCount,
  paramsBytes,
} from './format.js'

/** Memory that caches want, counted before any of it is allocated. */
export class CacheDemand {
  /** How many pages, parameters and bitmaps among them, by their bytes. */
  readonly pages = new Map<number, number>()
  /** Probe rows. */
  probeSlots = 0
  /** Bytes of page tables, and of rows that lie in no pages. */
  otherBytes = 0

  /** Bytes of everything but probe rows. */
  get bytes(): number {
    let bytes = this.otherBytes
    for (const [each, count] of this.pages) bytes += each * count
    return bytes
  }

  /** So many pages, of all layers and KV heads together. */
  addPages(bytes: number, count: number): void {
    if (count > 0) this.pages.set(bytes, (this.pages.get(bytes) ?? 0) + count)
  }

  /** So many pages of each layer and KV head. */
  addEach({ nLayers, nKvHeads }: KvShape, bytes: number, count: number): void {
    this.addPages(bytes, count * nLayers * nKvHeads)
  }

  /**
   * What so many compressions are packed into, one after the other: in layers with a sliding window
   * those before are given back (`dropHidden`), unless heads differ in their tokens.
   */
  addGroups(shape: KvShape, plan: GroupPlan, count = 1, isUneven = false): void {
    const { headDim, nKvHeads, slidingWindow } = shape
    const { nTokens, nSalient, high, low } = plan
    // Of those that are seen two may be so in part; one more is staged.
    const mostHeld = (window: number) =>
      window > 0 && !isUneven ? Math.min(count, Math.ceil(window / nTokens) + 2) : count
    const nHeld = slidingWindow.reduce((sum, window) => sum + mostHeld(window), 0)
    const nStandIns = nHeld < slidingWindow.length * count ? count : 0
    const nRegular = nTokens - nSalient
    for (const [n, { k, v }] of [
      [nSalient, high],
      [nRegular, low],
    ] as const) {
      if (n === 0) continue
      this.addPages(pageBytes(k, v, headDim), nHeld * nKvHeads * pageCount(n) + nStandIns)
      this.addEach(shape, paramsBytes(headDim), count)
    }
    if (nSalient > 0 && nRegular > 0) this.addEach(shape, bitmapBytes(nTokens), count)
  }
}
