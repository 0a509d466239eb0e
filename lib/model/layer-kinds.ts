import { type KvShape, PAGE_UNIT_BYTES, type StateShape } from '../cache/index.js'
import type { ModelConfig, RecurrenceConfig } from './config.js'

/** A layer among those of its kind. */
export interface LayerPlace {
  /** It keeps a state of one size; others attend to keys and values, which they keep. */
  readonly isRecurrent: boolean
  /** How many of its kind are before it. */
  readonly index: number
}

/** (nLayers) */
export function layerPlaces({
  nLayers,
  recurrence,
}: Pick<ModelConfig, 'nLayers' | 'recurrence'>): LayerPlace[] {
  const counts = { attending: 0, recurrent: 0 }
  return Array.from({ length: nLayers }, (_, layer) => {
    const isRecurrent = recurrence?.layers[layer] === true
    return { isRecurrent, index: isRecurrent ? counts.recurrent++ : counts.attending++ }
  })
}

/** What the cache is of: the layers that attend. */
export function attentionShape(config: ModelConfig): KvShape {
  const { nKvHeads, headDim } = config
  const windows = layerPlaces(config).flatMap(({ isRecurrent }, layer) =>
    isRecurrent ? [] : [config.slidingWindow[layer] ?? 0],
  )
  return { nLayers: windows.length, nKvHeads, headDim, slidingWindow: windows }
}

/** What the recurrent layers keep of a sequence; null: there are none. */
export function stateShape({ recurrence }: Pick<ModelConfig, 'recurrence'>): StateShape | null {
  if (!recurrence) return null
  const { layers, nValueHeads, keyDim, valueDim, convWidth } = recurrence
  const conv = (convWidth - 1) * channelsOf(recurrence) * 4
  return {
    nLayers: layers.filter(Boolean).length,
    nHeads: nValueHeads,
    convBytes: Math.ceil(conv / PAGE_UNIT_BYTES) * PAGE_UNIT_BYTES,
    headBytes: keyDim * valueDim * 4,
  }
}

/** Channels of a recurrent layer's convolution: of queries, keys and values. */
export function channelsOf({ nKeyHeads, nValueHeads, keyDim, valueDim }: RecurrenceConfig): number {
  return 2 * nKeyHeads * keyDim + nValueHeads * valueDim
}
