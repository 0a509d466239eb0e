/** What a layer's attention says about the tokens that are to be compressed. */
export interface LayerScores {
  /** (n_kv_heads, n_tokens): their saliency. */
  readonly scores: Float32Array
  /** (n_kv_heads): how much low bits of K disturb a head's logits, of one scale. */
  readonly gains: Float64Array
}

/** How many tokens of a layer may be salient. */
export interface LayerBudget {
  /** Pages of 16 salient tokens, all KV heads of the layer together. */
  readonly pages: number
  /** Share of the weighted saliency that salient tokens are to hold, of (0, 1]. */
  readonly coverage: number
}

const PAGE_TOKENS = 16

/**
 * How many tokens of each KV head of a layer are salient: whole pages, unless all of a head's tokens
 * are. Tokens are weighed by saliency x gain. Page after page goes to the head whose next 16 tokens
 * weigh the most, until salient tokens hold `coverage` of the whole weight, or the budget is used up.
 */
export function salientCounts({ scores, gains }: LayerScores, budget: LayerBudget): Int32Array {
  const nHeads = gains.length
  const n = scores.length / nHeads
  const pages: { head: number; index: number; weight: number }[] = []
  let total = 0
  for (let head = 0; head < nHeads; head++) {
    const own = scores.slice(head * n, (head + 1) * n).sort() // ascending
    for (let index = 0; index * PAGE_TOKENS < n; index++) {
      const last = Math.max(0, n - (index + 1) * PAGE_TOKENS)
      let sum = 0
      for (let i = last; i < n - index * PAGE_TOKENS; i++) sum += own[i] as number
      const weight = sum * (gains[head] as number)
      total += weight
      pages.push({ head, index, weight })
    }
  }
  // A head's pages fall in weight, so that taking the heaviest takes each head's in order.
  pages.sort((a, b) => b.weight - a.weight || a.index - b.index || a.head - b.head)
  const counts = new Int32Array(nHeads)
  let covered = 0
  let used = 0
  for (const { head, weight } of pages) {
    if (used >= budget.pages || covered >= budget.coverage * total) break
    counts[head] = Math.min(n, (counts[head] as number) + PAGE_TOKENS)
    covered += weight
    used++
  }
  return counts
}
