import { randomUUID } from 'node:crypto'
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

/** A cache that a prompt may go on with. */
export interface Past {
  readonly sequence: Sequence
  /** The text of its tokens, where it is known. */
  readonly text: string | null
}

/** A conversation that is left. */
export interface Left extends Past {
  /** How its cache is kept; a request that wants another way begins anew. */
  readonly policy: string
}

interface Session extends Left {
  /**
   * What it held before answers that a template may tell otherwise than they were said, the oldest first:
   * most leave out what was thought.
   */
  readonly before: readonly Past[]
  readonly name: SessionName
  readonly expiresAt: number
}

/** A conversation that a request uses. */
interface Use {
  /** Once there is one. */
  sequence: Sequence | null
  /** As a session's. */
  before: readonly Past[]
}

/** Whose conversation is meant: a client's name for it, among those of one key. */
export interface SessionName {
  /** The client's name for it. */
  readonly id: string
  /** Whose name it is: what tells one key from another. */
  readonly owner: string
  /** Whether requests that name no session may go on with it: its client does not know the name. */
  readonly isMatched?: true
}

/** A conversation taken up again. */
export interface Resumed extends Past {
  /** What the prompt says beyond it. */
  readonly ids: readonly number[]
}

/** What a prompt goes on with. */
interface Found {
  readonly past: Past
  readonly ids: readonly number[]
  /** What the conversation held until then, where `past` is one of these with it. */
  readonly before: readonly Past[]
}

/**
 * Conversations between their requests, by the client's name for them: each one's compressed cache
 * stays, and the next prompt goes on over it if it begins with what was said, or with what was there
 * before the last answers. A name is busy while a request uses it. When the engine needs memory, what busy
 * ones held before goes, and then the least recently used ones.
 */
export class Sessions {
  readonly #limits: SessionLimits
  readonly #now: () => number
  /** Least recently used first. */
  readonly #idle = new Map<string, Session>()
  /** Those that a request uses, the first one that began first. */
  readonly #busy = new Map<string, Use>()
  readonly counters = { resumed: 0, restarted: 0, evicted: 0, expired: 0, reusedTokens: 0 }

  constructor(limits: SessionLimits, now: () => number = Date.now) {
    this.#limits = limits
    this.#now = now
  }

  /** Whether any is kept at all. */
  get isOn(): boolean {
    return this.#limits.maxSessions > 0
  }

  /** Conversations that are kept now. */
  get size(): number {
    return this.#idle.size
  }

  /** Bytes of their caches, and of what those held before that a request uses; shared pages count in each. */
  get bytes(): number {
    const kept = [
      ...this.#idle.values(),
      ...[...this.#busy.values(), ...this.#idle.values()].flatMap(({ before }) => before),
    ]
    return kept.reduce((bytes, { sequence }) => bytes + sequence.bytes.resident, 0)
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
    const use: Use = { sequence: null, before: [] }
    this.#busy.set(key, use)
    const session = this.#idle.get(key)
    if (!session) return null
    this.#idle.delete(key)
    try {
      const found = this.#find(session, policy, prompt, encode)
      if (found) return resume(session, found, use)
    } catch (error) {
      this.#busy.delete(key)
      letGo(session)
      throw error
    }
    letGo(session)
    return null
  }

  /**
   * A copy of a conversation that waits, if the prompt goes on with it: others may go on from the same
   * place. It is the conversation itself where there is no memory for a copy, and nothing waits then. What
   * it held before is `own`'s then, whose name the request has taken, as far as there is memory for copies.
   */
  copy(
    name: SessionName,
    own: SessionName | null,
    policy: string,
    prompt: PromptTokens,
    encode: (text: string) => number[],
  ): Resumed | null {
    this.expire()
    const key = keyOf(name)
    const session = this.#idle.get(key)
    const found = session ? this.#find(session, policy, prompt, encode) : null
    if (!session || !found) return null
    const past = copyOf(found.past)
    this.#idle.delete(key)
    const use = own && this.#busy.get(keyOf(own))
    if (!past) return resume(session, found, use)
    this.#keep(session.name, session)
    if (use) use.before = found.before.map(copyOf).filter((copy) => copy !== null)
    return { ...past, ids: found.ids }
  }

  /**
   * A name for a request that names no session: of the conversations of others like it that wait, that
   * which has most of what its prompt begins with, or a new one.
   */
  match(
    owner: string,
    policy: string,
    prompt: PromptTokens,
    encode: (text: string) => number[],
  ): SessionName {
    this.expire()
    let best: { name: SessionName; length: number } | null = null
    for (const session of this.#idle.values()) {
      const { name } = session
      if (!name.isMatched || name.owner !== owner) continue
      const length = findPast(session, policy, prompt, encode)?.past.sequence.tokens.length ?? 0
      if (length > (best?.length ?? 0)) best = { name, length }
    }
    return best?.name ?? { id: randomUUID(), owner, isMatched: true }
  }

  /** What a prompt goes on with; null where it does not. */
  #find(
    session: Session,
    policy: string,
    prompt: PromptTokens,
    encode: (text: string) => number[],
  ): Found | null {
    const found = findPast(session, policy, prompt, encode)
    if (found) {
      this.counters.resumed++
      this.counters.reusedTokens += found.past.sequence.tokens.length
    } else {
      this.counters.restarted++
    }
    return found
  }

  /** Tells which sequence the request uses that has taken a name. */
  hold(name: SessionName, sequence: Sequence): void {
    this.#useOf(name).sequence = sequence
  }

  /**
   * Keeps what a conversation that a request uses holds before its answer. `isUsers`: a user spoke last; what
   * calls and their results come behind is told as it was until then.
   */
  keepBefore(name: SessionName, past: Past, isUsers: boolean): void {
    const use = this.#useOf(name)
    const { before } = use
    use.before = isUsers ? [past] : [...before.slice(0, 1), past]
    for (const other of before) if (!use.before.includes(other)) other.sequence.dispose()
  }

  #useOf(name: SessionName): Use {
    return this.#busy.get(keyOf(name)) as Use
  }

  /** The conversation of a name, whether it waits or a request uses it; null: there is none. */
  find(name: SessionName): Sequence | null {
    this.expire()
    const key = keyOf(name)
    return this.#busy.get(key)?.sequence ?? this.#idle.get(key)?.sequence ?? null
  }

  /** Ends the use of a name, and keeps its conversation; null: there is none to keep. */
  leave(name: SessionName, kept: Left | null): void {
    const { before } = this.#useOf(name)
    this.#busy.delete(keyOf(name))
    const { maxSessions } = this.#limits
    if (!kept || maxSessions === 0) {
      disposeAll(kept ? [kept, ...before] : before)
      return
    }
    this.#keep(name, { ...kept, before })
    while (this.#idle.size > maxSessions) this.#evictOldest()
  }

  #keep(name: SessionName, kept: Omit<Session, 'name' | 'expiresAt'>): void {
    const expiresAt = this.#now() + this.#limits.sessionTtlMs
    this.#idle.set(keyOf(name), { ...kept, name, expiresAt })
  }

  /**
   * Gives up the conversation of a name; whether there was one. Throws an `ApiError` 409 while a
   * request uses it.
   */
  remove(name: SessionName): boolean {
    const key = keyOf(name)
    this.#expectIdle(key)
    this.expire()
    const session = this.#idle.get(key)
    if (session) letGo(session)
    return this.#idle.delete(key)
  }

  /** Gives up those whose time is over. */
  expire(): void {
    const now = this.#now()
    for (const [key, session] of this.#idle) {
      if (session.expiresAt > now) return // the others were used later
      this.#idle.delete(key)
      letGo(session)
      this.counters.expired++
    }
  }

  /**
   * Gives memory up: what a conversation that a request uses held before or, where there is nothing of that,
   * the least recently used one of those that wait; whether there was any.
   */
  evict(): boolean {
    return this.#evictBefore() || this.#evictOldest()
  }

  #evictOldest(): boolean {
    const [oldest] = this.#idle
    if (!oldest) return false
    const [key, session] = oldest
    this.#idle.delete(key)
    letGo(session)
    this.counters.evicted++
    return true
  }

  #evictBefore(): boolean {
    for (const use of this.#busy.values()) {
      const [oldest, ...others] = use.before
      if (!oldest) continue
      use.before = others
      oldest.sequence.dispose()
      return true
    }
    return false
  }

  #expectIdle(key: string): void {
    if (!this.#busy.has(key)) return
    throw new ApiError(409, 'x-session-id: another request of this session is under way', {
      param: 'x-session-id',
      code: 'session_busy',
    })
  }

  dispose(): void {
    for (const session of this.#idle.values()) letGo(session)
    this.#idle.clear()
  }
}

/** Gives up a conversation, with all that it held before. */
function letGo(session: Session): void {
  disposeAll([session, ...session.before])
}

function disposeAll(pasts: readonly Past[]): void {
  for (const { sequence } of pasts) sequence.dispose()
}

/** What of a conversation a prompt goes on with: the whole of it, or what it held last before that. */
function findPast(
  session: Session,
  policy: string,
  prompt: PromptTokens,
  encode: (text: string) => number[],
): Found | null {
  const { before } = session
  if (session.policy !== policy) return null
  for (let count = before.length + 1; count > 0; --count) {
    const past = before[count - 1] ?? session
    const ids = continuation(past, prompt, encode)
    if (ids !== null) return { past, ids, before: before.slice(0, count) }
  }
  return null
}

/**
 * The conversation itself as a prompt goes on with it; what came after that is given up, and what was before
 * is that of `use`, without which it is given up, too.
 */
function resume(
  session: Session,
  { past, ids, before }: Found,
  use: Use | null | undefined,
): Resumed {
  const { sequence, text } = past
  const all = [session, ...session.before].filter((other) => other !== past)
  const kept = use ? before.filter((other) => other !== past) : []
  disposeAll(all.filter((other) => !kept.includes(other)))
  const copy = past === session || !use ? null : copyOf(past)
  if (use) use.before = copy ? [...kept, past] : kept
  return { ...(copy ?? { sequence, text }), ids }
}

/** A copy; null where there is no memory for it. */
export function copyOf({
  sequence,
  text,
}: {
  readonly sequence: Pick<Sequence, 'fork'>
  readonly text: string | null
}): Past | null {
  try {
    return { sequence: sequence.fork(), text }
  } catch (error) {
    if (error instanceof ZipCacheError && error.code === 'ERR_ZC_OUT_OF_MEMORY') return null
    throw error
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
  { sequence, text }: Past,
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
