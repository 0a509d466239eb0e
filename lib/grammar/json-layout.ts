/** What a value is in. */
type Kind = 'object' | 'array'

const BLANKS = new Set([0x20, 0x0a, 0x09, 0x0d])
const [COLON, COMMA, QUOTE, BACKSLASH] = [0x3a, 0x2c, 0x22, 0x5c]
const OPENING = new Map<number, Kind>([
  [0x7b, 'object'],
  [0x5b, 'array'],
])
const CLOSING = new Set([0x7d, 0x5d])

/**
 * How the JSON so far is laid out, byte by byte, and so which white space is likely to come next: that of
 * `{"a": 1, "b": 2}` as long as nothing else was seen.
 */
export class JsonLayout {
  /** What is open, the innermost last. */
  #open: Kind[] = []
  #isInText = false
  #isEscaped = false
  /** The newest byte outside of texts that is no white space. */
  #sign = 0
  /** White space behind it. */
  #blank = ''
  #afterColon = ' '
  #afterComma = ' '
  /** How far each level is indented in objects and arrays that have a line for each value. */
  #indents: Readonly<Record<Kind, string | null>> = { object: null, array: null }

  /** One that goes on by itself from here. */
  copy(): JsonLayout {
    const copy = new JsonLayout()
    copy.#open = [...this.#open]
    copy.#isInText = this.#isInText
    copy.#isEscaped = this.#isEscaped
    copy.#sign = this.#sign
    copy.#blank = this.#blank
    copy.#afterColon = this.#afterColon
    copy.#afterComma = this.#afterComma
    copy.#indents = this.#indents
    return copy
  }

  /** The text goes on with this byte. */
  push(byte: number): void {
    if (this.#isInText) {
      if (this.#isEscaped) this.#isEscaped = false
      else if (byte === BACKSLASH) this.#isEscaped = true
      else if (byte === QUOTE) this.#isInText = false
      return
    }
    if (BLANKS.has(byte)) {
      this.#blank += String.fromCharCode(byte)
      return
    }
    if (!CLOSING.has(byte)) this.#learn()
    const kind = OPENING.get(byte)
    if (kind) this.#open.push(kind)
    if (CLOSING.has(byte)) this.#open.pop()
    this.#isInText = byte === QUOTE
    this.#sign = byte
    this.#blank = ''
  }

  /** What the white space in front of a value or a name tells of others. */
  #learn(): void {
    const kind = this.#open.at(-1)
    if (this.#sign === COLON) this.#afterColon = this.#blank
    else if (kind && (this.#sign === COMMA || OPENING.has(this.#sign))) {
      const isLine = this.#blank.startsWith('\n')
      const indent = this.#blank.slice(1, 1 + (this.#blank.length - 1) / this.#open.length)
      this.#indents = { ...this.#indents, [kind]: isLine ? indent : null }
      if (!isLine && this.#sign === COMMA) this.#afterComma = this.#blank
    }
  }

  /** White space that is likely in front of this byte, as far as it is not there. */
  before(byte: number): string {
    if (this.#isInText) return ''
    const likely = this.#likely(byte)
    return likely.startsWith(this.#blank) ? likely.slice(this.#blank.length) : ''
  }

  #likely(byte: number): string {
    if (this.#sign === COLON) return this.#afterColon
    const kind = this.#open.at(-1)
    if (!kind) return ''
    const indent = this.#indents[kind]
    const isFirst = OPENING.has(this.#sign)
    if (CLOSING.has(byte)) {
      return isFirst || indent === null ? '' : `\n${indent.repeat(this.#open.length - 1)}`
    }
    if (!isFirst && this.#sign !== COMMA) return ''
    if (indent !== null) return `\n${indent.repeat(this.#open.length)}`
    return isFirst ? '' : this.#afterComma
  }
}
