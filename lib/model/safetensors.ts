import type { FileHandle } from 'node:fs/promises'
import { ZipCacheError } from '../errors.js'
import { isJsonObject, parseJsonObject, quote, regularFileSize, withFile } from './model-files.js'

/** Where one tensor lies in a safetensors file. */
export interface TensorEntry {
  /** As the format writes it: F32, F16, BF16, I64, … */
  readonly dtype: string
  /** Row-major; empty for a scalar. */
  readonly shape: readonly number[]
  /** From the beginning of the file, in bytes. The format does not promise any alignment. */
  readonly offset: number
  readonly sizeBytes: number
}

/** The header of one safetensors file. */
export interface SafetensorsHeader {
  readonly tensors: ReadonlyMap<string, TensorEntry>
  /** The free-form `__metadata__`. */
  readonly metadata: ReadonlyMap<string, string>
  readonly fileSizeBytes: number
}

/** Bits an element, for every dtype of the format. */
const kDtypeBits: ReadonlyMap<string, number> = new Map([
  ['BOOL', 8],
  ['F4', 4],
  ['F6_E2M3', 6],
  ['F6_E3M2', 6],
  ['U8', 8],
  ['I8', 8],
  ['F8_E5M2', 8],
  ['F8_E4M3', 8],
  ['F8_E8M0', 8],
  ['F8_E4M3FNUZ', 8],
  ['F8_E5M2FNUZ', 8],
  ['I16', 16],
  ['U16', 16],
  ['F16', 16],
  ['BF16', 16],
  ['I32', 32],
  ['U32', 32],
  ['F32', 32],
  ['C64', 64],
  ['F64', 64],
  ['I64', 64],
  ['U64', 64],
])

const kLengthBytes = 8
/** The bound of the format's own reader. */
const kMaxHeaderBytes = 100_000_000

/**
 * Reads and checks the header of a safetensors file; the tensors' bytes are not touched.
 *
 * A file is an 8-byte little-endian header length, the header (JSON: name -> dtype, shape,
 * data_offsets) and the tensors' bytes, which must lie one after the other without overlap, hole or
 * rest, as the format demands: what no tensor owns could be anything.
 * @throws ERR_ZC_CHECKPOINT naming the file, the tensor and the value: missing file, truncated or
 *   lying header, unknown dtype, absurd shape, offsets out of the file, overlap, hole, trailing
 *   bytes, a key given twice; ERR_ZC_IO when it cannot be read
 * Source: https://huggingface.co/docs/safetensors, section "Format"
 */
export async function readSafetensorsHeader(path: string): Promise<SafetensorsHeader> {
  const fileSizeBytes = await regularFileSize(path, 'ERR_ZC_CHECKPOINT')
  if (fileSizeBytes === null) refuse(path, 'does not exist')
  const text = await withFile(path, (file) => readHeaderText(file, path, fileSizeBytes))
  // A fatal decoder lost nothing, so the text is as long as the header was.
  const dataOffset = kLengthBytes + Buffer.byteLength(text)
  return parseHeader(text, path, dataOffset, fileSizeBytes)
}

function refuse(path: string, complaint: string, tensor?: string): never {
  const message = `${path}: ${tensor === undefined ? '' : `${quote(tensor)}: `}${complaint}`
  throw new ZipCacheError('ERR_ZC_CHECKPOINT', message, { argument: tensor ?? path })
}

async function readHeaderText(
  file: FileHandle,
  path: string,
  fileSizeBytes: number,
): Promise<string> {
  if (fileSizeBytes < kLengthBytes) {
    refuse(path, `is ${fileSizeBytes} bytes long, too short for a safetensors header`)
  }
  const first = await readExactly(file, path, 0, kLengthBytes)
  // What a clone without Git LFS has in place of the file.
  if (first.toString() === 'version ') {
    refuse(path, 'is a pointer of Git LFS, expected the file itself: `git lfs pull`')
  }
  const declared = first.readBigUInt64LE()
  if (declared === 0n) refuse(path, 'header length is 0, expected at least 2')
  if (declared > BigInt(kMaxHeaderBytes)) {
    refuse(path, `header length is ${declared}, expected at most ${kMaxHeaderBytes}`)
  }
  const headerBytes = Number(declared)
  if (headerBytes > fileSizeBytes - kLengthBytes) {
    refuse(path, `header length is ${headerBytes}, but the file has ${fileSizeBytes} bytes`)
  }
  const bytes = await readExactly(file, path, kLengthBytes, headerBytes)
  try {
    // ignoreBOM keeps the mark, and JSON then refuses it: the format wants '{' first.
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch {
    refuse(path, 'header is not UTF-8')
  }
}

async function readExactly(
  file: FileHandle,
  path: string,
  position: number,
  length: number,
): Promise<Buffer> {
  const bytes = Buffer.alloc(length)
  let done = 0
  while (done < length) {
    const { bytesRead } = await file.read(bytes, done, length - done, position + done)
    if (bytesRead === 0) refuse(path, `ended at byte ${position + done} while it was read`)
    done += bytesRead
  }
  return bytes
}

function parseHeader(
  text: string,
  path: string,
  dataOffset: number,
  fileSizeBytes: number,
): SafetensorsHeader {
  if (text[0] !== '{') refuse(path, `header begins with ${quote(text[0])}, expected "{"`)
  const header = parseJsonObject(text, path, 'ERR_ZC_CHECKPOINT')
  const tensors = new Map<string, TensorEntry>()
  const metadata = new Map<string, string>()
  for (const [name, entry] of Object.entries(header)) {
    if (name === '__metadata__') readMetadata(entry, path, metadata)
    else tensors.set(name, readTensorEntry(name, entry, path, dataOffset, fileSizeBytes))
  }
  const repeated = findRepeatedKey(text)
  if (repeated !== null) refuse(path, `header has the key ${quote(repeated)} twice`)
  checkLayout(tensors, path, dataOffset, fileSizeBytes)
  return { tensors, metadata, fileSizeBytes }
}

function readMetadata(entry: unknown, path: string, metadata: Map<string, string>): void {
  if (!isJsonObject(entry)) refuse(path, `__metadata__ is ${quote(entry)}, expected an object`)
  for (const [key, value] of Object.entries(entry)) {
    if (typeof value !== 'string') {
      refuse(path, `__metadata__.${key} is ${quote(value)}, expected a string`)
    }
    metadata.set(key, value)
  }
}

function readTensorEntry(
  name: string,
  entry: unknown,
  path: string,
  dataOffset: number,
  fileSizeBytes: number,
): TensorEntry {
  if (!isJsonObject(entry)) refuse(path, `is ${quote(entry)}, expected an object`, name)
  for (const key of Object.keys(entry)) {
    if (key !== 'dtype' && key !== 'shape' && key !== 'data_offsets') {
      refuse(path, `has the unknown key ${quote(key)}`, name)
    }
  }
  const { dtype, shape, data_offsets: offsets } = entry
  const elementBits = typeof dtype === 'string' ? kDtypeBits.get(dtype) : undefined
  if (typeof dtype !== 'string' || elementBits === undefined) {
    refuse(path, `dtype is ${quote(dtype)}, expected one of ${[...kDtypeBits.keys()]}`, name)
  }
  if (!isSizeArray(shape)) {
    refuse(path, `shape is ${quote(shape)}, expected an array of integers >= 0`, name)
  }
  const nBits = shape.reduce((product, size) => product * size, elementBits)
  if (!Number.isSafeInteger(nBits) || nBits % 8 !== 0) {
    refuse(path, `shape ${quote(shape)} of ${dtype} is no whole number of bytes that exists`, name)
  }
  if (!isSizeArray(offsets) || offsets.length !== 2) {
    refuse(path, `data_offsets is ${quote(offsets)}, expected [begin, end]`, name)
  }
  const [begin, end] = offsets as [number, number]
  const dataSizeBytes = fileSizeBytes - dataOffset
  if (begin > end || end > dataSizeBytes) {
    refuse(
      path,
      `data_offsets is [${begin}, ${end}], expected begin <= end <= ${dataSizeBytes}, the file's data`,
      name,
    )
  }
  const sizeBytes = nBits / 8
  if (end - begin !== sizeBytes) {
    refuse(
      path,
      `data_offsets span ${end - begin} bytes, expected ${sizeBytes} for shape ${quote(shape)} of ${dtype}`,
      name,
    )
  }
  return { dtype, shape, offset: dataOffset + begin, sizeBytes }
}

function isSizeArray(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((size) => Number.isSafeInteger(size) && size >= 0)
}

/**
 * Sorted by offset, each tensor must begin where the one before ended, and the last end with the
 * file.
 */
function checkLayout(
  tensors: ReadonlyMap<string, TensorEntry>,
  path: string,
  dataOffset: number,
  fileSizeBytes: number,
): void {
  // An empty tensor comes before the one that begins at the same byte.
  const sorted = [...tensors].sort(
    ([, a], [, b]) => a.offset - b.offset || a.sizeBytes - b.sizeBytes,
  )
  let end = dataOffset
  let previous = ''
  for (const [name, { offset, sizeBytes }] of sorted) {
    if (offset < end) refuse(path, `overlaps ${quote(previous)} by ${end - offset} bytes`, name)
    if (offset > end) refuse(path, `begins after a hole of ${offset - end} bytes`, name)
    end = offset + sizeBytes
    previous = name
  }
  if (end !== fileSizeBytes) {
    refuse(path, `has ${fileSizeBytes - end} bytes after the last tensor`)
  }
}

/**
 * A key that stands twice in one object of valid JSON `text`, or null. JSON.parse keeps the last of
 * them without a word, other readers the first: such a header could be one model to us and another
 * to them.
 */
function findRepeatedKey(text: string): string | null {
  /** Keys seen in each open object; null for an open array. */
  const open: (Set<string> | null)[] = []
  for (let i = 0; i < text.length; ++i) {
    const char = text[i]
    if (char === '{') open.push(new Set())
    else if (char === '[') open.push(null)
    else if (char === '}' || char === ']') open.pop()
    if (char !== '"') continue

    const begin = i++
    while (text[i] !== '"') i += text[i] === '\\' ? 2 : 1
    let next = i + 1
    while (text[next] !== undefined && ' \t\n\r'.includes(text[next] as string)) ++next
    if (text[next] !== ':') continue
    const raw = text.slice(begin, i + 1)
    const key: string = raw.includes('\\') ? JSON.parse(raw) : raw.slice(1, -1)
    const keys = open[open.length - 1]
    if (keys?.has(key)) return key
    keys?.add(key)
  }
  return null
}
