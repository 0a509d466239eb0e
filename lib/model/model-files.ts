import { type FileHandle, open, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { type ErrorCode, ZipCacheError } from '../errors.js'

/** A parsed JSON object: string keys, values not looked at yet. */
export type JsonObject = Record<string, unknown>

/** True for a JSON object, false for null, arrays and everything else. */
export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** How a value from a file reads in a message: JSON, cut short. */
export function quote(value: unknown): string {
  if (value === undefined) return 'missing'
  let text: string
  try {
    text = JSON.stringify(value) ?? String(value)
  } catch {
    // Nested beyond the stack: JSON.parse can make what JSON.stringify cannot take apart.
    return `a deeply nested ${Array.isArray(value) ? 'array' : typeof value}`
  }
  return text.length <= 80 ? text : `${text.slice(0, 77)}...`
}

/**
 * The path of a file of a model folder.
 * @throws ERR_ZC_ARGUMENT when `dir` is no path
 */
export function modelFile(dir: string, name: string): string {
  return join(checkPath('dir', dir, 'the path of a model folder'), name)
}

/**
 * The path that an argument gives, as a text or as a `file:` URL.
 * @throws ERR_ZC_ARGUMENT when it gives none
 */
export function checkPath(argument: string, given: string | URL, expected: string): string {
  const path = given instanceof URL ? pathOfUrl(given) : given
  if (typeof path === 'string' && path !== '' && !path.includes('\0')) return path
  const message = `${argument}: is ${quote(given)}, expected ${expected}`
  throw new ZipCacheError('ERR_ZC_ARGUMENT', message, { argument })
}

function pathOfUrl(url: URL): string | null {
  try {
    return fileURLToPath(url)
  } catch {
    return null // of another scheme, or another host
  }
}

/**
 * The size of a regular file, or null where nothing of that name exists.
 *
 * Asked before opening: opening a named pipe would wait for its writer for ever.
 * @throws ERR_ZC_IO when the system refuses to look; `code` when it is a directory, a pipe or a
 *   device
 */
export async function regularFileSize(path: string, code: ErrorCode): Promise<number | null> {
  let stats: Awaited<ReturnType<typeof stat>>
  try {
    stats = await stat(path)
  } catch (cause) {
    if (isMissing(cause)) return null
    throw new ZipCacheError('ERR_ZC_IO', `${path}: cannot be read: ${reason(cause)}`, { cause })
  }
  if (!stats.isFile()) {
    throw new ZipCacheError(code, `${path}: is not a regular file`, { argument: path })
  }
  return stats.size
}

/**
 * Opens a file for reading, hands it to `use`, and closes it whatever happens.
 * @throws ERR_ZC_IO when the system refuses
 */
export async function withFile<T>(path: string, use: (file: FileHandle) => Promise<T>): Promise<T> {
  let file: FileHandle | undefined
  try {
    file = await open(path, 'r')
    return await use(file)
  } catch (cause) {
    if (cause instanceof ZipCacheError) throw cause
    throw new ZipCacheError('ERR_ZC_IO', `${path}: cannot be read: ${reason(cause)}`, { cause })
  } finally {
    await file?.close()
  }
}

/**
 * The text of a UTF-8 file without its byte order mark, or null where the file does not exist.
 * @throws `code` when it is no regular file, longer than `maxBytes` or not UTF-8; ERR_ZC_IO when
 *   the system refuses
 */
export async function readTextFile(
  path: string,
  code: ErrorCode,
  maxBytes: number,
): Promise<string | null> {
  const sizeBytes = await regularFileSize(path, code)
  if (sizeBytes === null) return null
  if (sizeBytes > maxBytes) {
    const message = `${path}: is ${sizeBytes} bytes long, expected at most ${maxBytes}`
    throw new ZipCacheError(code, message, { argument: path })
  }
  const bytes = await withFile(path, (file) => file.readFile())
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch (cause) {
    throw new ZipCacheError(code, `${path}: is not UTF-8 text`, { argument: path, cause })
  }
}

/**
 * The JSON object in a file, or null where the file does not exist.
 * @throws `code` as `readTextFile`, and when the text is no JSON or no object; ERR_ZC_IO when the
 *   system refuses
 */
export async function readJsonFile(
  path: string,
  code: ErrorCode,
  maxBytes: number,
): Promise<JsonObject | null> {
  const text = await readTextFile(path, code, maxBytes)
  return text === null ? null : parseJsonObject(text, path, code)
}

/**
 * Parses `text` from the file `path` as a JSON object.
 * @throws `code` when it is no JSON or no object
 */
export function parseJsonObject(text: string, path: string, code: ErrorCode): JsonObject {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    const message = `${path}: is not valid JSON: ${reason(cause)}`
    throw new ZipCacheError(code, message, { argument: path, cause })
  }
  if (!isJsonObject(value)) {
    const message = `${path}: holds ${quote(value)}, expected a JSON object`
    throw new ZipCacheError(code, message, { argument: path })
  }
  return value
}

/** The message of whatever was thrown. */
export function reason(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause)
}

function isMissing(cause: unknown): boolean {
  const code = (cause as NodeJS.ErrnoException | null)?.code
  return code === 'ENOENT' || code === 'ENOTDIR'
}
