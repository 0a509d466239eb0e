import { addBytes, type BytesByClass, noBytes } from '../cache/index.js'
import { deferred, onAbort, orAborted } from '../engine/abort.js'
import type { CacheBytes } from '../engine/context.js'
import type { Engine } from '../engine/engine.js'
import type { FinishReason, GeneratedToken } from '../engine/generation.js'
import type { PromptAnew, PromptCourse, PromptPlace, Sequence } from '../engine/sequence.js'
import { TextStream } from '../model/text-stream.js'
import type { ModelTokenizer } from '../model/tokenizer.js'
import { merge } from './merge.js'
import { policyName } from './policies.js'
import { endsWith, type PromptTokens } from './prompt.js'
import type { GenerationRequest } from './request.js'
import { copyOf, type Resumed, type SessionName, type Sessions } from './sessions.js'

/** What happens to one choice. */
export type ChoiceEvent =
  | { readonly kind: 'token'; readonly choice: number; readonly token: GeneratedToken }
  /** Text that was held back when the choice ended: of no token of its own. */
  | { readonly kind: 'text'; readonly choice: number; readonly text: string }
  | { readonly kind: 'end'; readonly choice: number; readonly finishReason: FinishReason }

/** What a request took. */
export interface Usage {
  /** Tokens of all prompts. */
  promptTokens: number
  /** Of those, how many a session's cache or a kept beginning held already. */
  cachedTokens: number
  /** Tokens of all choices. */
  completionTokens: number
  /** Of those, how many the model thought by itself; 0 where that is not told apart. */
  reasoningTokens: number
  /** Of those, how many had been drafted. */
  draftedTokens: number
  /** Tokens of a prediction, once for each choice; null: there was none. */
  predictedTokens: number | null
  /** Bytes of the caches of all choices, when they ended. */
  cacheBytes: number
  /** Bytes that 16-bit caches of the same would take. */
  fp16Bytes: number
  /** `cacheBytes` by what they hold. */
  bytesByClass: BytesByClass
}

/** Told what a generation does, for metrics and logs. */
export interface GenerationObserver {
  prompt(usage: Readonly<Usage>): void
  token(choice: number): void
  end(choice: number, finishReason: FinishReason): void
}

/** What generations run on. */
export interface GenerationHost {
  readonly engine: Engine
  readonly tokenizer: ModelTokenizer | null
  readonly sessions: Sessions
}

/** What a generation is told beside its request. */
export interface GenerationCall {
  /** The conversation that it goes on with, and is left in. */
  readonly session: SessionName | null
  /** Without a session: whose unnamed conversations it may go on with, and is left among. */
  readonly matching?: string | null
  /** One that it goes on from, and leaves as it is; not with a session that has a past. */
  readonly from?: SessionName | null
  readonly signal: AbortSignal
  readonly observer: GenerationObserver
}

/** A sequence that a prompt runs in. */
interface Opened {
  readonly sequence: Sequence
  /** What the prompt says beyond it. */
  readonly ids: readonly number[]
  /** Tokens of the sequence that this request did not run. */
  readonly nCached: number
}

/** What a choice runs on. */
interface Start {
  readonly sequence: Sequence
  /** null: after what the sequence holds. */
  readonly ids: readonly number[] | null
  readonly course: PromptCourse
}

/** One choice. */
interface Choice {
  readonly index: number
  readonly seed: bigint
  /** Resolves once it can run. */
  readonly start: () => Promise<Start>
}

/**
 * The tokens of all choices of one request: each prompt is run once, and forked for its further
 * choices. `usage` is whole once `events` has ended.
 */
export class Generation {
  readonly usage: Usage = {
    promptTokens: 0,
    cachedTokens: 0,
    completionTokens: 0,
    reasoningTokens: 0,
    draftedTokens: 0,
    predictedTokens: null,
    cacheBytes: 0,
    fp16Bytes: 0,
    bytesByClass: noBytes(),
  }
  readonly policy: string
  readonly #host: GenerationHost
  readonly #request: GenerationRequest
  readonly #prompts: readonly PromptTokens[]
  readonly #session: SessionName | null
  readonly #matching: string | null
  readonly #from: SessionName | null
  readonly #signal: AbortSignal
  readonly #observer: GenerationObserver
  /** The sequences of choices under way; those that have ended are counted, and gone. */
  readonly #sequences = new Set<Sequence>()
  /** Choices that are to say no more. */
  readonly #stopped = new Set<number>()
  /** The session, once it is taken. */
  #entered: SessionName | null = null
  /** The text of what its cache held before this request, or before the answer begins. */
  #pastText: string | null = null
  /** Tokens of the conversation before what the model says now. */
  #saidFrom = 0

  constructor(
    host: GenerationHost,
    request: GenerationRequest,
    prompts: readonly PromptTokens[],
    call: GenerationCall,
  ) {
    this.#host = host
    this.#request = request
    this.#prompts = prompts
    this.#session = call.session
    this.#matching = call.matching ?? null
    this.#from = call.from ?? null
    this.#signal = call.signal
    this.#observer = call.observer
    this.policy = policyName(request.policy)
    const { prediction } = request.sampling
    if (prediction) this.usage.predictedTokens = prediction.length * request.n * prompts.length
  }

  /** `usage` so far, with what the caches of choices under way take at this moment. */
  get usageNow(): Usage {
    const usage = { ...this.usage, bytesByClass: { ...this.usage.bytesByClass } }
    for (const { bytesHeld } of this.#sequences) if (bytesHeld) addCache(usage, bytesHeld)
    return usage
  }

  /**
   * What happens, choice by choice; prompt p's choices are numbered from p n on. Reads ahead of its
   * consumer by one token a choice at most. Rejects with an `ApiError` or a `ZipCacheError`.
   */
  async *events(): AsyncGenerator<ChoiceEvent, void, undefined> {
    const abort = new AbortController()
    const { signal } = abort
    // `AbortSignal.any` would leave something with the caller's signal, however long that lives.
    const forget = onAbort(this.#signal, () => abort.abort(this.#signal.reason))
    if (this.#signal.aborted) abort.abort(this.#signal.reason)
    const sources: AsyncGenerator<ChoiceEvent, void>[] = []
    try {
      for (const [p, prompt] of this.#prompts.entries()) {
        for (const choice of await this.#open(p, prompt, signal)) {
          sources.push(this.#run(choice, signal))
        }
      }
      this.#observer.prompt(this.usage)
      yield* merge(sources)
    } finally {
      forget()
      abort.abort()
      // A source that nobody asked for anything has nothing to end, and `return` ends it at once.
      await Promise.allSettled(sources.map((source) => source.return()))
      for (const sequence of [...this.#sequences]) this.#end(sequence)
      if (this.#entered) this.#host.sessions.leave(this.#entered, null)
    }
  }

  /** Ends a choice before its next token. */
  stop(choice: number): void {
    this.#stopped.add(choice)
  }

  /** The choices of one prompt. */
  async #open(p: number, prompt: PromptTokens, signal: AbortSignal): Promise<Choice[]> {
    const { n, seed } = this.#request
    const resumed = this.#resume(prompt)
    const { sequence, ids, nCached } = resumed ?? (await this.#begin(prompt, signal))
    this.#sequences.add(sequence)
    if (this.#entered) this.#host.sessions.hold(this.#entered, sequence)
    const nTokens = sequence.tokens.length + ids.length
    this.#countPrompt(nTokens, nCached)

    const others = n > 1 ? this.#othersOf(prompt, n - 1, signal) : null
    const end = others ? [others.place] : []
    const fresh = freshCourse(prompt)
    const anew: PromptAnew = {
      ids: fresh.ids,
      places: [...fresh.places, ...this.#placesIn(fresh.ids, prompt), ...end],
      begins: () => {
        this.#countPrompt(-nTokens, -nCached)
        this.#countPrompt(fresh.ids.length, 0)
        this.#pastText = null
        if (resumed) this.#host.sessions.counters.evicted++
      },
    }
    const course = { places: [...this.#placesIn(ids, prompt), ...end], anew }
    const starts = [async () => ({ sequence, ids, course }), ...(others?.starts ?? [])]
    return starts.map((start, c) => ({ index: p * n + c, seed: seed + BigInt(c), start }))
  }

  /**
   * The further choices of a prompt: copies of the first one's sequence, made where that has run the
   * prompt. One that there is no memory for runs the prompt by itself.
   */
  #othersOf(prompt: PromptTokens, count: number, signal: AbortSignal) {
    const copies: Sequence[] = []
    const { promise: prompted, resolve } = deferred()
    const reached: PromptPlace['reached'] = (there) => {
      for (let c = 0; c < count; c++) {
        const copy = copyOf({ sequence: there, text: null })
        if (!copy) break
        this.#sequences.add(copy.sequence)
        copies.push(copy.sequence)
      }
      resolve()
    }
    const { ids, places } = freshCourse(prompt)
    const start = async (c: number): Promise<Start> => {
      await orAborted(prompted, signal)
      const copy = copies[c]
      if (copy) {
        return { sequence: copy, ids: null, course: { anew: { ids, places, begins: () => {} } } }
      }
      const sequence = this.#host.engine.createSequence({ policy: this.#request.policy })
      this.#sequences.add(sequence)
      return { sequence, ids, course: { places } }
    }
    const starts = Array.from({ length: count }, (_, c) => () => start(c))
    return { place: { nBehind: 0, reached }, starts }
  }

  /** A kept conversation's sequence, where the prompt goes on with it. */
  #resume(prompt: PromptTokens): Opened | null {
    const { sessions, tokenizer } = this.#host
    const encode = (text: string) => tokenizer?.encode(text, { addSpecialTokens: false }) ?? []
    let resumed: Resumed | null = null
    let name = this.#session
    if (this.#matching !== null) {
      name ??= sessions.match(this.#matching, this.#policyText, prompt, encode)
    }
    if (name) {
      resumed = sessions.enter(name, this.#policyText, prompt, encode)
      this.#entered = name
    }
    if (this.#from) {
      resumed ??= sessions.copy(this.#from, this.#entered, this.#policyText, prompt, encode)
    }
    this.#pastText = resumed?.text ?? null
    return resumed && { ...resumed, nCached: resumed.sequence.tokens.length }
  }

  /**
   * Where a conversation's prompt is settled: what the cache is there is kept, where there is memory for
   * it.
   */
  #placesIn(ids: readonly number[], { settled }: PromptTokens): PromptPlace[] {
    const name = this.#entered
    if (!settled || !name) return []
    const { text, rest, isUsers } = settled
    // A second try of the last prompt is there already.
    if (!endsWith(ids, rest)) return []
    const reached: PromptPlace['reached'] = (there) => {
      this.#pastText = text
      const copy = copyOf({ sequence: there, text })
      if (copy) this.#host.sessions.keepBefore(name, copy, isUsers)
    }
    return [{ nBehind: rest.length, reached }]
  }

  #countPrompt(nTokens: number, nCached: number): void {
    this.usage.promptTokens += nTokens
    this.usage.cachedTokens += nCached
    this.#saidFrom = nTokens
  }

  get #policyText(): string {
    return JSON.stringify(this.#request.policy)
  }

  /** A sequence of its own, over what the prompt shares with others if it does. */
  async #begin({ ids, shared }: PromptTokens, signal: AbortSignal): Promise<Opened> {
    const { engine } = this.#host
    // Whoever has a session may ask how its tokens are kept.
    const options = { policy: this.#request.policy, recordSaliency: this.#session !== null }
    if (!shared) return { sequence: engine.createSequence(options), ids, nCached: 0 }
    const { count, scope } = shared
    const prefix = ids.slice(0, count)
    const { sequence, isKept } = await engine.openPrefix(prefix, { ...options, scope, signal })
    return { sequence, ids: ids.slice(count), nCached: isKept ? count : 0 }
  }

  async *#run({ index, seed, start }: Choice, signal: AbortSignal) {
    const { sequence, ids, course } = await start()
    const options = { ...this.#request.sampling, seed, signal }
    for await (const token of sequence.generate(ids, options, course)) {
      if (this.#stopped.has(index)) break
      if (token.isStop) {
        yield { kind: 'text' as const, choice: index, text: token.text }
        continue
      }
      this.usage.completionTokens++
      if (token.isDrafted) this.usage.draftedTokens++
      this.#observer.token(index)
      yield { kind: 'token' as const, choice: index, token }
    }
    const finishReason = sequence.finishReason ?? 'stop'
    this.#observer.end(index, finishReason)
    this.#end(sequence) // others may wait for its memory, those of this request too
    yield { kind: 'end' as const, choice: index, finishReason }
  }

  /** Counts a sequence and lets it go, or leaves it to its conversation where that can go on. */
  #end(sequence: Sequence): void {
    this.#sequences.delete(sequence)
    if (sequence.isUsable) addCache(this.usage, sequence.bytes)
    if (!this.#entered || !sequence.isUsable || sequence.tokens.length === 0) {
      sequence.dispose()
      return
    }
    const text = this.#textOf(sequence)
    const kept = { sequence, policy: this.#policyText, text }
    this.#host.sessions.leave(this.#entered, kept)
    this.#entered = null
  }

  /** The text of a conversation's tokens; null where it is not known. */
  #textOf({ tokens }: Sequence): string | null {
    // Given up before the prompt was in the cache, which is as it was.
    if (tokens.length < this.#saidFrom) return this.#pastText
    const { tokenizer } = this.#host
    const text = this.#prompts[0]?.text ?? null
    if (text === null || !tokenizer) return null
    const before = this.#request.sampling.continueText ? tokens.slice(0, this.#saidFrom) : []
    const said = new TextStream(tokenizer, { before })
    return (
      text +
      tokens
        .slice(this.#saidFrom)
        .map((id) => said.push(id))
        .join('') +
      said.flush()
    )
  }
}

/** How a prompt runs in a sequence that holds nothing: what it shares is a turn of its own for all who do. */
function freshCourse({ ids, shared }: PromptTokens) {
  const places: PromptPlace[] = []
  if (shared) places.push({ nBehind: ids.length - shared.count, reached: () => {} })
  return { ids, places }
}

function addCache(usage: Usage, { resident, fp16, byClass }: CacheBytes): void {
  usage.cacheBytes += resident
  usage.fp16Bytes += fp16
  addBytes(usage.bytesByClass, byClass)
}
