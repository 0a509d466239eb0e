import { kvTable, segmentWord } from '../support/packed-cache'

/** One segment of one (layer, kv head), as a page table says it. */
export interface TableSegment {
  keyFormat: number
  valueFormat: number
  nTokens: number
  params: number
  bitmap: number
  start: number
  span: number
  /** addresses in units of 64 bytes */
  pages: number[]
}

/** A page table in words, read back as csrc/ops/kv_table.h describes it. */
export interface TableContent {
  tailLength: number
  tailStart: number
  /** (layers, kv heads): visible segments, the tail first */
  entries: TableSegment[][][]
}

/** Bits of a format by its number; see csrc/ops/kv_table.h. */
const bitsOf = (format: number) => (format === 17 ? 16 : format)

/** Bytes of a page of 16 tokens, written out anew: K, V, and 16 scales and zeros of V when it is quantized. */
export function expectedPageBytes(keyFormat: number, valueFormat: number, headDim: number): number {
  const elements = 16 * headDim
  const bytes = ((bitsOf(keyFormat) + bitsOf(valueFormat)) * elements) / 8
  return Math.ceil((bytes + (valueFormat <= 8 ? 64 : 0)) / 64) * 64
}

export function readTable(words: Int32Array): TableContent {
  const nLayers = words[kvTable.layers]
  const nKvHeads = words[kvTable.kvHeads]
  const maxSegments = words[kvTable.maxSegments]
  const entryWords = kvTable.entryHeader + maxSegments * kvTable.segmentWords
  const readEntry = (entry: number): TableSegment[] => {
    const at = kvTable.header + entry * entryWords
    const count = words[at]
    if (count < 1 || count > maxSegments) throw new Error(`entry ${entry} has ${count} segments`)
    return Array.from({ length: count }, (_, index) => {
      const segment = at + kvTable.entryHeader + index * kvTable.segmentWords
      const word = (name: keyof typeof segmentWord) => words[segment + segmentWord[name]]
      const nTokens = index === 0 ? words[kvTable.tailLength] : word('nTokens')
      const begin = word('pagesBegin')
      return {
        keyFormat: word('keyFormat'),
        valueFormat: word('valueFormat'),
        nTokens,
        params: word('paramsUnit'),
        bitmap: word('bitmapUnit'),
        start: index === 0 ? words[kvTable.tailStart] : word('start'),
        span: word('span'),
        pages: [...words.subarray(begin, begin + Math.ceil(nTokens / kvTable.pageTokens))],
      }
    })
  }
  return {
    tailLength: words[kvTable.tailLength],
    tailStart: words[kvTable.tailStart],
    entries: Array.from({ length: nLayers }, (_, layer) =>
      Array.from({ length: nKvHeads }, (_, kvHead) => readEntry(layer * nKvHeads + kvHead)),
    ),
  }
}

/** Every stretch of the pool that a table names, once: [first byte, bytes]. */
export function stretchesOf({ entries }: TableContent, headDim: number): [number, number][] {
  const found: [number, number][] = []
  for (const segments of entries.flat()) {
    for (const { keyFormat, valueFormat, pages, params, bitmap, span } of segments) {
      const bytes = expectedPageBytes(keyFormat, valueFormat, headDim)
      for (const page of pages) found.push([page * 64, bytes])
      if (params >= 0) found.push([params * 64, 6 * headDim])
      if (bitmap >= 0 && span > 0) found.push([bitmap * 64, Math.ceil(span / 8)])
    }
  }
  return found
}

/** Throws when two stretches share a byte or one leaves the pool. */
export function expectApart(stretches: [number, number][], capacityBytes: number): void {
  const sorted = stretches.toSorted(([a], [b]) => a - b)
  sorted.forEach(([begin, bytes], i) => {
    const end = sorted[i + 1]?.[0] ?? capacityBytes
    if (begin < 0 || begin + bytes > end)
      throw new Error(`bytes ${begin} to ${begin + bytes}, expected to end by ${end}`)
  })
}
