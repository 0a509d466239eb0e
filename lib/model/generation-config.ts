import { ZipCacheError } from '../errors.js'
import { type JsonObject, modelFile, quote, readJsonFile } from './model-files.js'

/**
 * What generation_config.json says; a field that is absent or null there is null (or an empty list)
 * here.
 */
export interface GenerationConfig {
  /** The token that begins a text. */
  readonly bosTokenId: number | null
  /** Tokens that end a text. */
  readonly eosTokenIds: readonly number[]
  /** false: greedy, whatever the temperature says. */
  readonly doSample: boolean | null
  /** Softmax temperature, >= 0. */
  readonly temperature: number | null
  /** Keep the k likeliest tokens; 0 keeps all. */
  readonly topK: number | null
  /** Keep the likeliest tokens up to this probability mass, in (0, 1]. */
  readonly topP: number | null
  /** Keep tokens at least this share of the likeliest one's probability, in [0, 1]. */
  readonly minP: number | null
  /** Divides positive and multiplies negative logits of tokens already seen, > 0. */
  readonly repetitionPenalty: number | null
  /** Number of new tokens to stop at, >= 1. */
  readonly maxNewTokens: number | null
}

const kMaxBytes = 1 << 24
const kMaxTokenId = 2 ** 31 - 1

/**
 * Reads generation_config.json of a model folder: the ids that end a text, and the sampling its
 * authors advise.
 * @returns null where the folder has no such file
 * @throws ERR_ZC_CONFIG naming the key when the file is damaged or a value is out of its range;
 *   ERR_ZC_IO when it cannot be read
 */
export async function readGenerationConfig(dir: string): Promise<GenerationConfig | null> {
  const path = modelFile(dir, 'generation_config.json')
  const raw = await readJsonFile(path, 'ERR_ZC_CONFIG', kMaxBytes)
  if (raw === null) return null
  const number = (key: string, expected: string, accept: (value: number) => boolean) =>
    optionalNumber(raw, key, path, expected, accept)
  return {
    bosTokenId: firstTokenId(raw, path),
    eosTokenIds: readTokenIds(raw, 'eos_token_id', path),
    doSample: optionalBoolean(raw, 'do_sample', path),
    temperature: number('temperature', 'a number >= 0', (t) => t >= 0),
    topK: number('top_k', 'an integer >= 0', (k) => Number.isSafeInteger(k) && k >= 0),
    topP: number('top_p', 'a number above 0 and at most 1', (p) => p > 0 && p <= 1),
    minP: number('min_p', 'a number from 0 to 1', (p) => p >= 0 && p <= 1),
    repetitionPenalty: number('repetition_penalty', 'a number > 0', (r) => r > 0),
    maxNewTokens: number(
      'max_new_tokens',
      'an integer >= 1',
      (n) => Number.isSafeInteger(n) && n >= 1,
    ),
  }
}

/**
 * Token ids under `key`: one id, a list of ids, or none where it is absent or null. Doubles are
 * dropped.
 * @throws ERR_ZC_CONFIG when it is anything else
 */
export function readTokenIds(raw: JsonObject, key: string, path: string): number[] {
  const value = raw[key]
  if (value === undefined || value === null) return []
  const ids = Array.isArray(value) ? value : [value]
  for (const id of ids) {
    if (!Number.isSafeInteger(id) || id < 0 || id > kMaxTokenId) {
      const message = `${path}: ${key} is ${quote(value)}, expected a token id or a list of token ids`
      throw new ZipCacheError('ERR_ZC_CONFIG', message, { argument: key })
    }
  }
  return [...new Set(ids as number[])]
}

function firstTokenId(raw: JsonObject, path: string): number | null {
  return readTokenIds(raw, 'bos_token_id', path)[0] ?? null
}

function optionalBoolean(raw: JsonObject, key: string, path: string): boolean | null {
  const value = raw[key]
  if (value === undefined || value === null) return null
  if (typeof value === 'boolean') return value
  const message = `${path}: ${key} is ${quote(value)}, expected true or false`
  throw new ZipCacheError('ERR_ZC_CONFIG', message, { argument: key })
}

function optionalNumber(
  raw: JsonObject,
  key: string,
  path: string,
  expected: string,
  accept: (value: number) => boolean,
): number | null {
  const value = raw[key]
  if (value === undefined || value === null) return null
  if (typeof value === 'number' && Number.isFinite(value) && accept(value)) return value
  const message = `${path}: ${key} is ${quote(value)}, expected ${expected}`
  throw new ZipCacheError('ERR_ZC_CONFIG', message, { argument: key })
}
