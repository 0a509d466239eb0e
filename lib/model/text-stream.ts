import { ZipCacheError } from '../errors.js'

/** What a text stream needs of a tokenizer. */
export interface TokenDecoder {
  /** The text of all `ids` together. */
  decode(ids: readonly number[]): string
  /** The vocabulary entry of `id`; undefined where there is none. */
  token(id: number): string | undefined
}

const kReplacement = '\uFFFD'
/**
 * An undecided tail longer than this is broken text, not the beginning of a character: cut the
 * window inside it.
 */
const kMaxUndecided = 16
/**
 * A UTF-8 character has at most 4 bytes, so that among 8 places to cut one is between characters.
 */
const kCutPlaces = 8
const kMaxCharacterBytes = 4

/**
 * Turns token ids, one after the other, into pieces of text that concatenate to `decode` of all of
 * them.
 *
 * The text of a token depends on its neighbours: the first one of a text may lose its leading
 * space, and bytes of one character may be spread over several tokens. So a token's text is the
 * difference between two decodings of a short window that begins at an earlier token with text of
 * its own, and a replacement character at the end waits until the next token says what it is. The
 * window stays short, so that a token costs the same at any length.
 */
export class TextStream {
  readonly #decoder: TokenDecoder
  readonly #skip: ReadonlySet<number>
  #window: number[] = []
  /** UTF-16 units of `decode(#window)` that were handed out. */
  #emitted = 0
  /** Lengths of the window at the last two places where no character was open; the newest last. */
  #boundaries: number[] = []

  /**
   * @param options.skip ids without text: the special tokens, to leave them out
   * @param options.before ids that the text goes on with; theirs is not handed out
   */
  constructor(
    decoder: TokenDecoder,
    options: { readonly skip?: ReadonlySet<number>; readonly before?: readonly number[] } = {},
  ) {
    this.#decoder = decoder
    this.#skip = options.skip ?? new Set()
    for (const id of options.before?.slice(-kMaxUndecided) ?? []) this.push(id)
  }

  /** Takes the next token and returns the text that is now certain, often empty. */
  push(id: number): string {
    // An id without a token has no text in `decode` either, but would sit in the window for
    // nothing.
    if (this.#skip.has(id) || this.#decoder.token(id) === undefined) return ''
    this.#window.push(id)
    const text = this.#decoder.decode(this.#window)
    const isOpen = text.endsWith(kReplacement)
    const delta = this.#emit(text, isOpen ? text.length - 1 : text.length)
    if (!isOpen) this.#slide()
    else if (this.#window.length > kMaxUndecided) this.#cutInside(text)
    return delta
  }

  /** Ends the text and returns what was held back; the next `push` begins a new text. */
  flush(): string {
    const text = this.#window.length === 0 ? '' : this.#decoder.decode(this.#window)
    const delta = this.#emit(text, text.length)
    this.#window = []
    this.#emitted = 0
    this.#boundaries = []
    return delta
  }

  #emit(text: string, end: number): string {
    const delta = text.slice(this.#emitted, end)
    this.#emitted = Math.max(this.#emitted, end)
    return delta
  }

  /**
   * Moves the window's beginning to the latest boundary from which on there is text: that text is
   * the context of the next token.
   */
  #slide(): void {
    for (const start of this.#boundaries.slice().reverse()) {
      const tail = this.#window.slice(start)
      const text = this.#decoder.decode(tail)
      // A tail without text cannot show whether the next token keeps its leading space.
      if (text === '') continue
      this.#window = tail
      this.#emitted = text.length
      this.#boundaries = this.#boundaries.map((b) => b - start).filter((b) => b > 0)
      break
    }
    this.#boundaries = [...this.#boundaries.slice(-1), this.#window.length]
  }

  /**
   * Shortens a window whose end has been undecided for long (`text` is its decoding): bytes that
   * will never be a character.
   */
  #cutInside(text: string): void {
    const newest = this.#window.length - kMaxCharacterBytes
    for (let place = newest; place > newest - kCutPlaces; --place) {
      const head = this.#decoder.decode(this.#window.slice(0, place))
      const tail = this.#decoder.decode(this.#window.slice(place))
      // Equal only where no character crosses the cut: half a character decodes to a replacement on
      // either side.
      if (head + tail !== text) continue
      this.#window = this.#window.slice(place)
      this.#emitted -= head.length
      this.#boundaries = []
      return
    }
  }
}

/** What `StopMatcher.push` found. */
export interface StopMatch {
  /** Text that belongs to no stop string, to be handed on. */
  readonly text: string
  /** The stop string that was completed, or null. */
  readonly stop: string | null
}

/**
 * Looks for stop strings in a text that comes in pieces. Text that could still become a stop string
 * is held back; the one that is completed first wins, of two that end together the longer. How the
 * text is cut into pieces changes nothing.
 *
 * One Knuth-Morris-Pratt automaton a stop string: time is linear in the text.
 */
export class StopMatcher {
  readonly #stops: readonly string[]
  /** Per stop, at [n]: the longest proper prefix that is a suffix of its first n + 1 units. */
  readonly #borders: readonly Uint32Array[]
  /** Per stop: how many of its units the text ends with. */
  readonly #matched: Uint32Array
  #held = ''
  #stop: string | null = null

  /** @throws ERR_ZC_ARGUMENT when a stop string is empty or no string */
  constructor(stops: readonly string[]) {
    if (!Array.isArray(stops)) {
      throw new ZipCacheError('ERR_ZC_ARGUMENT', 'stop: expected an array of strings', {
        argument: 'stop',
      })
    }
    stops.forEach((stop: unknown, i) => {
      if (typeof stop === 'string' && stop !== '') return
      const was = stop === '' ? 'an empty string' : typeof stop
      const message = `stop[${i}]: is ${was}, expected a string with at least one character`
      throw new ZipCacheError('ERR_ZC_ARGUMENT', message, { argument: 'stop' })
    })
    // The longest first: of two that end at the same place, it began earlier.
    this.#stops = [...new Set(stops)].sort((a, b) => b.length - a.length)
    this.#borders = this.#stops.map(bordersOf)
    this.#matched = new Uint32Array(this.#stops.length)
  }

  /** Takes the next piece of text. Once a stop string was found, all further text is swallowed. */
  push(piece: string): StopMatch {
    if (this.#stop !== null) return { text: '', stop: this.#stop }
    const text = this.#held + piece
    for (let i = this.#held.length; i < text.length; ++i) {
      const stop = this.#step(text.charCodeAt(i))
      if (stop === null) continue
      this.#stop = stop
      this.#held = ''
      return { text: text.slice(0, i + 1 - stop.length), stop }
    }
    const keep = text.length - this.#matched.reduce((a, b) => Math.max(a, b), 0)
    this.#held = text.slice(keep)
    return { text: text.slice(0, keep), stop: null }
  }

  /** Ends the text and returns what was held back. */
  flush(): string {
    const text = this.#held
    this.#held = ''
    this.#stop = null
    this.#matched.fill(0)
    return text
  }

  /**
   * Feeds one UTF-16 unit to every automaton; the stop string that is complete with it, or null.
   */
  #step(unit: number): string | null {
    let found: string | null = null
    this.#stops.forEach((stop, s) => {
      const borders = this.#borders[s] as Uint32Array
      let matched = this.#matched[s] as number
      while (matched > 0 && stop.charCodeAt(matched) !== unit) {
        matched = borders[matched - 1] as number
      }
      if (stop.charCodeAt(matched) === unit) ++matched
      if (matched === stop.length) found ??= stop
      this.#matched[s] = matched
    })
    return found
  }
}

function bordersOf(stop: string): Uint32Array {
  const borders = new Uint32Array(stop.length)
  for (let i = 1, border = 0; i < stop.length; ++i) {
    while (border > 0 && stop[i] !== stop[border]) border = borders[border - 1] as number
    if (stop[i] === stop[border]) ++border
    borders[i] = border
  }
  return borders
}

/** The text of each token: pieces that join to the text of all, special tokens by their names. */
export function tokenTexts(decoder: TokenDecoder, ids: readonly number[]): string[] {
  const stream = new TextStream(decoder)
  return ids.map((id, i) => stream.push(id) + (i === ids.length - 1 ? stream.flush() : ''))
}
