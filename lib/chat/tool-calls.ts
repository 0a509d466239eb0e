import { randomBytes } from 'node:crypto'
import { isJsonObject } from '../model/model-files.js'

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
 * - `phi`: `<|tool_call|>[{"name": …, "arguments": {…}}]<|/tool_call|>`, as Phi-4-mini does, and Granite 3
 *   without the end
 * - `mistral`: `[TOOL_CALLS][{"name": …, "arguments": {…}}]` or `[TOOL_CALLS]name[ARGS]{…}`, to the end
 * - `llama`: an answer that is nothing but `{"name": …, "parameters": {…}}`, several with `;` between
 */
export type ToolFormat = 'hermes' | 'phi' | 'mistral' | 'llama'

/** The format that a chat template tells its model to write; null for one that we do not know. */
export function toolFormatOf(template: string): ToolFormat | null {
  if (template.includes('[TOOL_CALLS]')) return 'mistral'
  if (template.includes('<tool_call>')) return 'hermes'
  // Phi's says how its tools are written, and leaves its calls out.
  if (template.includes('<|tool|>') || template.includes(PHI.open)) return 'phi'
  const isLlama = template.includes('<|python_tag|>') || template.includes('"parameters":')
  return isLlama ? 'llama' : null
}

/** What a parser has to know. */
export interface ToolCallContext {
  /** Names of the functions there are. */
  readonly names: ReadonlySet<string>
  /** The id of a special token, whose text is left out of answers; undefined where it is none. */
  specialId(token: string): number | undefined
}

/** A parser for one answer. */
export function makeToolCallParser(format: ToolFormat, context: ToolCallContext): ToolCallParser {
  switch (format) {
    case 'hermes':
      return new MarkedParser(context, HERMES)
    case 'phi':
      return new MarkedParser(context, PHI)
    case 'mistral':
      return new WholeParser(context, MISTRAL)
    case 'llama':
      return new WholeParser(context, LLAMA)
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

const HERMES: CallMarks = { open: '<tool_call>', close: '</tool_call>' }
/** Of Phi-4-mini; Granite 3 has no end of calls but that of the answer. */
export const PHI: CallMarks = { open: '<|tool_call|>', close: '<|/tool_call|>' }

/** Text with calls between marks: an object, or a list of them. */
class MarkedParser implements ToolCallParser {
  readonly #marks: Marks
  readonly #open: string
  readonly #close: string
  #rest = ''
  #isInside = false
  /** White space before the mark; it is nobody's, unless what follows is text, too. */
  #gap = ''
  #hasCalls = false

  constructor(context: ToolCallContext, { open, close }: CallMarks) {
    this.#marks = new Marks(context, [open, close])
    this.#open = open
    this.#close = close
  }

  push(id: number | null, text: string): Said {
    this.#rest += this.#marks.textOf(id, text)
    return this.#read(false)
  }

  end(): Said {
    return this.#read(true)
  }

  #read(isLast: boolean): Said {
    let text = ''
    const calls: ToolCall[] = []
    for (;;) {
      const mark = this.#isInside ? this.#close : this.#open
      const at = this.#isInside ? this.#closing(isLast) : this.#rest.indexOf(mark)
      if (at < 0) break
      const before = this.#rest.slice(0, at)
      this.#rest = this.#rest.slice(at + mark.length)
      if (this.#isInside) {
        const read = readMarked(before)
        if (read) calls.push(...read)
        else text += this.#gap + this.#open + before + this.#close
        this.#hasCalls ||= read !== null
      } else {
        const spoken = before.trimEnd()
        text += spoken
        this.#gap = before.slice(spoken.length)
      }
      this.#isInside = !this.#isInside
    }
    if (this.#isInside) {
      if (!isLast) return { text, calls }
      // Some leave the closing mark out.
      const unclosed = readMarked(this.#rest)
      if (unclosed) return { text, calls: [...calls, ...unclosed] }
      return { text: text + this.#gap + this.#open + this.#rest, calls }
    }
    const certain = this.#rest.slice(0, this.#rest.length - overlap(this.#rest, this.#open))
    const end = isLast ? this.#rest.length : certain.trimEnd().length
    text += this.#spoken(this.#rest.slice(0, end))
    this.#rest = this.#rest.slice(end)
    return { text, calls }
  }

  /** Where calls end: at the first mark outside of their strings; at last any mark will do. */
  #closing(isLast: boolean): number {
    for (let at = -1; ; ) {
      at = this.#rest.indexOf(this.#close, at + 1)
      if (at < 0) break
      if (!endsInString(this.#rest.slice(0, at))) return at
    }
    return isLast && !readMarked(this.#rest) ? this.#rest.indexOf(this.#close) : -1
  }

  /** White space around calls is nobody's. */
  #spoken(text: string): string {
    return this.#hasCalls && text.trim() === '' ? '' : text
  }
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

/** Whether a text of JSON that is cut here is cut inside of a string. */
function endsInString(text: string): boolean {
  let inString = false
  for (let i = 0; i < text.length; i++) {
    if (text[i] === '"') inString = !inString
    else if (inString && text[i] === '\\') i++
  }
  return inString
}

function splitOutsideStrings(text: string, mark: string): string[] {
  const parts: string[] = []
  for (const piece of text.split(mark)) {
    const last = parts.at(-1)
    if (last === undefined || !endsInString(last)) parts.push(piece)
    else parts[parts.length - 1] = last + mark + piece
  }
  return parts
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

/** What stands between marks; null where it is not all calls. */
function readMarked(json: string): ToolCall[] | null {
  const calls = readCalls(json, ['arguments', 'parameters'])
  return areAll(calls) ? calls : null
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
