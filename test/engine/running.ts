import {
  type GeneratedToken,
  type GenerateOptions,
  loadModel,
  type Model,
  type Prompt,
  type SequenceOptions,
} from '../../lib/index'

/** All tokens of a generation. */
export async function collect(
  tokens: AsyncIterable<GeneratedToken>,
): Promise<{ ids: number[]; text: string; logprobs: number[] }> {
  const all: GeneratedToken[] = []
  for await (const token of tokens) all.push(token)
  return {
    ids: all.map(({ id }) => id),
    text: all.map(({ text }) => text).join(''),
    logprobs: all.map(({ logprob }) => logprob),
  }
}

/** A model or a sequence. */
interface Generates {
  generate(
    prompt: Prompt,
    options: GenerateOptions & SequenceOptions,
  ): AsyncGenerator<GeneratedToken, void, undefined>
}

/** The ids of a generation of n tokens, whatever they are. */
export async function idsOf(
  source: Generates,
  prompt: Prompt | null,
  n: number,
  options: GenerateOptions & SequenceOptions = {},
): Promise<number[]> {
  const all = { maxTokens: n, ignoreEos: true, ...options }
  return (await collect(source.generate(prompt as Prompt, all))).ids
}

/** Loads models for `body`. */
export async function withModels<R>(
  loads: readonly Readonly<Parameters<typeof loadModel>>[],
  body: (...models: Model[]) => Promise<R>,
): Promise<R> {
  const models = await Promise.all(loads.map((load) => loadModel(...load)))
  try {
    return await body(...models)
  } finally {
    for (const model of models) await model.dispose()
  }
}

/** Loads a model for `body`. */
export function withModel<R>(
  dir: string,
  options: Parameters<typeof loadModel>[1],
  body: (model: Model) => Promise<R>,
): Promise<R> {
  return withModels([[dir, options]], body)
}

/** Loads a model for the suite around this call. */
export function useModel(...args: Parameters<typeof loadModel>): () => Model {
  let model: Model | undefined
  beforeAll(async () => {
    model = await loadModel(...args)
  })
  afterAll(() => model?.dispose())
  return () => model!
}

/** The largest |a - b|; NaN and infinity, and different lengths, count as infinite. */
export function maxDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) return Number.POSITIVE_INFINITY
  let worst = 0
  for (let i = 0; i < a.length; i++) {
    const difference = Math.abs(a[i] - b[i])
    if (!(difference <= worst))
      worst = Number.isFinite(difference) ? difference : Number.POSITIVE_INFINITY
  }
  return worst
}

/** Expects equal numbers. Not toEqual, which takes minutes to print how long arrays differ. */
export function expectSame(a: ArrayLike<number>, b: ArrayLike<number>): void {
  expect(maxDifference(a, b)).toBe(0)
}

/** For each row of (rows, width), where its largest number is. */
export function argmaxRows(x: ArrayLike<number>, width: number): number[] {
  return Array.from({ length: x.length / width }, (_, row) => {
    let best = 0
    for (let i = 1; i < width; i++) if (x[row * width + i] > x[row * width + best]) best = i
    return best
  })
}

/** Token ids below a vocabulary's size that look like nothing in particular, the same for the same seed. */
export function someIds(n: number, vocabSize: number, seed = 1): number[] {
  let state = seed * 2654435761
  return Array.from({ length: n }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return 3 + ((state >>> 8) % (vocabSize - 3))
  })
}

/**
 * How many rows of logits, `width` each, differ by `most` or more. Where x is rounded on its way into
 * products, a router whose experts are as good as equal chooses others for a row.
 */
export function rowsApart(a: Float32Array, b: Float32Array, width: number, most: number): number {
  const starts = Array.from({ length: a.length / width }, (_, row) => row * width)
  const rowAt = (logits: Float32Array, at: number) => logits.subarray(at, at + width)
  return starts.filter((at) => maxDifference(rowAt(a, at), rowAt(b, at)) >= most).length
}
