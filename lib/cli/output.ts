import { access, constants, writeFile } from 'node:fs/promises'
import { dirname, resolve } from 'node:path'
import { SingleBar } from 'cli-progress'
import { reasonOf, ZipCacheError } from '../errors.js'

/** Writes text for people, or a model's text, to stdout. */
export function print(text: string): void {
  process.stdout.write(text)
}

/** Writes the one document of `--json` to stdout. */
export function printJson(value: unknown): void {
  print(jsonText(value))
}

function jsonText(value: unknown): string {
  return `${JSON.stringify(value, null, 2)}\n`
}

/** Writes a line to stderr. */
export function say(line: string): void {
  process.stderr.write(`${line}\n`)
}

/** Receives how far something is. */
export type OnProgress = (progress: { done: number; total: number }) => void

/**
 * Runs something while a progress bar stands on stderr, if `show` and a person is looking there.
 */
export async function withProgress<T>(
  label: string,
  show: boolean,
  use: (onProgress: OnProgress | undefined) => Promise<T>,
): Promise<T> {
  if (!show || !process.stderr.isTTY) return use(undefined)
  const bar = new SingleBar({
    format: `${label} {bar} {value}/{total}, {eta_formatted} left`,
    barCompleteChar: '#',
    barIncompleteChar: '.',
    clearOnComplete: true,
    stream: process.stderr,
  })
  bar.start(1, 0)
  try {
    return await use(({ done, total }) => {
      bar.setTotal(total)
      bar.update(done)
    })
  } finally {
    bar.stop()
  }
}

/**
 * Found out now rather than after minutes of measuring. Rejects with `ERR_ZC_IO` where a file cannot
 * be written.
 */
export async function expectWritable(file: string, option: string): Promise<void> {
  await orIoError(file, option, () => access(dirname(resolve(file)), constants.W_OK))
}

/** What a report may be written to, beside the tables on stdout. */
export interface ReportOptions {
  /** The document instead of the tables. */
  readonly json?: boolean
  readonly jsonFile?: string
  readonly html?: string
}

/** `expectWritable` of each file of a report. */
export async function expectReportFiles({ jsonFile, html }: ReportOptions): Promise<void> {
  if (jsonFile !== undefined) await expectWritable(jsonFile, '--json-file')
  if (html !== undefined) await expectWritable(html, '--html')
}

/** Writes a report to where the options want it. Rejects with `ERR_ZC_IO`. */
export async function writeReport(
  { json = false, jsonFile, html }: ReportOptions,
  { document, page, tables }: { document: object; page: () => string; tables: () => string },
): Promise<void> {
  if (html !== undefined) await writeOutput(html, '--html', page())
  if (jsonFile !== undefined) await writeOutput(jsonFile, '--json-file', jsonText(document))
  print(json ? jsonText(document) : tables())
}

/** Writes a file and says so. Rejects with `ERR_ZC_IO`. */
export async function writeOutput(file: string, option: string, text: string): Promise<void> {
  await orIoError(file, option, () => writeFile(file, text))
  if (process.stderr.isTTY) say(`${option}: wrote ${file}`)
}

async function orIoError(file: string, option: string, use: () => Promise<void>): Promise<void> {
  try {
    await use()
  } catch (cause) {
    throw new ZipCacheError(
      'ERR_ZC_IO',
      `${option} ${file}: cannot be written: ${reasonOf(cause)}`,
      { cause },
    )
  }
}
