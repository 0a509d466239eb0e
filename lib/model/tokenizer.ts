import { Template } from '@huggingface/jinja'
import { Tokenizer } from '@huggingface/tokenizers'
import { ZipCacheError } from '../errors.js'
import {
  isJsonObject,
  type JsonObject,
  modelFile,
  quote,
  readJsonFile,
  readTextFile,
  reason,
} from './model-files.js'
import type { TokenDecoder } from './text-stream.js'

/** One turn of a chat; templates may read further keys (`tool_calls`, `name`, …). */
export interface ChatMessage {
  /** `system`, `user`, `assistant`, or another that the template knows. */
  readonly role: string
  /** A text, or parts as the template takes them. */
  readonly content: unknown
  readonly [key: string]: unknown
}

/** Who has to say something; an assistant's message may be all tool calls. */
export const NEED_CONTENT: ReadonlySet<string> = new Set(['system', 'developer', 'user', 'tool'])

/** Options of `ModelTokenizer.applyChatTemplate`. */
export interface ChatTemplateOptions {
  /** Ends the text where the model's answer begins. Default false, as in transformers. */
  readonly addGenerationPrompt?: boolean | undefined
  /** JSON schemas of functions the model may call. */
  readonly tools?: readonly unknown[] | undefined
  /**
   * Name of the template where the model has several; default `tool_use` with tools if there is
   * one, else `default`.
   */
  readonly template?: string | undefined
  /** A Jinja source to use instead of the model's templates. */
  readonly source?: string | undefined
  /** Further variables for the template, e.g. `{ enable_thinking: false }`. */
  readonly variables?: Readonly<Record<string, unknown>> | undefined
}

const kMaxTokenizerBytes = 1 << 28
const kMaxConfigBytes = 1 << 24
const kMaxTokenId = (1 << 24) - 1
const kSpecialTokenKeys = [
  'bos_token',
  'eos_token',
  'unk_token',
  'sep_token',
  'pad_token',
  'cls_token',
  'mask_token',
] as const

type SpecialTokenKey = (typeof kSpecialTokenKeys)[number]

/** The parts of @huggingface/tokenizers' class that we call. */
interface HuggingFaceTokenizer {
  encode(text: string, options: { add_special_tokens: boolean }): { ids: (number | undefined)[] }
  decode(ids: number[], options: { clean_up_tokenization_spaces: boolean }): string
  id_to_token(id: number): string | undefined
  token_to_id(token: string): number | undefined
}

/**
 * Loads the tokenizer of a Hugging Face model folder: tokenizer.json, with tokenizer_config.json
 * (special tokens, chat template), chat_template.jinja and chat_template.json beside it where they
 * exist.
 * @returns null where the folder has no tokenizer.json: such a model is used with token ids
 * @throws ERR_ZC_TOKENIZER naming the file when one is damaged; ERR_ZC_IO when one cannot be read
 */
export async function loadTokenizer(dir: string): Promise<ModelTokenizer | null> {
  const path = modelFile(dir, 'tokenizer.json')
  const json = await readJsonFile(path, 'ERR_ZC_TOKENIZER', kMaxTokenizerBytes)
  if (json === null) return null
  const configPath = modelFile(dir, 'tokenizer_config.json')
  const config = (await readJsonFile(configPath, 'ERR_ZC_TOKENIZER', kMaxConfigBytes)) ?? {}

  checkTokenizerJson(json, path)
  const specialTokens = readSpecialTokens(config, configPath)
  const templates = await readChatTemplates(dir, config, configPath)
  return new ModelTokenizer(makeTokenizer(json, config, specialTokens, path), {
    specialTokens,
    specialIds: (json.added_tokens as { id: number; special?: boolean }[])
      .filter(({ special }) => special === true)
      .map(({ id }) => id),
    templates,
    spelling: spellingOf(json.decoder),
  })
}

/** How vocabulary entries spell bytes. */
type Spelling = 'byte-level' | 'byte-fallback' | 'words'

function spellingOf(decoder: unknown): Spelling {
  const steps = isJsonObject(decoder) ? [decoder, ...((decoder.decoders as unknown[]) ?? [])] : []
  const has = (type: string) => steps.some((step) => isJsonObject(step) && step.type === type)
  if (has('ByteLevel')) return 'byte-level'
  return has('ByteFallback') || has('Metaspace') ? 'byte-fallback' : 'words'
}

/** GPT-2's printable stand-ins for bytes: itself where it prints, else the next from 256 on. */
const byteOfCharacter: ReadonlyMap<string, number> = (() => {
  const bytes = new Map<string, number>()
  let next = 256
  for (let byte = 0; byte < 256; byte++) {
    const prints =
      (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174 && byte <= 255)
    bytes.set(String.fromCodePoint(prints ? byte : next++), byte)
  }
  return bytes
})()

/** What `loadTokenizer` found beside the vocabulary. */
interface TokenizerParts {
  readonly specialTokens: ReadonlyMap<SpecialTokenKey, string>
  readonly specialIds: readonly number[]
  /** Jinja sources by name; a single template is `default`. */
  readonly templates: ReadonlyMap<string, string>
  readonly spelling: Spelling
}

/** Text to token ids and back, as the model's authors defined it. */
export class ModelTokenizer implements TokenDecoder {
  /** Ids of special tokens (`<s>`, `<|im_end|>`, …), to be left out of a text for people. */
  readonly specialIds: ReadonlySet<number>
  /** The token that begins a text; null: there is none. */
  readonly bosId: number | null
  /** The token that ends one; null: there is none. */
  readonly eosId: number | null
  /** The token of what the vocabulary lacks; null: there is none. */
  readonly unkId: number | null
  /** The token that fills up batches; null: there is none. */
  readonly padId: number | null
  readonly #tokenizer: HuggingFaceTokenizer
  readonly #specialTokens: ReadonlyMap<SpecialTokenKey, string>
  readonly #templates: ReadonlyMap<string, string>
  readonly #spelling: Spelling
  /** By their sources. */
  readonly #compiled = new Map<string, Template>()

  /** @internal Use `loadTokenizer`. */
  constructor(tokenizer: HuggingFaceTokenizer, parts: TokenizerParts) {
    this.#tokenizer = tokenizer
    this.#specialTokens = parts.specialTokens
    this.#templates = parts.templates
    this.#spelling = parts.spelling
    this.specialIds = new Set(parts.specialIds)
    this.bosId = this.#specialId('bos_token')
    this.eosId = this.#specialId('eos_token')
    this.unkId = this.#specialId('unk_token')
    this.padId = this.#specialId('pad_token')
  }

  /**
   * Token ids of `text`. Special tokens written out in the text (`<s>`) become their ids.
   * @param options.addSpecialTokens let the tokenizer add what its authors put around a text, as
   *   `<s>`; default true. false for the text of a chat template, which has them already
   * @throws ERR_ZC_ARGUMENT when `text` is no string; ERR_ZC_TOKENIZER when a piece of it has no id
   */
  encode(
    text: string,
    options: { readonly addSpecialTokens?: boolean | undefined } = {},
  ): number[] {
    if (typeof text !== 'string') {
      const message = `text: is ${quote(text)}, expected a string`
      throw new ZipCacheError('ERR_ZC_ARGUMENT', message, { argument: 'text' })
    }
    const add_special_tokens = options.addSpecialTokens ?? true
    const { ids } = attempt('text: cannot be encoded', () =>
      this.#tokenizer.encode(text, { add_special_tokens }),
    )
    for (const id of ids) {
      if (id !== undefined) continue
      const message = 'text: has a piece outside of the vocabulary, which has no unknown token'
      throw new ZipCacheError('ERR_ZC_TOKENIZER', message, { argument: 'text' })
    }
    return ids as number[]
  }

  /**
   * The text of `ids`. Ids without a token have no text: a model's vocabulary is often padded
   * beyond its tokenizer's.
   *
   * Spaces before punctuation stay, whatever `clean_up_tokenization_spaces` says: removing them
   * changes text that the model wrote on purpose (code, above all), and no piece of a stream could
   * be known before the next.
   * @throws ERR_ZC_ARGUMENT when an id is no integer >= 0; ERR_ZC_TOKENIZER when the decoder fails
   */
  decode(
    ids: Iterable<number>,
    options: { readonly skipSpecialTokens?: boolean | undefined } = {},
  ): string {
    if (typeof (ids as unknown as Iterable<number> | null)?.[Symbol.iterator] !== 'function') {
      const message = `ids: is ${quote(ids)}, expected token ids`
      throw new ZipCacheError('ERR_ZC_ARGUMENT', message, { argument: 'ids' })
    }
    const skip = options.skipSpecialTokens ?? false
    const known: number[] = []
    for (const id of ids) {
      if (!Number.isSafeInteger(id) || id < 0) {
        const message = `ids: holds ${quote(id)}, expected token ids`
        throw new ZipCacheError('ERR_ZC_ARGUMENT', message, { argument: 'ids' })
      }
      if (this.token(id) !== undefined && !(skip && this.specialIds.has(id))) known.push(id)
    }
    if (known.length === 0) return ''
    return attempt('ids: cannot be decoded', () =>
      this.#tokenizer.decode(known, { clean_up_tokenization_spaces: false }),
    )
  }

  /**
   * The vocabulary entry of `id`, in the vocabulary's own spelling (`Ġthe`); undefined where there
   * is none.
   */
  token(id: number): string | undefined {
    return this.#tokenizer.id_to_token(id)
  }

  /** Whether single tokens have bytes of their own: false for a vocabulary of words. */
  get knowsBytes(): boolean {
    return this.#spelling !== 'words'
  }

  /**
   * The bytes that `id` adds to a text, which may be part of a character; null for special tokens,
   * ids without a token, and in a vocabulary of words.
   */
  bytesOf(id: number): Uint8Array | null {
    return this.knowsBytes ? this.#bytesOf(id) : null
  }

  #bytesOf(id: number): Uint8Array | null {
    const token = this.token(id)
    if (token === undefined || this.specialIds.has(id)) return null
    if (this.#spelling === 'byte-level') {
      const bytes = [...token].map((character) => byteOfCharacter.get(character))
      // An added token stands for itself.
      const isOwn = bytes.includes(undefined)
      return isOwn ? Buffer.from(token) : Uint8Array.from(bytes as number[])
    }
    const [, hex] = /^<0x([0-9A-F]{2})>$/.exec(token) ?? []
    if (hex !== undefined) return Uint8Array.of(Number.parseInt(hex, 16))
    return Buffer.from(token.replaceAll('▁', ' '))
  }

  /** The id of a vocabulary entry or added token; undefined where there is none. */
  tokenId(token: string): number | undefined {
    return this.#tokenizer.token_to_id(token)
  }

  /** Names of the chat templates the model came with; empty when it has none. */
  get chatTemplates(): string[] {
    return [...this.#templates.keys()]
  }

  /**
   * The text of a chat, from the model's own template; encode it with `addSpecialTokens: false`.
   * @throws ERR_ZC_TOKENIZER when the model has no such template, or the template is broken or
   *   refuses the messages; ERR_ZC_ARGUMENT when `messages` is no array of `ChatMessage`s
   */
  applyChatTemplate(messages: readonly ChatMessage[], options: ChatTemplateOptions = {}): string {
    if (!Array.isArray(messages)) {
      const message = `messages: is ${quote(messages)}, expected an array of { role, content }`
      throw new ZipCacheError('ERR_ZC_ARGUMENT', message, { argument: 'messages' })
    }
    for (const [i, message] of messages.entries()) checkMessage(message, `messages[${i}]`)
    const name = this.#templateName(options)
    const template = this.#compile(name, options.source)
    return attempt(`chat template ${quote(name)}`, () =>
      template.render({
        ...Object.fromEntries(this.#specialTokens),
        ...options.variables,
        messages,
        tools: options.tools ?? null,
        documents: null,
        add_generation_prompt: options.addGenerationPrompt ?? false,
      }),
    )
  }

  /** The Jinja source that `applyChatTemplate` takes with these options; undefined: there is none. */
  chatTemplateSource(options: ChatTemplateOptions = {}): string | undefined {
    return options.source ?? this.#templates.get(this.#templateName(options))
  }

  #templateName({ tools, template }: ChatTemplateOptions): string {
    const hasToolTemplate = tools !== undefined && this.#templates.has('tool_use')
    return template ?? (hasToolTemplate ? 'tool_use' : 'default')
  }

  #compile(name: string, given: string | undefined): Template {
    const source = given ?? this.#templates.get(name)
    const compiled = this.#compiled.get(source ?? '')
    if (compiled !== undefined) return compiled
    if (source === undefined) {
      const there = this.#templates.size === 0 ? 'none' : this.chatTemplates.join(', ')
      const message = `template: the model has no chat template ${quote(name)} (it has ${there})`
      throw new ZipCacheError('ERR_ZC_TOKENIZER', message, { argument: 'template' })
    }
    const template = attempt(`chat template ${quote(name)}`, () => new Template(source))
    this.#compiled.set(source, template)
    return template
  }

  #specialId(key: SpecialTokenKey): number | null {
    const token = this.#specialTokens.get(key)
    return token === undefined ? null : (this.tokenId(token) ?? null)
  }
}

/** What a template would say of such a message is no help: it joins what is not there to a text. */
function checkMessage(message: unknown, argument: string): void {
  const what = 'expected { role, content }'
  if (!isJsonObject(message) || typeof message.role !== 'string' || message.role === '') {
    const complaint = `${argument}: is ${quote(message)}, ${what} with a text for a role`
    throw new ZipCacheError('ERR_ZC_ARGUMENT', complaint, { argument })
  }
  if (!NEED_CONTENT.has(message.role) || (message.content ?? null) !== null) return
  const complaint = `${argument}: has no content, ${what}`
  throw new ZipCacheError('ERR_ZC_ARGUMENT', complaint, { argument })
}

/** Runs code of the tokenizer packages, whose errors are plain. */
function attempt<T>(what: string, run: () => T): T {
  try {
    return run()
  } catch (cause) {
    throw new ZipCacheError('ERR_ZC_TOKENIZER', `${what}: ${reason(cause)}`, { cause })
  }
}

function refuse(path: string, key: string, complaint: string): never {
  throw new ZipCacheError('ERR_ZC_TOKENIZER', `${path}: ${key} ${complaint}`, { argument: key })
}

function makeTokenizer(
  json: JsonObject,
  config: JsonObject,
  specialTokens: ReadonlyMap<SpecialTokenKey, string>,
  path: string,
): HuggingFaceTokenizer {
  const parts = { normalizer: null, pre_tokenizer: null, post_processor: null, decoder: null }
  // A word-level model takes its unknown token from the config there, but tokenizer.json is where
  // it stands.
  const unknown = (json.model as JsonObject).unk_token
  return attempt(path, () => {
    const plainConfig = {
      ...config,
      ...Object.fromEntries(specialTokens),
      ...(typeof unknown === 'string' ? { unk_token: unknown } : {}),
    }
    return new Tokenizer({ ...parts, ...json }, plainConfig) as unknown as HuggingFaceTokenizer
  })
}

/** Checks what the package does not, and would stumble over later or not at all. */
function checkTokenizerJson(json: JsonObject, path: string): void {
  const { model } = json
  if (!isJsonObject(model)) refuse(path, 'model', `is ${quote(model)}, expected an object`)
  checkVocab(model, path)
  if (model.type === 'BPE') {
    const isMerge = (merge: unknown) =>
      typeof merge === 'string' ||
      (Array.isArray(merge) && merge.length === 2 && merge.every((m) => typeof m === 'string'))
    if (!Array.isArray(model.merges)) {
      refuse(path, 'model.merges', `is ${quote(model.merges)}, expected an array`)
    }
    const wrong = model.merges.find((merge) => !isMerge(merge))
    if (wrong !== undefined) {
      refuse(path, 'model.merges', `holds ${quote(wrong)}, expected pairs of strings`)
    }
  }
  // A file without added tokens is whole; the package asks for the key.
  json.added_tokens ??= []
  if (!Array.isArray(json.added_tokens)) {
    refuse(path, 'added_tokens', `is ${quote(json.added_tokens)}, expected an array`)
  }
  for (const token of json.added_tokens) {
    if (!isJsonObject(token) || !isTokenId(token.id) || typeof token.content !== 'string') {
      refuse(path, 'added_tokens', `holds ${quote(token)}, expected { id, content }`)
    }
  }
  for (const part of ['normalizer', 'pre_tokenizer', 'post_processor', 'decoder']) {
    checkPart(json[part], part, path, 0)
  }
}

function checkVocab(model: JsonObject, path: string): void {
  const { type, vocab } = model
  if (type === 'Unigram') {
    const isPiece = (piece: unknown) =>
      Array.isArray(piece) && typeof piece[0] === 'string' && typeof piece[1] === 'number'
    if (!Array.isArray(vocab) || vocab.length === 0 || !vocab.every(isPiece)) {
      refuse(path, 'model.vocab', 'is no array of [piece, score], which Unigram needs')
    }
    return
  }
  if (!isJsonObject(vocab)) refuse(path, 'model.vocab', `is ${quote(vocab)}, expected an object`)
  let isEmpty = true
  for (const token in vocab) {
    isEmpty = false
    if (isTokenId(vocab[token])) continue
    refuse(
      path,
      'model.vocab',
      `gives ${quote(token)} the id ${quote(vocab[token])}, expected an integer from 0 to ${kMaxTokenId}`,
    )
  }
  if (isEmpty) refuse(path, 'model.vocab', 'is empty')
}

function isTokenId(id: unknown): id is number {
  return Number.isSafeInteger(id) && (id as number) >= 0 && (id as number) <= kMaxTokenId
}

/**
 * A step of the pipeline is null or an object with a type; a `pattern` in it is a String or a
 * Regex.
 */
function checkPart(part: unknown, key: string, path: string, depth: number): void {
  if (part === null || part === undefined) return
  if (!isJsonObject(part) || typeof part.type !== 'string') {
    refuse(path, key, `is ${quote(part)}, expected an object with a type`)
  }
  const { pattern } = part
  if (pattern !== undefined) {
    const source = isJsonObject(pattern) ? (pattern.String ?? pattern.Regex) : undefined
    if (typeof source !== 'string') {
      refuse(path, `${key}.pattern`, `is ${quote(pattern)}, expected { String } or { Regex }`)
    }
  }
  for (const list of ['normalizers', 'pretokenizers', 'processors', 'decoders']) {
    const steps = part[list]
    if (steps === undefined) continue
    if (!Array.isArray(steps) || depth > 16) {
      refuse(path, `${key}.${list}`, `is ${quote(steps)}, expected an array`)
    }
    for (const step of steps) checkPart(step, `${key}.${list}`, path, depth + 1)
  }
}

/**
 * Special tokens of tokenizer_config.json, which writes them as strings or as objects with a
 * `content`.
 */
function readSpecialTokens(config: JsonObject, path: string): Map<SpecialTokenKey, string> {
  const tokens = new Map<SpecialTokenKey, string>()
  for (const key of kSpecialTokenKeys) {
    const value = config[key]
    if (value === undefined || value === null) continue
    const token = isJsonObject(value) ? value.content : value
    if (typeof token !== 'string') refuse(path, key, `is ${quote(value)}, expected a string`)
    tokens.set(key, token)
  }
  return tokens
}

/**
 * chat_template.jinja outranks chat_template.json, and that tokenizer_config.json, as in
 * transformers.
 */
async function readChatTemplates(
  dir: string,
  config: JsonObject,
  configPath: string,
): Promise<Map<string, string>> {
  const jinjaPath = modelFile(dir, 'chat_template.jinja')
  const jinja = await readTextFile(jinjaPath, 'ERR_ZC_TOKENIZER', kMaxConfigBytes)
  if (jinja !== null) return new Map([['default', jinja]])
  const jsonPath = modelFile(dir, 'chat_template.json')
  const json = await readJsonFile(jsonPath, 'ERR_ZC_TOKENIZER', kMaxConfigBytes)
  const path = json === null ? configPath : jsonPath
  return parseChatTemplates((json ?? config).chat_template, path)
}

function parseChatTemplates(value: unknown, path: string): Map<string, string> {
  if (value === undefined || value === null) return new Map()
  if (typeof value === 'string') return new Map([['default', value]])
  const templates = new Map<string, string>()
  const entries: readonly unknown[] = Array.isArray(value) ? value : [value]
  for (const entry of entries) {
    const { name, template } = isJsonObject(entry) ? entry : {}
    if (typeof name !== 'string' || typeof template !== 'string') {
      refuse(path, 'chat_template', `holds ${quote(entry)}, expected text or { name, template }`)
    }
    templates.set(name, template)
  }
  return templates
}
