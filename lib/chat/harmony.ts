import type { HarmonyMarks } from '../model/harmony.js'
import { TextStream, type TokenDecoder } from '../model/text-stream.js'
import { makeCall, type ToolCall } from './tool-calls.js'

/** What an answer turns out to say, in its order. */
export type HarmonyPart =
  /** A message begins. */
  | { readonly kind: 'message' }
  /** Text for people; '' for one of its tokens whose text has not come yet. */
  | { readonly kind: 'text'; readonly text: string }
  /** What the model thinks by itself. */
  | { readonly kind: 'reasoning'; readonly text: string }
  | { readonly kind: 'call'; readonly call: ToolCall }

/** What a parser has to know. */
export interface HarmonyContext {
  readonly marks: HarmonyMarks
  readonly tokenizer: TokenDecoder & { readonly specialIds: ReadonlySet<number> }
  /** Names of the functions there are; without any, a call stays text. */
  readonly names: ReadonlySet<string>
  /** Stands between two messages whose texts are taken together. */
  readonly separator: string
  /** The prompt: the answer goes on with its last message. */
  readonly prompt: readonly number[]
}

type Mark = keyof HarmonyMarks
type Section = 'role' | 'channel' | 'constrain'

/** The beginning of a message, up to its text. */
interface Header extends Record<Section, string> {
  /** Where text goes now. */
  section: Section
  /** Whether a mark began it, so that a role comes first. */
  readonly isMarked: boolean
}

/** A message whose text comes. */
interface Message {
  readonly kind: 'text' | 'reasoning' | 'call'
  /** The function of a call. */
  readonly name: string
  /** The text of a call so far. */
  args: string
  /** Whether it has said anything. */
  hasSpoken: boolean
}

const ROLE = 'assistant'
const CHANNELS = ['analysis', 'commentary', 'final']
const FUNCTIONS = 'functions.'

/**
 * Reads an answer in OpenAI's harmony format, token by token: what stands in the channel `analysis` is
 * reasoning, a message to a function is a call, all else is text. The marks are told by their ids, so
 * that an answer may write about them. Nothing is lost of an answer that breaks the format: what
 * cannot be told from text is text, and headers alone are left out.
 */
export class HarmonyParser {
  readonly #names: ReadonlySet<string>
  readonly #separator: string
  readonly #marks: ReadonlyMap<number, Mark>
  readonly #stream: TextStream
  #header: Header | null = newHeader(false)
  /** Whose text comes, where no header does. */
  #message: Message = { kind: 'text', name: '', args: '', hasSpoken: false }
  /** Kinds of messages that have said something. */
  readonly #spoken = new Set<Message['kind']>()

  constructor({ marks, tokenizer, names, separator, prompt }: HarmonyContext) {
    this.#names = names
    this.#separator = separator
    const ids = Object.entries(marks) as [Mark, number | null][]
    this.#marks = new Map(ids.flatMap(([mark, id]) => (id === null ? [] : [[id, mark]])))
    this.#stream = new TextStream(tokenizer, { skip: tokenizer.specialIds })
    const start = prompt.lastIndexOf(marks.start)
    if (start >= 0) for (const id of prompt.slice(start)) this.push(id)
  }

  /** Whether the next token belongs to what the model thinks by itself. */
  get isReasoning(): boolean {
    return this.#header === null && this.#message.kind === 'reasoning'
  }

  /** Whether a token is a mark, which has no text. */
  isMark(id: number): boolean {
    return this.#marks.has(id)
  }

  /** The next token. */
  push(id: number): HarmonyPart[] {
    const mark = this.#marks.get(id)
    if (mark === undefined) return this.#take(this.#stream.push(id))
    const rest = this.#stream.flush()
    const parts = rest === '' ? [] : this.#take(rest)
    switch (mark) {
      case 'start':
        parts.push(...this.#close(false))
        this.#header = newHeader(true)
        break
      case 'channel':
        // Some leave out the end of the message before.
        if (!this.#header) parts.push(...this.#close(false))
        this.#header ??= newHeader(false)
        this.#header.section = 'channel'
        this.#header.channel = ''
        break
      case 'constrain':
        if (this.#header) this.#header.section = 'constrain'
        break
      case 'message':
        if (this.#header) parts.push(...this.#open(this.#header))
        break
      default:
        parts.push(...this.#close(false))
        this.#header = newHeader(false)
    }
    return parts
  }

  /** The answer has ended; `isCut`: there was no room for more. */
  end(isCut: boolean): HarmonyPart[] {
    const rest = this.#stream.flush()
    return [...(rest === '' ? [] : this.#take(rest)), ...this.#close(isCut)]
  }

  #take(text: string): HarmonyPart[] {
    if (this.#header) {
      this.#header[this.#header.section] += text
      return []
    }
    const message = this.#message
    if (message.kind !== 'call') return this.#say(message, text)
    message.args += text
    return []
  }

  #say(message: Message, text: string): HarmonyPart[] {
    const kind = message.kind === 'reasoning' ? 'reasoning' : 'text'
    if (text === '') return kind === 'text' ? [{ kind, text }] : []
    const isNext = !message.hasSpoken && this.#spoken.has(kind)
    message.hasSpoken = true
    this.#spoken.add(kind)
    return [{ kind, text: isNext ? this.#separator + text : text }]
  }

  #open(header: Header): HarmonyPart[] {
    this.#header = null
    this.#message = this.#messageOf(header)
    return [{ kind: 'message' }]
  }

  #messageOf(header: Header): Message {
    const recipient = recipientOf(header)
    const message = { name: '', args: '', hasSpoken: false }
    if (recipient?.startsWith(FUNCTIONS) || this.#names.has(recipient ?? '')) {
      // Nobody could answer a call where there are no functions.
      if (this.#names.size === 0) return { ...message, kind: 'text' }
      const name = (recipient as string).replace(FUNCTIONS, '')
      return { ...message, kind: 'call', name }
    }
    // To tools that the model was taught, and are not there: for no reader.
    const isOther = recipient !== null && recipient !== ROLE
    const isReasoning = isOther || /^\s*analysis/.test(header.channel)
    return { ...message, kind: isReasoning ? 'reasoning' : 'text' }
  }

  /** Ends a message, or a header that did not come to its text: this is then what it has beyond. */
  #close(isCut: boolean): HarmonyPart[] {
    const header = this.#header
    if (!header) return this.#closeMessage(isCut)
    const rest = restOf(header, isCut)
    if (rest.trim() === '') return []
    return [...this.#open(header), ...this.#take(rest), ...this.#closeMessage(isCut)]
  }

  #closeMessage(isCut: boolean): HarmonyPart[] {
    const message = this.#message
    if (message.kind !== 'call') return []
    const { name, args } = message
    this.#message = { ...message, args: '' }
    // A function without parameters may be called by a message without text.
    const isEmpty = args.trim() === ''
    if (isEmpty && isCut) return []
    const call = makeCall(name, isEmpty ? '{}' : args)
    return call ? [{ kind: 'call', call }] : this.#say(message, args)
  }
}

function newHeader(isMarked: boolean): Header {
  return { role: '', channel: '', constrain: '', section: 'role', isMarked }
}

const RECIPIENT = /\bto=(\S+)/

/** Whom a message is for, which stands with the role or with the channel; null: nobody is named. */
function recipientOf({ role, channel }: Header): string | null {
  return (RECIPIENT.exec(role) ?? RECIPIENT.exec(channel))?.[1] ?? null
}

/** What a header without text has beyond a header. */
function restOf(header: Header, isCut: boolean): string {
  const { role, channel, constrain, isMarked } = header
  const words = isCut && header.section === 'constrain' ? /^\s*[\w-]*$/ : /^\s*[\w-]+/
  return (
    beyond(role, isMarked ? [ROLE] : [], isCut && header.section === 'role') +
    beyond(channel, CHANNELS, isCut && header.section === 'channel') +
    constrain.replace(words, '')
  )
}

/** What a part of a header has beyond one of these words and a recipient; `isCut`: it may be half a word. */
function beyond(text: string, words: readonly string[], isCut: boolean): string {
  const start = text.trimStart()
  if (isCut && words.some((word) => word.startsWith(start))) return ''
  const word = words.find((own) => start.startsWith(own))
  const rest = word === undefined ? text : start.slice(word.length)
  // The recipient, or the type of the text.
  if (isCut && word !== undefined && /^(\s+\S*\s*)?$/.test(rest)) return ''
  const [all = ''] = /^\s*to=\S+(\s+[\w-]+\s*$)?/.exec(rest) ?? []
  return rest.slice(all.length)
}
