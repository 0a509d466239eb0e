import { type FileHandle, open } from 'node:fs/promises'
import { checkObject } from '../engine/options.js'
import { argumentError, reasonOf, ZipCacheError } from '../errors.js'
import { checkPath } from '../model/model-files.js'
import type { Answer } from './asker.js'

/** Changes when a reader of journals must. */
const kSchema = 'zipcache-journal-1'

interface Header {
  readonly journal: string
  readonly identity: Readonly<Record<string, string | number>>
}

/**
 * The answers so far, in a file: one line each, written as soon as it is there. A run that was
 * killed leaves whole lines and perhaps a part of one, which is dropped; the next run asks what is
 * missing.
 */
export class Journal {
  /** Those that the file held when it was opened. */
  readonly answers: readonly Answer[]
  /** Revisions of the sources that the answers were computed by, oldest first. */
  readonly builds: readonly string[]
  readonly #file: FileHandle
  #lastWrite: Promise<unknown> = Promise.resolve()

  private constructor(file: FileHandle, answers: readonly Answer[], builds: readonly string[]) {
    this.#file = file
    this.answers = answers
    this.builds = builds
  }

  /**
   * Opens a journal, or begins one where there is none.
   *
   * Rejects with `ERR_ZC_ARGUMENT` naming file and line where it is damaged, or was written with
   * another model, seed or whatever else is in `identity`; `ERR_ZC_IO`.
   */
  static async open(path: string, identity: Header['identity'], build: string): Promise<Journal> {
    checkPath('path', path, 'the path of a file')
    checkObject('identity', identity)
    let file: FileHandle
    try {
      file = await open(path, 'a+')
    } catch (cause) {
      throw new ZipCacheError(
        'ERR_ZC_IO',
        `journal: ${path} cannot be opened: ${reasonOf(cause)}`,
        { cause },
      )
    }
    try {
      const text = await file.readFile('utf8')
      const end = text.lastIndexOf('\n') + 1
      if (end < text.length) await file.truncate(Buffer.byteLength(text.slice(0, end)))
      const read = readLines(path, text.slice(0, end), identity)
      if (end === 0) await writeLine(file, { journal: kSchema, identity } satisfies Header)
      if (!read.builds.includes(build)) {
        await writeLine(file, { build })
        read.builds.push(build)
      }
      return new Journal(file, read.answers, read.builds)
    } catch (error) {
      await file.close()
      throw error
    }
  }

  /** Writes one more answer. Rejects with `ERR_ZC_IO`. */
  async append(answer: Answer): Promise<void> {
    const write = this.#lastWrite.then(() => writeLine(this.#file, answer))
    this.#lastWrite = write.catch(() => {})
    await write
  }

  /** Ends the file, once all is written. */
  async close(): Promise<void> {
    await this.#lastWrite
    await this.#file.close()
  }
}

async function writeLine(file: FileHandle, value: object): Promise<void> {
  try {
    await file.appendFile(`${JSON.stringify(value, (_, inner) => toJson(inner))}\n`)
  } catch (cause) {
    throw new ZipCacheError('ERR_ZC_IO', `journal: cannot be written: ${reasonOf(cause)}`, {
      cause,
    })
  }
}

function readLines(path: string, text: string, identity: Header['identity']) {
  const answers: Answer[] = []
  const builds: string[] = []
  const lines = text.split('\n').slice(0, -1)
  for (const [index, line] of lines.entries()) {
    const bad = (complaint: string) =>
      argumentError('journal', `${path}:${index + 1}: ${complaint}`)
    let value: Record<string, unknown>
    try {
      value = JSON.parse(line, (_, inner) => fromJson(inner))
    } catch {
      throw bad('is no JSON')
    }
    if (index === 0) {
      if (value.journal !== kSchema) throw bad(`is no ${kSchema}`)
      const written = (value.identity ?? {}) as Header['identity']
      for (const name of new Set([...Object.keys(written), ...Object.keys(identity)])) {
        if (written[name] === identity[name]) continue
        const own = String(identity[name])
        throw bad(`was begun with ${name} ${written[name]}, this run has ${own}`)
      }
    } else if (typeof value.build === 'string') {
      builds.push(value.build)
    } else if (isAnswer(value)) {
      answers.push(value)
    } else {
      throw bad('is no answer')
    }
  }
  return { answers, builds }
}

/** JSON has no infinity, which the divergence from a model that excludes a token is. */
const kUnwritable = new Map([
  ['Infinity', Number.POSITIVE_INFINITY],
  ['-Infinity', Number.NEGATIVE_INFINITY],
  ['NaN', Number.NaN],
])

const toJson = (value: unknown) =>
  typeof value === 'number' && !Number.isFinite(value) ? { number: String(value) } : value

function fromJson(value: unknown): unknown {
  const name = (value as { number?: unknown } | null)?.number
  return typeof name === 'string' ? (kUnwritable.get(name) ?? value) : value
}

function isAnswer(value: object): value is Answer {
  const { task, question, policy, score, bytes } = value as Partial<Answer>
  return (
    typeof task === 'string' &&
    Number.isInteger(question) &&
    typeof policy === 'string' &&
    typeof score === 'number' &&
    typeof bytes === 'object'
  )
}
