import type { Sequence } from '../engine/sequence.js'
import { ZipCacheError } from '../errors.js'
import { ApiError } from './api-error.js'
import type { PromptTokens } from './prompt.js'

/** How many conversations are kept, and for how long. */
export interface SessionLimits {
  /** Most conversations between two requests; the least recently used one goes first. 0: none. */
  readonly maxSessions: number
  /** A conversation that nobody went on with for so long is given up. */
  readonly sessionTtlMs: number
}

interface Session {
  readonly sequence: Sequence
  /** How its cache is kept; a request that wants another way begins anew. */
  readonly policy: string
  /** The text of its tokens, where it is known. */
  readonly text: string | null
  readonly expiresAt: number
}

/** Whose conversation is meant: a client's name for it, among those of one key. */
export interface SessionName {
  /** The client's name for it. */
  readonly id: string
  /** Whose name it is: what tells one key from another. */
  readonly owner: string
}

/** A conversation taken up again. */
export interface Resumed {
  readonly sequence: Sequence
  /** The text of its tokens, where it is known. */
  readonly text: string | null
  /** What the prompt says beyond it. */
  readonly ids: readonly number[]
}

/**
 * Conversations between their requests, by the client's name for them: each one's compressed cache
 * stays, and the next prompt goes on over it if it begins with what was said. A name is busy while
 * a request uses it. When the engine needs memory, the least recently used ones go.
 */
export class Sessions {
  readonly #limits: SessionLimits
  readonly #now: () => number
  /** Least recently used first. */
  readonly #idle = new Map<string, Session>()
  /** Those that a request uses, with its sequence once there is one. */
  readonly #busy = new Map<string, Sequence | null>()
  readonly counters = { resumed: 0, restarted: 0, evicted: 0, expired: 0, reusedTokens: 0 }

  constructor(limits: SessionLimits, now: () => number = Date.now) {
    this.#limits = limits
    this.#now = now
  }

  /** Conversations that are kept now. */
  get size(): number {
    return this.#idle.size
  }

  /** Bytes of their caches. */
  get bytes(): number {
    let bytes = 0
    for (const { sequence } of this.#idle.values()) bytes += sequence.bytes.resident
    return bytes
  }

  /**
   * Takes a name for one request, until `leave`. Returns the conversation if the prompt goes on with
   * it; one that the prompt does not begin with is given up.
   *
   * Throws an `ApiError` 409 while another request uses the name.
   */
  enter(
    name: SessionName,
    policy: string,
    prompt: PromptTokens,
    encode: (text: string) => number[],
  ): Resumed | null {
    const key = keyOf(name)
    this.#expectIdle(key)
    this.expire()
    this.#busy.set(key, null)
    const session = this.#idle.get(key)
    if (!session) return null
    this.#idle.delete(key)
    const resumed = this.#resume(session, policy, prompt, encode)
    if (!resumed) session.sequence.dispose()
    return resumed
  }

  /**
   * A copy of a conversation that waits, if the prompt goes on with it: others may go on from the same
   * place. It is the conversation itself where there is no memory for a copy, and nothing waits then.
   */
  copy(
    name: SessionName,
    policy: string,
    prompt: PromptTokens,
    encode: (text: string) => number[],
  ): Resumed | null {
    this.expire()
    const key = keyOf(name)
    const session = this.#idle.get(key)
    const resumed = session ? this.#resume(session, policy, prompt, encode) : null
    if (!session || !resumed) return null
    this.#idle.delete(key)
    try {
      const sequence = resumed.sequence.fork()
      this.#keep(key, session)
      return { ...resumed, sequence }
    } catch (error) {
      if (error instanceof ZipCacheError && error.code === 'ERR_ZC_OUT_OF_MEMORY') return resumed
      this.#keep(key, session)
      throw error
    }
  }

  /** What a prompt goes on with, and says beyond it; null where it does not. */
  #resume(
    session: Session,
    policy: string,
    prompt: PromptTokens,
    encode: (text: string) => number[],
  ): Resumed | null {
    const ids = session.policy === policy ? continuation(session, prompt, encode) : null
    if (ids === null) {
      this.counters.restarted++
      return null
    }
    this.counters.resumed++
    this.counters.reusedTokens += session.sequence.tokens.length
    return { sequence: session.sequence, text: session.text, ids }
  }

  /** Tells which sequence the request uses that has taken a name. */
  hold(name: SessionName, sequence: Sequence): void {
    this.#busy.set(keyOf(name), sequence)
  }

  /** The conversation of a name, whether it waits or a request uses it; null: there is none. */
  find(name: SessionName): Sequence | null {
    this.expire()
    const key = keyOf(name)
    return this.#busy.get(key) ?? this.#idle.get(key)?.sequence ?? null
  }

  /** Ends the use of a name, and keeps its conversation; null: there is none to keep. */
  leave(name: SessionName, kept: Omit<Session, 'expiresAt'> | null): void {
    const key = keyOf(name)
    this.#busy.delete(key)
    if (!kept) return
    const { maxSessions } = this.#limits
    if (maxSessions === 0) {
      kept.sequence.dispose()
      return
    }
    this.#keep(key, kept)
    while (this.#idle.size > maxSessions) this.evict()
  }

  #keep(key: string, kept: Omit<Session, 'expiresAt'>): void {
    this.#idle.set(key, { ...kept, expiresAt: this.#now() + this.#limits.sessionTtlMs })
  }

  /**
   * Gives up the conversation of a name; whether there was one. Throws an `ApiError` 409 while a
   * request uses it.
   */
  remove(name: SessionName): boolean {
    const key = keyOf(name)
    this.#expectIdle(key)
    this.expire()
    this.#idle.get(key)?.sequence.dispose()
    return this.#idle.delete(key)
  }

  /** Gives up those whose time is over. */
  expire(): void {
    const now = this.#now()
    for (const [key, { sequence, expiresAt }] of this.#idle) {
      if (expiresAt > now) return // the others were used later
      this.#idle.delete(key)
      sequence.dispose()
      this.counters.expired++
    }
  }

  /** Gives up the least recently used one; whether there was one. */
  evict(): boolean {
    const [oldest] = this.#idle
    if (!oldest) return false
    const [key, { sequence }] = oldest
    this.#idle.delete(key)
    sequence.dispose()
    this.counters.evicted++
    return true
  }

  #expectIdle(key: string): void {
    if (!this.#busy.has(key)) return
    throw new ApiError(409, 'x-session-id: another request of this session is under way', {
      param: 'x-session-id',
      code: 'session_busy',
    })
  }

  dispose(): void {
    for (const { sequence } of this.#idle.values()) sequence.dispose()
    this.#idle.clear()
  }
}

/** Names of one owner do not meet those of another. */
function keyOf({ id, owner }: SessionName): string {
  return JSON.stringify([owner, id])
}

/**
 * What a prompt says beyond a conversation; null where it does not go on with it. Token by token
 * first; else by the text, since a model's own answer may come back in other tokens than it chose.
 */
function continuation(
  { sequence, text }: Session,
  prompt: PromptTokens,
  encode: (text: string) => number[],
): readonly number[] | null {
  const { tokens } = sequence
  const { ids } = prompt
  // At least one token has to run to give the logits of the next.
  if (ids.length > tokens.length && tokens.every((id, i) => id === ids[i])) {
    return ids.slice(tokens.length)
  }
  if (text === null || prompt.text === null) return null
  if (prompt.text.length <= text.length || !prompt.text.startsWith(text)) return null
  const rest = encode(prompt.text.slice(text.length))
  return rest.length > 0 ? rest : null
}
