/** The container of a saved sequence: a header, bytes in order, and a checksum over all of it. */
import { createHash, type Hash, randomBytes } from 'node:crypto'
import { type FileHandle, open, rename, rm } from 'node:fs/promises'
import path from 'node:path'
import { reasonOf, ZipCacheError } from '../errors.js'

/**
 *     magic (8) | version u32 | header bytes u32 | header JSON | body | SHA-256 of all before (32)
 *
 * Numbers are little-endian, in the header as in the body.
 */
const MAGIC = Buffer.from('ZIPCACHE', 'latin1')
const VERSION = 1
const PREFIX_BYTES = 16
const DIGEST_BYTES = 32
/** A header names a few facts and the compressions so far: megabytes are none. */
const MAX_HEADER_BYTES = 64 * 2 ** 20
const CHUNK_BYTES = 2 ** 20

/** Bytes that are written in order. */
export interface SnapshotOutput {
  write(values: ArrayBufferView): Promise<void>
}

/** Bytes that are read in order. */
export interface SnapshotInput {
  /** Throws `ERR_ZC_SNAPSHOT` beyond the end. */
  read(nBytes: number): Promise<Uint8Array>
}

/**
 * Writes a file next to `file` and puts it in its place when it is whole and on the disk: a reader
 * sees the old one or the new one.
 *
 * Rejects with `ERR_ZC_IO`, or what `body` rejects with; nothing is left behind then.
 */
export async function writeSnapshot(
  file: string,
  header: object,
  body: (output: SnapshotOutput) => Promise<void>,
): Promise<void> {
  const temporary = `${file}.${randomBytes(6).toString('hex')}.tmp`
  const handle = await onDisk(file, () => open(temporary, 'wx'))
  try {
    try {
      const hash = createHash('sha256')
      const write = (values: ArrayBufferView) => writeAll(file, handle, hash, values)
      const json = Buffer.from(JSON.stringify(header))
      const prefix = Buffer.alloc(PREFIX_BYTES)
      MAGIC.copy(prefix)
      prefix.writeUInt32LE(VERSION, 8)
      prefix.writeUInt32LE(json.length, 12)
      await write(prefix)
      await write(json)
      await body({ write })
      const digest = hash.copy().digest()
      await write(digest)
      await onDisk(file, () => handle.sync())
    } finally {
      await handle.close()
    }
    await onDisk(file, () => rename(temporary, file))
  } catch (error) {
    await rm(temporary, { force: true })
    throw error
  }
  // The name itself is on the disk once its folder is. Not every system lets folders be synced.
  const folder = await open(path.dirname(file), 'r').catch(() => null)
  await folder?.sync().catch(() => {})
  await folder?.close()
}

/**
 * Reads a file that `writeSnapshot` wrote. Its checksum is verified before anything is handed on.
 *
 * Rejects with `ERR_ZC_SNAPSHOT` for a file that is damaged, of another version or none at all,
 * `ERR_ZC_IO` for one that cannot be read.
 */
export async function readSnapshot<T>(
  file: string,
  use: (header: unknown, input: SnapshotInput, bodyBytes: number) => Promise<T>,
): Promise<T> {
  const handle = await onDisk(file, () => open(file, 'r'))
  try {
    const { size } = await onDisk(file, () => handle.stat())
    if (size < PREFIX_BYTES + DIGEST_BYTES) throw snapshotError(file, 'is no saved sequence')
    const prefix = await readAt(file, handle, 0, PREFIX_BYTES)
    if (!prefix.subarray(0, 8).equals(MAGIC)) throw snapshotError(file, 'is no saved sequence')
    const version = prefix.readUInt32LE(8)
    if (version !== VERSION) {
      throw snapshotError(file, `has version ${version}, expected ${VERSION}`)
    }
    await verify(file, handle, size)
    const headerBytes = prefix.readUInt32LE(12)
    const end = size - DIGEST_BYTES
    let at = PREFIX_BYTES + headerBytes
    if (headerBytes > MAX_HEADER_BYTES || at > end) throw snapshotError(file, 'has no whole header')
    const header = parse(file, await readAt(file, handle, PREFIX_BYTES, headerBytes))
    const input = {
      async read(nBytes: number): Promise<Uint8Array> {
        if (at + nBytes > end) throw snapshotError(file, 'ends too early')
        const bytes = await readAt(file, handle, at, nBytes)
        at += nBytes
        return bytes
      },
    }
    return await use(header, input, end - at)
  } finally {
    await handle.close()
  }
}

/** What is wrong with a saved sequence. */
export function snapshotError(file: string, what: string, cause?: unknown): ZipCacheError {
  return new ZipCacheError('ERR_ZC_SNAPSHOT', `path: ${file} ${what}`, { argument: 'path', cause })
}

async function writeAll(
  file: string,
  handle: FileHandle,
  hash: Hash,
  values: ArrayBufferView,
): Promise<void> {
  const bytes = Buffer.from(values.buffer, values.byteOffset, values.byteLength)
  hash.update(bytes)
  await onDisk(file, () => handle.writeFile(bytes))
}

async function readAt(
  file: string,
  handle: FileHandle,
  position: number,
  nBytes: number,
): Promise<Buffer> {
  const bytes = Buffer.alloc(nBytes)
  for (let done = 0; done < nBytes; ) {
    const { bytesRead } = await onDisk(file, () =>
      handle.read(bytes, done, Math.min(nBytes - done, CHUNK_BYTES), position + done),
    )
    if (bytesRead === 0) throw snapshotError(file, 'ends too early')
    done += bytesRead
  }
  return bytes
}

async function verify(file: string, handle: FileHandle, size: number): Promise<void> {
  const hash = createHash('sha256')
  const end = size - DIGEST_BYTES
  for (let at = 0; at < end; at += CHUNK_BYTES) {
    hash.update(await readAt(file, handle, at, Math.min(CHUNK_BYTES, end - at)))
  }
  const digest = await readAt(file, handle, end, DIGEST_BYTES)
  if (!hash.digest().equals(digest)) throw snapshotError(file, 'is damaged: its checksum is wrong')
}

function parse(file: string, json: Buffer): unknown {
  try {
    return JSON.parse(json.toString())
  } catch (cause) {
    throw snapshotError(file, 'has a header that is no JSON', cause)
  }
}

/** An operation of the file system, its failure as ours. */
async function onDisk<T>(file: string, operation: () => Promise<T>): Promise<T> {
  try {
    return await operation()
  } catch (cause) {
    throw new ZipCacheError('ERR_ZC_IO', `path: ${file}: ${reasonOf(cause)}`, {
      argument: 'path',
      cause,
    })
  }
}
