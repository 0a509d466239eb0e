import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { gunzipSync } from 'node:zlib'
import { argumentError, reasonOf, show, ZipCacheError } from '../errors.js'
import { check } from './check.js'

/** A JSONL file of a task, read and checked line by line. */
export interface TaskFile {
  readonly path: string
  /** SHA-256 of the file: what was asked can be told from it. */
  readonly digest: string
  /** 1 or more; blank lines are left out. */
  readonly lines: readonly TaskLine[]
}

/** One object of a task file; what it must hold is asked for by name. */
export class TaskLine {
  readonly #path: string
  readonly #number: number
  readonly #object: Readonly<Record<string, unknown>>

  constructor(path: string, number: number, object: Readonly<Record<string, unknown>>) {
    this.#path = path
    this.#number = number
    this.#object = object
  }

  /** Throws `ERR_ZC_ARGUMENT` naming file and line if the field is missing or no text. */
  text(name: string): string {
    const value = this.#object[name]
    if (typeof value === 'string') return value
    throw this.#wrong(name, value, 'a text')
  }

  /** Throws `ERR_ZC_ARGUMENT` naming file and line if the field is missing or no number. */
  number(name: string): number {
    const value = this.#object[name]
    if (typeof value === 'number') return value
    throw this.#wrong(name, value, 'a number')
  }

  /** Throws `ERR_ZC_ARGUMENT` naming file and line if the field is missing or no list of texts. */
  texts(name: string): readonly string[] {
    const value = this.#object[name]
    if (Array.isArray(value) && value.every((item) => typeof item === 'string')) return value
    throw this.#wrong(name, value, 'a list of texts')
  }

  has(name: string): boolean {
    return this.#object[name] !== undefined && this.#object[name] !== null
  }

  /** What is wrong with this line, for the caller to throw. */
  error(complaint: string): ZipCacheError {
    return taskFileError(`${this.#path}:${this.#number}: ${complaint}`)
  }

  #wrong(name: string, value: unknown, expected: string): ZipCacheError {
    if (value === undefined) return this.error(`has no field '${name}', expected ${expected}`)
    return this.error(`field '${name}' is ${shorten(value)}, expected ${expected}`)
  }
}

/**
 * Reads a JSONL file, gzipped or not.
 *
 * Rejects with `ERR_ZC_IO` if it cannot be read; with `ERR_ZC_ARGUMENT` if it is empty or damaged,
 * naming the first line that is not UTF-8, no JSON or no object.
 */
export async function readTaskFile(path: string): Promise<TaskFile> {
  const bytes = await readBytes(path)
  const lines = splitLines(path, bytes).flatMap((text, index) => {
    if (text.trim() === '') return []
    return [new TaskLine(path, index + 1, parseLine(path, index + 1, text))]
  })
  if (lines.length === 0) throw taskFileError(`${path}: is empty`)
  return { path, digest: createHash('sha256').update(bytes).digest('hex'), lines }
}

/**
 * Reads a text file.
 *
 * Rejects with `ERR_ZC_IO` if it cannot be read, `ERR_ZC_ARGUMENT` naming the first line that is not
 * UTF-8.
 */
export async function readTaskText(path: string): Promise<{ text: string; digest: string }> {
  const bytes = await readBytes(path)
  const text = splitLines(path, bytes).join('\n')
  return { text, digest: createHash('sha256').update(bytes).digest('hex') }
}

async function readBytes(path: string): Promise<Buffer> {
  check('data', typeof path === 'string', `is ${show(path)}, expected the path of a file`)
  let bytes: Buffer
  try {
    bytes = await readFile(path)
  } catch (cause) {
    throw new ZipCacheError('ERR_ZC_IO', `data: ${path} cannot be read: ${reasonOf(cause)}`, {
      argument: 'data',
      cause,
    })
  }
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes
  try {
    return gunzipSync(bytes)
  } catch (cause) {
    throw taskFileError(`${path}: is damaged gzip: ${reasonOf(cause)}`, cause)
  }
}

const kNewline = 0x0a

/** Decoded line by line, so that what is no UTF-8 has a line number. */
function splitLines(path: string, bytes: Buffer): string[] {
  const lines: string[] = []
  for (let start = 0; start <= bytes.length; ) {
    const newline = bytes.indexOf(kNewline, start)
    const end = newline < 0 ? bytes.length : newline
    const line = bytes.subarray(start, end)
    try {
      // A byte order mark belongs to the file, not to the first line: the decoder drops it.
      lines.push(new TextDecoder('utf-8', { fatal: true, ignoreBOM: start > 0 }).decode(line))
    } catch (cause) {
      throw taskFileError(`${path}:${lines.length + 1}: is not UTF-8`, cause)
    }
    start = end + 1
  }
  return lines
}

function parseLine(path: string, number: number, text: string): Record<string, unknown> {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    throw taskFileError(`${path}:${number}: is no JSON: ${reasonOf(cause)}`, cause)
  }
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
    return value as Record<string, unknown>
  }
  throw taskFileError(`${path}:${number}: is ${shorten(value)}, expected an object`)
}

function taskFileError(complaint: string, cause?: unknown): ZipCacheError {
  return argumentError('data', complaint, cause)
}

function shorten(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value)
  return text.length > 60 ? `${text.slice(0, 57)}...` : text
}
