import type { Model } from '../engine/model.js'
import type { Sequence } from '../engine/sequence.js'
import { attentionShapes } from '../model/layer-kinds.js'
import { tokenTexts } from '../model/text-stream.js'
import { cacheObject } from './answers.js'

/** How a conversation's cache is kept, token by token, as `GET /v1/sessions/:id/cache` has it. */
export async function describeCache(
  sequence: Sequence,
  { config, tokenizer }: Pick<Model, 'config' | 'tokenizer'>,
): Promise<object> {
  // Both at this moment, before the cache goes on.
  const { resident, fp16, byClass } = sequence.bytes
  const bytes = { cacheBytes: resident, fp16Bytes: fp16, bytesByClass: byClass }
  const { ids, tailStart, bits, salientShare, scores } = await sequence.tokenMap()
  const texts = tokenizer === null ? null : tokenTexts(tokenizer, ids)
  return {
    object: 'session.cache',
    ...cacheObject(bytes, sequence.policy.name),
    heads: attentionShapes(config).reduce((n, own) => n + own.nLayers * own.nKvHeads, 0),
    tail_start: tailStart,
    tokens: ids.map((id, i) => ({
      id,
      text: texts?.[i] ?? null,
      bits: numberOrNull(bits[i], 3),
      salient: numberOrNull(salientShare[i], 4),
      score: numberOrNull(scores[i], 4),
    })),
  }
}

/** With so many digits, as float32 has no more; JSON knows no NaN. */
function numberOrNull(value: number | undefined, digits: number): number | null {
  return value === undefined || Number.isNaN(value) ? null : Number(value.toPrecision(digits))
}
