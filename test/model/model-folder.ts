import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type ErrorCode, ZipCacheError } from '../../lib/errors'

export const kFixtures = join(__dirname, '..', 'fixtures')
export const kModels = join(__dirname, '..', '..', 'models')

/**
 * A folder that lives as long as the test file: `write` puts files into fresh folders of their own.
 */
export class ModelFolders {
  readonly #root = mkdtempSync(join(tmpdir(), 'zipcache-model-'))
  #count = 0

  /** A new folder with these files: text and bytes as they are, anything else as JSON. */
  write(files: Record<string, unknown>): string {
    const dir = mkdtempSync(join(this.#root, `${this.#count++}-`))
    for (const [name, content] of Object.entries(files)) {
      const isPlain = typeof content === 'string' || content instanceof Uint8Array
      writeFileSync(join(dir, name), isPlain ? content : JSON.stringify(content))
    }
    return dir
  }

  remove(): void {
    if (existsSync(this.#root)) rmSync(this.#root, { recursive: true })
  }
}

/** One tensor for `safetensors`; `begin` defaults to the end of the one before. */
export interface TensorSpec {
  dtype: string
  shape: number[]
  sizeBytes: number
  begin?: number
}

/**
 * A safetensors file of zeros; `header` replaces the header text, `declaredBytes` its length field.
 */
export function safetensors(
  tensors: Record<string, TensorSpec>,
  options: { header?: string | Uint8Array; declaredBytes?: bigint; extraBytes?: number } = {},
): Buffer {
  const entries: Record<string, unknown> = {}
  let end = 0
  let dataBytes = 0
  for (const [name, { dtype, shape, sizeBytes, begin = end }] of Object.entries(tensors)) {
    end = begin + sizeBytes
    dataBytes = Math.max(dataBytes, end)
    entries[name] = { dtype, shape, data_offsets: [begin, end] }
  }
  const header = Buffer.from((options.header ?? JSON.stringify(entries)) as string)
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(options.declaredBytes ?? BigInt(header.length))
  return Buffer.concat([length, header, Buffer.alloc(dataBytes + (options.extraBytes ?? 0))])
}

/** Awaits a promise that must reject with this code and a message that has all these parts. */
export async function expectRefusal(
  promise: Promise<unknown>,
  code: ErrorCode,
  ...parts: (string | RegExp)[]
): Promise<void> {
  const error = await promise.then(
    () => undefined,
    (e: unknown) => e,
  )
  expectZipCacheError(error, code, ...parts)
}

export function expectZipCacheError(
  error: unknown,
  code: ErrorCode,
  ...parts: (string | RegExp)[]
): void {
  expect(error).toBeInstanceOf(ZipCacheError)
  const { code: actual, message } = error as ZipCacheError
  expect({ code: actual, message }).toMatchObject({ code })
  for (const part of parts) expect(message).toMatch(part instanceof RegExp ? part : literal(part))
}

const literal = (text: string) => new RegExp(text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'))

export function readJson(path: string): Record<string, unknown> {
  return JSON.parse(readFileSync(path, 'utf8')) as Record<string, unknown>
}
