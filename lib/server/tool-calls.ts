import { randomBytes } from 'node:crypto'
import { isObject } from './fields.js'

/** A function that the model asks its caller to call. */
export interface ToolCall {
  /** The caller's answer names it. */
  readonly id: string
  /** The function. */
  readonly name: string
  /** A JSON object, as a text. */
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
  /** The next token: its id, and the text that became certain with it. */
  push(id: number, text: string): Said
  /** The answer has ended. */
  end(): Said
}

/**
 * How a model writes its calls:
 * - `hermes`: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as Hermes and Qwen do
 * - `mistral`: `[TOOL_CALLS][{"name": …, "arguments": {…}}]` or `[TOOL_CALLS]name[ARGS]{…}`, to the end
 * - `llama`: an answer that is nothing but `{"name": …, "parameters": {…}}`, several with `;` between
 */
export type ToolFormat = 'hermes' | 'mistral' | 'llama'

/** The format that a chat template tells its model to write; null for one that we do not know. */
export function toolFormatOf(template: string): ToolFormat | null {
  if (template.includes('[TOOL_CALLS]')) return 'mistral'
  if (template.includes('<tool_call>')) return 'hermes'
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
      return new HermesParser(context)
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

  textOf(id: number, text: string): string {
    return text + (this.#texts.get(id) ?? '')
  }
}

const NOTHING: Said = { text: '', calls: [] }
const OPEN = '<tool_call>'
const CLOSE = '</tool_call>'

class HermesParser implements ToolCallParser {
  readonly #marks: Marks
  #rest = ''
  #isInside = false
  #hasCalls = false

  constructor(context: ToolCallContext) {
    this.#marks = new Marks(context, [OPEN, CLOSE])
  }

  push(id: number, text: string): Said {
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
      const mark = this.#isInside ? CLOSE : OPEN
      const at = this.#rest.indexOf(mark)
      if (at < 0) break
      const before = this.#rest.slice(0, at)
      this.#rest = this.#rest.slice(at + mark.length)
      if (this.#isInside) {
        const call = readCall(parse(before), ['arguments', 'parameters'], newId())
        if (call) calls.push(call)
        else text += OPEN + before + CLOSE
        this.#hasCalls ||= call !== null
      } else text += this.#spoken(before)
      this.#isInside = !this.#isInside
    }
    if (this.#isInside) {
      if (!isLast) return { text, calls }
      // Some leave the closing mark out.
      const call = readCall(parse(this.#rest), ['arguments', 'parameters'], newId())
      return call ? { text, calls: [...calls, call] } : { text: text + OPEN + this.#rest, calls }
    }
    const nHeld = isLast ? 0 : overlap(this.#rest, OPEN)
    const end = this.#rest.length - nHeld
    text += this.#spoken(this.#rest.slice(0, end))
    this.#rest = this.#rest.slice(end)
    return { text, calls }
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

  push(id: number, text: string): Said {
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
  const [before, ...parts] = text.split('[TOOL_CALLS]')
  if (before?.trim() !== '' || parts.length === 0) return null
  const calls = parts.flatMap((part) => {
    const [, name, args] =
      /^\s*([\w.-]+)(?:\[CALL_ID\][^[{]*)?(?:\[ARGS\])?\s*(\{.*)$/s.exec(part) ?? []
    const listed =
      name === undefined ? parse(part) : [{ name, arguments: parse(args as string) ?? null }]
    const list = Array.isArray(listed) ? listed : [listed]
    return list.map((one) => readCall(one, ['arguments'], newId()))
  })
  return calls.every((call) => call !== null) ? calls : null
}

function readLlama(text: string, { names }: ToolCallContext): ToolCall[] | null {
  const objects = jsonObjects(text.replace('<|python_tag|>', ''))
  const calls = objects?.map((one) => readCall(one, ['parameters', 'arguments'], newId())) ?? []
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
function jsonObjects(text: string): unknown[] | null {
  const objects: unknown[] = []
  let rest = text.trim()
  while (rest !== '') {
    let end = rest.indexOf('}') + 1
    let object: unknown
    // The end of an object is where it first parses.
    while (end > 0) {
      object = parse(rest.slice(0, end))
      if (object !== undefined) break
      const next = rest.indexOf('}', end)
      end = next < 0 ? 0 : next + 1
    }
    if (object === undefined) return null
    objects.push(object)
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

/** A call, if a value is one: its arguments are under the first of these keys that is there. */
function readCall(value: unknown, keys: readonly string[], id: string): ToolCall | null {
  if (!isObject(value) || typeof value.name !== 'string' || value.name === '') return null
  const given = keys.map((key) => value[key]).find((own) => own !== undefined) ?? {}
  // Some write the object as a text.
  const args = typeof given === 'string' ? parse(given) : given
  return isObject(args) ? { id, name: value.name, arguments: JSON.stringify(args) } : null
}

const LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789'

/** Nine letters and digits, as Mistral's templates ask for. */
function newId(): string {
  return Array.from(randomBytes(9), (byte) => LETTERS[byte % LETTERS.length]).join('')
}

/** Where the answer has to be a call: of one function, its arguments alone; else name and arguments. */
export function makeForcedParser(name: string | null): ToolCallParser {
  let all = ''
  return {
    push(_, text) {
      all += text
      return NOTHING
    },
    end() {
      const value = parse(all)
      const written = name === null ? value : { name, arguments: value }
      const call = value === undefined ? null : readCall(written, ['arguments'], newId())
      // Cut by max_tokens.
      return call ? { text: '', calls: [call] } : { text: all, calls: [] }
    },
  }
}
