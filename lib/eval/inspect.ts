import { checkModel, type Model } from '../engine/model.js'
import { checkInteger, checkObject, checkSignal } from '../engine/options.js'
import { tokenTexts } from '../model/text-stream.js'
import type { ModelTokenizer } from '../model/tokenizer.js'
import { type PolicySpec, resolvePolicy } from '../policy/index.js'
import { policyLabel } from '../policy/policy-label.js'
import { check } from './check.js'

/** Which tokens a policy took for salient, in one layer and KV head or over all of them. */
export interface SaliencyShares {
  /** Share of the compressed tokens that are salient. */
  readonly salient: number
  /** The same of the tokens of each bin of positions; null for a bin without tokens. */
  readonly byPosition: readonly (number | null)[]
  /** The same of each kind of token: `word`, `number`, `punctuation` and so on. */
  readonly byTokenClass: Readonly<Record<string, number>>
  /** The same of each class of content that was asked for. */
  readonly byContentClass: Readonly<Record<string, number>>
  /**
   * How far being salient goes with another property of a token: P(a salient token has more of it
   * than a regular one) - P(less), of [-1, 1]; 0 where the two have nothing to do with each other.
   */
  readonly bias: {
    /** Above 0: late tokens are preferred. */
    readonly position: number
    /** Above 0: tokens are preferred that the prompt has often. */
    readonly frequency: number
  }
}

/** What `zipcache inspect` found: the document of `--json`. */
export interface SaliencyReport {
  /** Changes when a reader of this document must. */
  readonly schema: 'zipcache-inspect-1'
  /** Its label. */
  readonly policy: string
  /** Tokens of the prompt. */
  readonly tokens: number
  /** How many of them are compressed. */
  readonly compressed: number
  /** Tokens of each class among the compressed ones. */
  readonly tokenClasses: Readonly<Record<string, number>>
  /** The same of each class of content. */
  readonly contentClasses: Readonly<Record<string, number>>
  /** Over all layers and KV heads. */
  readonly all: SaliencyShares
  /** [layer][KV head]. */
  readonly layers: readonly (readonly SaliencyShares[])[]
  /** Each token's text, and the share of layers and KV heads that took it for salient. */
  readonly text: readonly {
    /** The token's own. */
    readonly text: string
    /** Of [0, 1]. */
    readonly share: number
  }[]
}

/** Options of `inspectSaliency`. */
export interface Inspection {
  /** Who reads the prompt. */
  readonly model: Model
  /** Token ids of the prompt. */
  readonly ids: readonly number[]
  /** Whose choice is looked at. */
  readonly policy: PolicySpec
  /** Of the probes; default 0. */
  readonly seed?: number | undefined
  /** Bins of positions; default 20. */
  readonly bins?: number | undefined
  /** Classes of content: a token belongs to those whose pattern finds a text it is part of. */
  readonly classes?: Readonly<Record<string, RegExp>> | undefined
  /** Aborting rejects with `signal.reason`. */
  readonly signal?: AbortSignal | undefined
}

/**
 * Prefills a prompt and looks at which of its tokens the policy took for salient.
 *
 * Rejects with `ERR_ZC_ARGUMENT` for an option out of its range, for classes of content without a
 * tokenizer, and for a policy or prompt of which no token was told from another; as
 * `Sequence.prefill` otherwise.
 */
export async function inspectSaliency(options: Inspection): Promise<SaliencyReport> {
  checkObject('options', options)
  const { model, ids, policy, seed = 0, classes = {}, signal } = options
  checkModel(model)
  resolvePolicy(policy)
  checkSignal(signal)
  checkObject('classes', classes)
  const bins = checkInteger('bins', options.bins ?? 20, 1, 4096)
  const hasClasses = Object.keys(classes).length > 0
  check('classes', !hasClasses || model.tokenizer !== null, 'need a tokenizer, the model has none')
  const sequence = model.createSequence({ policy, seed })
  try {
    await sequence.prefill(ids, signal === undefined ? {} : { signal })
    const layers = await sequence.salientTokens()
    const compressed = sequence.segments.reduce((most, { start, nTokens }) => {
      const others = sequence.segments.filter((other) => other.start === start)
      const group = others.reduce((sum, other) => sum + other.nTokens, 0)
      return Math.max(most, start + Math.max(group, nTokens))
    }, 0)
    const isToldApart = layers.some((heads) => heads.some(({ length }) => length > 0))
    check(
      'policy',
      isToldApart,
      `${policyLabel(policy)} tells no salient tokens from others in a prompt of ${ids.length}`,
    )
    const { tokenizer } = model
    const texts = tokenizer === null ? ids.map(() => '') : tokenTexts(tokenizer, ids)
    const tokenClasses = ids.map((id, i) => tokenClassOf(tokenizer, id, texts[i] as string))
    const contentClasses = contentClassesOf(texts, classes)
    const facts = {
      ids,
      compressed,
      bins,
      tokenClasses,
      contentClasses,
      names: Object.keys(classes),
    }
    const maps = layers.map((heads) => heads.map((positions) => toMap(positions, compressed)))
    const flat = maps.flat()
    return {
      schema: 'zipcache-inspect-1',
      policy: policyLabel(policy),
      tokens: ids.length,
      compressed,
      tokenClasses: countsOf(tokenClasses.slice(0, compressed)),
      contentClasses: Object.fromEntries(
        facts.names.map((name) => [
          name,
          contentClasses.slice(0, compressed).filter((own) => own.has(name)).length,
        ]),
      ),
      all: sharesOf(flat, facts),
      layers: maps.map((heads) => heads.map((map) => sharesOf([map], facts))),
      text: texts.map((text, i) => ({
        text,
        share: flat.reduce((sum, map) => sum + (map[i] ?? 0), 0) / flat.length,
      })),
    }
  } finally {
    sequence.dispose()
  }
}

/** 1 for each salient token. */
function toMap(positions: Int32Array, nTokens: number): Uint8Array {
  const map = new Uint8Array(nTokens)
  for (const position of positions) map[position] = 1
  return map
}

interface TokenFacts {
  readonly ids: readonly number[]
  readonly compressed: number
  readonly bins: number
  readonly tokenClasses: readonly string[]
  readonly contentClasses: readonly ReadonlySet<string>[]
  readonly names: readonly string[]
}

function sharesOf(maps: readonly Uint8Array[], facts: TokenFacts): SaliencyShares {
  const { ids, compressed, bins, tokenClasses, contentClasses, names } = facts
  const salient = Float64Array.from({ length: compressed }, (_, i) =>
    maps.reduce((sum, map) => sum + (map[i] as number), 0),
  ).map((sum) => sum / maps.length)
  const shareOf = (accepts: (i: number) => boolean): number | null => {
    let n = 0
    let sum = 0
    for (let i = 0; i < compressed; i++) {
      if (!accepts(i)) continue
      n++
      sum += salient[i] as number
    }
    return n === 0 ? null : sum / n
  }
  const frequency = countsOf(ids.map(String))
  const bin = (i: number) => Math.floor((i / compressed) * bins)
  const byName = (own: readonly string[], has: (i: number, name: string) => boolean) =>
    Object.fromEntries(
      own.flatMap((name) => {
        const share = shareOf((i) => has(i, name))
        return share === null ? [] : [[name, share]]
      }),
    )
  return {
    salient: shareOf(() => true) as number,
    byPosition: Array.from({ length: bins }, (_, b) => shareOf((i) => bin(i) === b)),
    byTokenClass: byName(
      Object.keys(countsOf(tokenClasses)),
      (i, name) => tokenClasses[i] === name,
    ),
    byContentClass: byName(names, (i, name) => contentClasses[i]?.has(name) ?? false),
    bias: {
      position: biasOf(salient, (i) => i),
      frequency: biasOf(salient, (i) => frequency[String(ids[i])] as number),
    },
  }
}

/**
 * P(x of a salient token > x of a regular one) - P(<), each token being salient with weight
 * `salient[i]` and regular with 1 - that: the area under the ROC curve, stretched to [-1, 1].
 */
export function biasOf(salient: ArrayLike<number>, x: (i: number) => number): number {
  const order = Array.from({ length: salient.length }, (_, i) => i).sort((a, b) => x(a) - x(b))
  let regularBelow = 0
  let higher = 0
  let ties = 0
  let nSalient = 0
  for (let first = 0; first < order.length; ) {
    let last = first
    let own = 0
    while (last < order.length && x(order[last] as number) === x(order[first] as number)) {
      own += salient[order[last] as number] as number
      last++
    }
    const regular = last - first - own
    higher += own * regularBelow
    ties += own * regular
    nSalient += own
    regularBelow += regular
    first = last
  }
  const pairs = nSalient * regularBelow
  return pairs === 0 ? 0 : (2 * higher + ties) / pairs - 1
}

/** What kind of token it is, by its own text. */
function tokenClassOf(tokenizer: ModelTokenizer | null, id: number, piece: string): string {
  if (tokenizer === null) return 'token'
  if (tokenizer.specialIds.has(id)) return 'special'
  const text = piece === '' ? tokenizer.decode([id]) : piece
  if (text.includes('\n')) return 'line break'
  if (/^\s*$/.test(text)) return 'space'
  if (/^\s*\p{N}+\s*$/u.test(text)) return 'number'
  if (/^[\s\p{P}\p{S}]+$/u.test(text)) return 'punctuation'
  return /[\p{L}\p{M}]/u.test(text) ? 'word' : 'other'
}

/** For each token, the classes whose pattern finds something that it is part of. */
function contentClassesOf(
  texts: readonly string[],
  classes: Readonly<Record<string, RegExp>>,
): Set<string>[] {
  const own = texts.map(() => new Set<string>())
  const whole = texts.join('')
  const ends: number[] = []
  for (const text of texts) ends.push((ends.at(-1) ?? 0) + text.length)
  for (const [name, pattern] of Object.entries(classes)) {
    const flags = pattern.flags.includes('g') ? pattern.flags : `${pattern.flags}g`
    let token = 0
    for (const match of whole.matchAll(new RegExp(pattern.source, flags))) {
      const end = match.index + match[0].length
      while (token < ends.length && (ends[token] as number) <= match.index) token++
      for (let i = token; i < ends.length; i++) {
        const start = (ends[i] as number) - (texts[i] as string).length
        if (start >= end) break
        own[i]?.add(name)
      }
    }
  }
  return own
}

function countsOf(names: readonly string[]): Record<string, number> {
  const counts: Record<string, number> = {}
  for (const name of names) counts[name] = (counts[name] ?? 0) + 1
  return counts
}
