// The state file that llama.cpp v0.5.0 writes for one sequence, made longer.

const kMagic = 0x67677371
const kVersion = 3
/** Magic, version, count of tokens (which we save none of), count of streams. */
const kHeaderBytes = 16
/** Position, count of sequences, sequence. */
const kCellBytes = 12

/**
 * A state that holds the tokens of another `times` times over, at positions from 0 on.
 *
 * llama.cpp needs minutes to prefill 16,384 tokens into a quantized cache. What a decode step costs
 * depends on how many tokens the cache holds, not on which.
 *
 * Layout, little-endian: header, count of cells, cells, whether V is transposed, count of layers; K
 * of each layer as type, bytes a row, rows; V of each layer likewise, or, if transposed, as type,
 * bytes an element, dimensions, and for each dimension the elements of all cells.
 *
 * @param {Buffer} saved
 * @param {number} times
 * @returns {{ state: Buffer, tokens: number }}
 */
export function repeatState(saved, times) {
  let at = 0
  const uint32 = () => {
    at += 4
    return saved.readUInt32LE(at - 4)
  }
  const header = [uint32(), uint32(), uint32(), uint32()]
  if (header.join() !== [kMagic, kVersion, 0, 1].join()) {
    throw new Error(`the state file begins with ${header}, which is not read here`)
  }
  const nCells = uint32()
  const parts = [saved.subarray(0, kHeaderBytes), cells(nCells * times)]
  at += nCells * kCellBytes

  const take = (count) => {
    at += count
    return saved.subarray(at - count, at)
  }
  const repeat = (count) => {
    const rows = take(count)
    for (let i = 0; i < times; i++) parts.push(rows)
  }
  const layout = take(8)
  parts.push(layout)
  const isTransposed = layout.readUInt32LE() === 1
  const nLayers = layout.readUInt32LE(4)
  const kRowHeader = 12
  for (let layer = 0; layer < nLayers; layer++) {
    parts.push(saved.subarray(at, at + kRowHeader))
    repeat(nCells * Number(take(kRowHeader).readBigUInt64LE(4)))
  }
  for (let layer = 0; layer < nLayers; layer++) {
    const rowHeader = take(kRowHeader)
    parts.push(rowHeader)
    if (isTransposed) {
      const elementBytes = rowHeader.readUInt32LE(4)
      const nDimensions = rowHeader.readUInt32LE(8)
      for (let d = 0; d < nDimensions; d++) repeat(nCells * elementBytes)
    } else {
      repeat(nCells * Number(rowHeader.readBigUInt64LE(4)))
    }
  }
  if (at !== saved.length) throw new Error(`${saved.length - at} bytes of the state were not read`)
  return { state: Buffer.concat(parts), tokens: nCells * times }
}

function cells(count) {
  const bytes = Buffer.alloc(4 + count * kCellBytes)
  bytes.writeUInt32LE(count)
  for (let i = 0; i < count; i++) {
    bytes.writeInt32LE(i, 4 + i * kCellBytes)
    bytes.writeUInt32LE(1, 8 + i * kCellBytes)
  }
  return bytes
}
