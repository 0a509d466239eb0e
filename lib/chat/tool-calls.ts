import { randomBytes } from 'node:crypto'
import { GEMMA_CALL, GEMMA_QUOTE } from '../model/gemma-marks.js'
import { isJsonObject } from '../model/model-files.js'
import { GemmaTexts, readGemmaCall } from './gemma-calls.js'
import {
  type CallTags,
  FUNCTION_TAGS,
  INVOKE_TAGS,
  KEY_TAGS,
  mayBeTagged,
  readTagged,
  type TaggedCall,
} from './tagged-calls.js'

/** A function that the model asks its caller to call. */
export interface ToolCall {
  /** The caller's answer names it. */
  readonly id: string
  /** The function. */
  readonly name: string
  /** A JSON object, as the model wrote it: read and written again, its numbers could become others. */
  readonly arguments: string
}

/** What an answer turns out to say. */
export interface Said {
  /** Text for people. */
  readonly text: string
  readonly calls: readonly ToolCall[]
}

/** Tells text from tool calls while an answer comes. What it cannot read stays text: nothing is lost. */
export interface ToolCallParser {
  /** The next token: its id, null for a text without one, and the text that became certain with it. */
  push(id: number | null, text: string): Said
  /** The answer has ended. */
  end(): Said
}

/**
 * How a model writes its calls:
 * - `hermes`: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as Hermes and Qwen do
 * - `qwen-coder`: `<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>`, as Qwen3-Coder does
 * - `seed`: the same between `<seed:tool_call>` and `</seed:tool_call>`, as Seed-OSS does
 * - `minimax`: `<minimax:tool_call><invoke name="NAME"><parameter name="KEY">VALUE</parameter></invoke></minimax:tool_call>`,
 *   as MiniMax-M2 does
 * - `glm`: `<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>`, as GLM-4.5 does
 * - `gemma`: `<|tool_call>call:NAME{KEY:<|"|>TEXT<|"|>,KEY:NUMBER}<tool_call|>`, as Gemma 4 does
 * - `phi`: `<|tool_call|>[{"name": …, "arguments": {…}}]<|/tool_call|>`, as Phi-4-mini does, and Granite 3
 *   without the end
 * - `mistral`: `[TOOL_CALLS][{"name": …, "arguments": {…}}]` or `[TOOL_CALLS]name[ARGS]{…}`, to the end
 * - `llama`: an answer that is nothing but `{"name": …, "parameters": {…}}`, several with `;` between
 */
export type ToolFormat = keyof typeof MARKED | 'mistral' | 'llama'

/** The format that a chat template tells its model to write; null for one that we do not know. */
export function toolFormatOf(template: string): ToolFormat | null {
  if (template.includes('[TOOL_CALLS]')) return 'mistral'
  if (template.includes('minimax:tool_call')) return 'minimax'
  if (template.includes('seed:tool_call')) return 'seed'
  if (template.includes(TOOL_CALL.open)) {
    if (template.includes('<arg_key>')) return 'glm'
    return template.includes('<function=') ? 'qwen-coder' : 'hermes'
  }
  if (template.includes(GEMMA_CALL.open)) return 'gemma'
  // Phi's says how its tools are written, and leaves its calls out.
  if (template.includes('<|tool|>') || template.includes(PHI.open)) return 'phi'
  const isLlama = template.includes('<|python_tag|>') || template.includes('"parameters":')
  return isLlama ? 'llama' : null
}

/** What a parser has to know. */
export interface ToolCallContext {
  /** Names of the functions there are. */
  readonly names: ReadonlySet<string>
  /** The JSON schema of a function's arguments; undefined where there is no such function. */
  parametersOf(name: string): unknown
  /** The id of a special token, whose text is left out of answers; undefined where it is none. */
  specialId(token: string): number | undefined
}

/** A parser for one answer. */
export function makeToolCallParser(format: ToolFormat, context: ToolCallContext): ToolCallParser {
  switch (format) {
    case 'mistral':
      return new WholeParser(context, MISTRAL)
    case 'llama':
      return new WholeParser(context, LLAMA)
    default:
      return new MarkedParser(context, MARKED[format])
  }
}

/** Marks may be special tokens, which have no text of their own: this gives it back to them. */
class Marks {
  readonly #texts = new Map<number, string>()

  constructor({ specialId }: ToolCallContext, marks: readonly string[]) {
    for (const mark of marks) {
      const id = specialId(mark)
      if (id !== undefined) this.#texts.set(id, mark)
    }
  }

  textOf(id: number | null, text: string): string {
    const mark = id === null ? undefined : this.#texts.get(id)
    return text + (mark ?? '')
  }
}

const NOTHING: Said = { text: '', calls: [] }

/** The marks that calls stand between. */
interface CallMarks {
  readonly open: string
  readonly close: string
}

/** Of Phi-4-mini; Granite 3 has no end of calls but that of the answer. */
export const PHI: CallMarks = { open: '<|tool_call|>', close: '<|/tool_call|>' }
const TOOL_CALL: CallMarks = { open: '<tool_call>', close: '</tool_call>' }

/** Text with calls between marks. */
interface MarkedFormat extends CallMarks {
  /** What a call of a function begins with where a model forgets the mark before it. */
  readonly unmarked?: (name: string) => string
  /** How they are written; left out: as an object of JSON, or a list of them. */
  readonly tags?: CallTags
  /** How they are written where that is no JSON at all. */
  readonly own?: OwnNotation
}

/** Calls in a notation of its own. */
interface OwnNotation {
  /** What stands in calls and may be a special token. */
  readonly marks: readonly string[]
  /** Follows where texts are: marks in them are none. */
  texts(): Pick<Strings, 'isInside'>
  /** The call of a text that is nothing else; null for any other. */
  read(text: string, context: ToolCallContext): TaggedCall | null
}

const MARKED = {
  hermes: TOOL_CALL,
  phi: PHI,
  // Qwen3-Coder's models may leave their first mark out.
  'qwen-coder': {
    ...TOOL_CALL,
    unmarked: (name: string) => `<function=${name}>`,
    tags: FUNCTION_TAGS,
  },
  seed: { open: '<seed:tool_call>', close: '</seed:tool_call>', tags: FUNCTION_TAGS },
  minimax: { open: '<minimax:tool_call>', close: '</minimax:tool_call>', tags: INVOKE_TAGS },
  glm: { ...TOOL_CALL, tags: KEY_TAGS },
  // Gemma's models may leave their first mark out, too.
  gemma: {
    ...GEMMA_CALL,
    unmarked: (name: string) => `call:${name}{`,
    own: { marks: [GEMMA_QUOTE], texts: () => new GemmaTexts(), read: readGemmaCall },
  },
} satisfies Record<string, MarkedFormat>

/** How often what is left at an answer's end is read anew, behind what was none. */
const MAX_TRIES = 8

class MarkedParser implements ToolCallParser {
  readonly #context: ToolCallContext
  readonly #format: MarkedFormat
  readonly #marks: Marks
  /** What calls begin with. */
  readonly #openings: readonly string[]
  #rest = ''
  #isInside = false
  /** Closing marks up to here are none: each is looked at once. */
  #lookedAt = 0
  #strings: Pick<Strings, 'isInside'> = new Strings()
  /** What calls that may be no calls began with: white space, which is nobody's unless what follows is text, and the mark. */
  #opened = ''
  #hasCalls = false

  constructor(context: ToolCallContext, format: MarkedFormat) {
    this.#context = context
    this.#format = format
    this.#marks = new Marks(context, [format.open, format.close, ...(format.own?.marks ?? [])])
    const { open, unmarked } = format
    this.#openings = [open, ...(unmarked ? [...context.names].map(unmarked) : [])]
  }

  push(id: number | null, text: string): Said {
    this.#rest += this.#marks.textOf(id, text)
    return this.#read(false)
  }

  end(): Said {
    return this.#read(true)
  }

  #read(isLast: boolean): Said {
    const { close } = this.#format
    let text = ''
    const calls: ToolCall[] = []
    for (let nTries = 0; nTries < MAX_TRIES || !isLast; ) {
      const at = this.#isInside ? this.#closing(isLast) : this.#opening()
      if (at < 0) break
      const before = this.#rest.slice(0, at)
      this.#rest = this.#rest.slice(at)
      if (this.#isInside) {
        this.#rest = this.#rest.slice(close.length)
        const read = this.#callsBehind(before)
        text += read ? read.text : this.#opened + before + close
        calls.push(...(read?.calls ?? []))
        this.#hasCalls ||= read !== null
        if (!read) nTries++
      } else {
        const spoken = before.trimEnd()
        text += spoken
        this.#open(before.slice(spoken.length))
      }
      this.#isInside = !this.#isInside
    }
    if (this.#isInside) {
      if (!isLast) return { text, calls }
      // Some leave the closing mark out.
      const unclosed = this.#unclosed()
      if (unclosed) return { text, calls: [...calls, ...unclosed] }
      return { text: text + this.#opened + this.#rest, calls }
    }
    const held = Math.max(...this.#openings.map((mark) => overlap(this.#rest, mark)))
    const certain = this.#rest.slice(0, this.#rest.length - held)
    const end = isLast ? this.#rest.length : certain.trimEnd().length
    text += this.#spoken(this.#rest.slice(0, end))
    this.#rest = this.#rest.slice(end)
    return { text, calls }
  }

  /** Where calls begin; below 0: nowhere. */
  #opening(): number {
    const places = this.#openings.map((mark) => this.#rest.indexOf(mark))
    const found = places.filter((at) => at >= 0)
    return found.length === 0 ? -1 : Math.min(...found)
  }

  /** Takes the mark, if calls begin with it. */
  #open(gap: string): void {
    const { open, own } = this.#format
    this.#lookedAt = 0
    this.#strings = own?.texts() ?? new Strings()
    this.#opened = gap
    if (!this.#rest.startsWith(open)) return
    this.#opened += open
    this.#rest = this.#rest.slice(open.length)
  }

  /** Where calls end: at the first mark that is none of their own text; at last any mark will do. */
  #closing(isLast: boolean): number {
    const { close } = this.#format
    for (;;) {
      const at = this.#rest.indexOf(close, this.#lookedAt)
      if (at < 0) break
      if (this.#isEnd(at)) return at
      this.#lookedAt = at + 1
    }
    // A mark may come in pieces.
    this.#lookedAt = Math.max(this.#lookedAt, this.#rest.length - close.length + 1)
    return isLast && !this.#unclosed() ? this.#rest.indexOf(close) : -1
  }

  /** Whether what is there up to a place may be calls to their end. */
  #isEnd(at: number): boolean {
    const { tags } = this.#format
    if (tags && !isJson(this.#rest)) return mayBeTagged(this.#rest.slice(0, at), tags)
    return !this.#strings.isInside(this.#rest, at)
  }

  /** The calls between marks; behind text where the first of them was only spoken of. null: there are none. */
  #callsBehind(between: string): Said | null {
    const calls = this.#callsOf(between)
    if (calls) return { text: '', calls }
    const { open } = this.#format
    const at = between.lastIndexOf(open)
    const others = at < 0 ? null : this.#callsOf(between.slice(at + open.length))
    return others && { text: (this.#opened + between.slice(0, at)).trimEnd(), calls: others }
  }

  /** The calls of an answer that ends without their mark. */
  #unclosed(): ToolCall[] | null {
    const { tags } = this.#format
    // Only a mark tells whether there would have been more arguments.
    return tags?.call === null && !isJson(this.#rest) ? null : this.#callsOf(this.#rest)
  }

  /** What stands between marks; null where it is not all calls. */
  #callsOf(text: string): ToolCall[] | null {
    const { tags, own } = this.#format
    if (own) {
      const read = own.read(text, this.#context)
      const call = read && makeCall(read.name, read.args)
      return call && [call]
    }
    // Who was taught tags may write JSON nevertheless.
    const calls =
      tags && !isJson(text)
        ? readTagged(text, tags, this.#context)?.map(({ name, args }) => makeCall(name, args))
        : readCalls(text, ['arguments', 'parameters'])
    return calls && areAll(calls) ? calls : null
  }

  /** White space around calls is nobody's. */
  #spoken(text: string): string {
    return this.#hasCalls && text.trim() === '' ? '' : text
  }
}

/** Whether a text begins as an object or a list does. */
function isJson(text: string): boolean {
  return /^\s*[[{]/.test(text)
}

/** How many of the text's last characters may be the beginning of a mark. */
function overlap(text: string, mark: string): number {
  for (let n = Math.min(text.length, mark.length - 1); n > 0; n--) {
    if (mark.startsWith(text.slice(-n))) return n
  }
  return 0
}

/** How calls are written that go on to the answer's end. */
interface WholeFormat {
  /** The first one begins the calls. */
  readonly marks: readonly string[]
  /** An answer that may still turn out to be calls, though it has no mark. */
  readonly opening: RegExp
  /** The calls from the mark, or the opening, on; null for what are none. */
  read(text: string, context: ToolCallContext): ToolCall[] | null
}

class WholeParser implements ToolCallParser {
  readonly #context: ToolCallContext
  readonly #marks: Marks
  readonly #format: WholeFormat
  readonly #mark: string
  #held = ''
  #hasSpoken = false

  constructor(context: ToolCallContext, format: WholeFormat) {
    this.#context = context
    this.#marks = new Marks(context, format.marks)
    this.#format = format
    this.#mark = format.marks[0] as string
  }

  push(id: number | null, text: string): Said {
    this.#held += this.#marks.textOf(id, text)
    const at = this.#held.indexOf(this.#mark)
    if (at > 0) return this.#speak(at)
    if (at === 0 || (!this.#hasSpoken && this.#format.opening.test(this.#held))) return NOTHING
    return this.#speak(this.#held.length - overlap(this.#held, this.#mark))
  }

  /** Gives out the first characters of what is held. */
  #speak(n: number): Said {
    const text = this.#held.slice(0, n)
    this.#held = this.#held.slice(n)
    this.#hasSpoken ||= text !== ''
    return { text, calls: [] }
  }

  end(): Said {
    const calls = this.#format.read(this.#held, this.#context)
    return calls ? { text: '', calls } : this.#speak(this.#held.length)
  }
}

function readMistral(text: string): ToolCall[] | null {
  const [before, ...parts] = splitOutsideStrings(text, '[TOOL_CALLS]')
  if (before?.trim() !== '' || parts.length === 0) return null
  const calls = parts.flatMap((part) => {
    const [, name, args] =
      /^\s*([\w.-]+)(?:\[CALL_ID\][^[{]*)?(?:\[ARGS\])?\s*(\{.*)$/s.exec(part) ?? []
    return name !== undefined ? [makeCall(name, args as string)] : readCalls(part, ['arguments'])
  })
  return areAll(calls) ? calls : null
}

function readLlama(text: string, { names }: ToolCallContext): ToolCall[] | null {
  const objects = jsonObjects(text.replace('<|python_tag|>', ''))
  const calls = objects?.map((one) => readCall(one, ['parameters', 'arguments'])) ?? []
  // An answer may be JSON that is no call.
  const areCalls = calls.length > 0 && calls.every((call) => call !== null && names.has(call.name))
  return areCalls ? (calls as ToolCall[]) : null
}

const MISTRAL: WholeFormat = {
  marks: ['[TOOL_CALLS]', '[ARGS]', '[CALL_ID]'],
  opening: /^\s*$/,
  read: readMistral,
}
const LLAMA: WholeFormat = { marks: ['<|python_tag|>'], opening: /^\s*(\{|$)/, read: readLlama }

/** JSON objects one after the other, `;` or `,` between; null where there is anything else. */
function jsonObjects(text: string): string[] | null {
  const objects: string[] = []
  let rest = text.trim()
  while (rest !== '') {
    let end = rest.indexOf('}') + 1
    // The end of an object is where it first parses.
    while (end > 0 && parse(rest.slice(0, end)) === undefined) {
      const next = rest.indexOf('}', end)
      end = next < 0 ? 0 : next + 1
    }
    if (end === 0) return null
    objects.push(rest.slice(0, end))
    rest = rest.slice(end).replace(/^[\s;,]+/, '')
  }
  return objects
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

/** Follows a text of JSON, and where its strings are. */
class Strings {
  #at: number
  #isInside = false

  constructor(from = 0) {
    this.#at = from
  }

  /** Whether a place is within a string; places have to come in order. */
  isInside(text: string, place: number): boolean {
    for (; this.#at < place; this.#at++) {
      if (text[this.#at] === '"') this.#isInside = !this.#isInside
      else if (this.#isInside && text[this.#at] === '\\') this.#at++
    }
    return this.#isInside
  }
}

function splitOutsideStrings(text: string, mark: string): string[] {
  const parts: string[] = []
  let from = 0
  let strings = new Strings()
  for (let at = text.indexOf(mark); at >= 0; at = text.indexOf(mark, at + mark.length)) {
    if (strings.isInside(text, at)) continue
    parts.push(text.slice(from, at))
    from = at + mark.length
    strings = new Strings(from)
  }
  return [...parts, text.slice(from)]
}

/** A string of JSON, as an expression that needs no stack for long ones. */
const STRING = '"[^"\\\\]*(?:\\\\.[^"\\\\]*)*"'

/** The texts between the commas of a JSON list or object. */
function elementsOf(json: string): string[] {
  const elements: string[] = []
  let depth = 0
  let from = json.search(/[[{]/) + 1
  for (const { 0: token, index } of json.matchAll(new RegExp(`${STRING}|[[\\]{},]`, 'gs'))) {
    if (token === '[' || token === '{') depth++
    const isEnd = token === ']' || token === '}'
    if (depth === 1 && (isEnd || token === ',')) {
      elements.push(json.slice(from, index))
      from = index + 1
    }
    if (isEnd) depth--
  }
  return elements
}

/** The text of an object's value; undefined where it has no such key. */
function valueText(json: string, key: string): string | undefined {
  const member = new RegExp(`^\\s*(${STRING})\\s*:(.*)$`, 's')
  const values = elementsOf(json).flatMap((element) => {
    const [, name, value] = member.exec(element) ?? []
    return name !== undefined && parse(name) === key ? [value as string] : []
  })
  return values.at(-1)
}

/** A call, if a text is one: its arguments are under the first of these keys that is there. */
function readCall(json: string, keys: readonly string[]): ToolCall | null {
  const value = parse(json)
  if (!isJsonObject(value) || typeof value.name !== 'string' || value.name === '') return null
  const key = keys.find((own) => value[own] !== undefined)
  if (key === undefined) return makeCall(value.name, '{}')
  const given = value[key]
  // Some write the object as a text.
  return makeCall(value.name, typeof given === 'string' ? given : (valueText(json, key) ?? ''))
}

/** The calls of an object, or of a list of them; null for what is none. */
function readCalls(json: string, keys: readonly string[]): (ToolCall | null)[] {
  const list = Array.isArray(parse(json)) ? elementsOf(json) : [json]
  return list.map((one) => readCall(one, keys))
}

function areAll(calls: (ToolCall | null)[]): calls is ToolCall[] {
  return calls.every((call) => call !== null)
}

/** A call of a function, if its arguments are the text of an object. */
export function makeCall(name: string, args: string): ToolCall | null {
  return isJsonObject(parse(args)) ? { id: newId(), name, arguments: args.trim() } : null
}

const LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789'

/** Nine letters and digits, as Mistral's templates ask for. */
function newId(): string {
  return Array.from(randomBytes(9), (byte) => LETTERS[byte % LETTERS.length]).join('')
}

/**
 * A parser for an answer that has to be a call: the arguments alone where the function is named, else
 * (null) an object of name and arguments.
 */
export function makeForcedParser(name: string | null): ToolCallParser {
  let all = ''
  return {
    push(_, text) {
      all += text
      return NOTHING
    },
    end() {
      const call = name === null ? readCall(all, ['arguments']) : makeCall(name, all)
      // Cut by max_tokens.
      return call ? { text: '', calls: [call] } : { text: all, calls: [] }
    },
  }
}
