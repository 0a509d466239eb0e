import { randomUUID } from 'node:crypto'
import type { Item } from './response-items.js'
import type { SessionLimits, SessionName } from './sessions.js'

/** What is kept of a response. */
export interface StoredResponse {
  /** As its client has it. */
  readonly response: object
  /** All that was said up to its end, its own output included. */
  readonly conversation: readonly Item[]
  /** The last of these are its output, in order. */
  readonly nOutput: number
}

/** Ids of items are made of their response's, and their number in its output, or in what was said before. */
const ITEM_ID = /^(?:msg|fc|fco|rs)_([0-9a-f]{32})_(in)?(\d{1,6})$/
const RESPONSE = 'resp_'

/** The id of a new response. */
export function newResponseId(): string {
  return `${RESPONSE}${randomUUID().replaceAll('-', '')}`
}

/** The id of the i-th item of a response's output: a message, a call or a reasoning. */
export function itemId(kind: 'msg' | 'fc' | 'rs', response: string, i: number): string {
  return `${kind}_${response.slice(RESPONSE.length)}_${i}`
}

/** The id of the i-th item of what was said before a response. */
export function inputItemId(
  kind: 'msg' | 'fc' | 'fco' | 'rs',
  response: string,
  i: number,
): string {
  return `${kind}_${response.slice(RESPONSE.length)}_in${i}`
}

interface Kept extends StoredResponse {
  readonly length: number
  readonly expiresAt: number
}

/**
 * Characters of all that is kept, half a GiB at the very most. What the responses of a conversation
 * share counts in each, so that they take less.
 */
const MAX_LENGTH = 2 ** 28

/**
 * Responses by their ids, which belong to whoever made them; in memory alone. Those go first that
 * nobody has asked for the longest, by number, age and size. What they said is kept here, their caches
 * with the sessions, which memory may take earlier.
 */
export class StoredResponses {
  readonly #limits: SessionLimits
  readonly #now: () => number
  /** Least recently used first. */
  readonly #kept = new Map<string, Kept>()
  readonly #maxLength: number
  #length = 0

  constructor(limits: SessionLimits, now: () => number = Date.now, maxLength = MAX_LENGTH) {
    this.#limits = limits
    this.#now = now
    this.#maxLength = maxLength
  }

  /** Responses that are kept now. */
  get size(): number {
    return this.#kept.size
  }

  /** Whether any may be kept. */
  get isOn(): boolean {
    return this.#limits.maxSessions > 0
  }

  /** The response of a name; null: there is none any more. */
  find(name: SessionName): StoredResponse | null {
    this.#expire()
    const key = keyOf(name)
    const found = this.#kept.get(key)
    if (!found) return null
    this.#kept.delete(key)
    this.#kept.set(key, { ...found, expiresAt: this.#expiry })
    return found
  }

  /** An item of a response's output, or of what was said before it, and whose it is; null: there is none any more. */
  findItem(id: string, owner: string): { name: SessionName; item: Item } | null {
    const [, hex, isInput, i] = ITEM_ID.exec(id) ?? []
    const name = { id: `${RESPONSE}${hex}`, owner }
    const found = hex === undefined ? null : this.find(name)
    if (!found) return null
    const { conversation, nOutput } = found
    const nBefore = conversation.length - nOutput
    const own = isInput ? conversation.slice(0, nBefore) : conversation.slice(nBefore)
    const item = own[Number(i)]
    return item ? { name, item } : null
  }

  /** Keeps a response, and gives up others where there are too many. */
  keep(name: SessionName, stored: StoredResponse): void {
    this.#expire()
    const length = JSON.stringify(stored).length
    this.#kept.set(keyOf(name), { ...stored, length, expiresAt: this.#expiry })
    this.#length += length
    for (const key of this.#kept.keys()) {
      if (this.#kept.size <= this.#limits.maxSessions && this.#length <= this.#maxLength) return
      this.#delete(key)
    }
  }

  /** Gives up the response of a name; whether there was one. */
  remove(name: SessionName): boolean {
    this.#expire()
    return this.#delete(keyOf(name))
  }

  get #expiry(): number {
    return this.#now() + this.#limits.sessionTtlMs
  }

  #expire(): void {
    const now = this.#now()
    for (const [key, { expiresAt }] of this.#kept) {
      if (expiresAt > now) return // the others were used later
      this.#delete(key)
    }
  }

  #delete(key: string): boolean {
    this.#length -= this.#kept.get(key)?.length ?? 0
    return this.#kept.delete(key)
  }
}

function keyOf({ id, owner }: SessionName): string {
  return JSON.stringify([owner, id])
}
