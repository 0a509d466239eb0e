import { type KvShape, PAGE_UNIT_BYTES, type StateShape } from '../cache/index.js'
import type { ModelConfig, RecurrenceConfig } from './config.js'

/** A layer among those of its kind: that keep a state of one size, or keys and values of heads of one shape. */
export interface LayerPlace {
  /** It keeps a state; others attend to keys and values. */
  readonly isRecurrent: boolean
  /** Which of `headShapes` its heads have; 0 of a recurrent layer. */
  readonly shape: number
  /** How many of its kind are before it; where it attends to another layer's keys and values, before that one. */
  readonly index: number
  /** It attends to keys and values that an earlier layer keeps. */
  readonly borrows: boolean
}

/** (nLayers) */
export function layerPlaces(
  config: Pick<ModelConfig, 'nLayers' | 'recurrence' | 'globalHeads' | 'kvSources'>,
): LayerPlace[] {
  const { nLayers, recurrence, globalHeads, kvSources } = config
  const counts = { recurrent: 0, ofShapes: [0, 0] as [number, number] }
  const places: LayerPlace[] = []
  for (let layer = 0; layer < nLayers; layer++) {
    const source = kvSources[layer] as number
    const lent = source === layer ? undefined : places[source]
    const shape = globalHeads?.layers[layer] ? 1 : 0
    if (lent) places.push({ ...lent, borrows: true })
    else if (recurrence?.layers[layer] === true) {
      places.push({ isRecurrent: true, shape: 0, index: counts.recurrent++, borrows: false })
    } else
      places.push({ isRecurrent: false, shape, index: counts.ofShapes[shape]++, borrows: false })
  }
  return places
}

/** What heads of some layers are alike in. */
export type HeadShape = Pick<ModelConfig, 'nKvHeads' | 'headDim' | 'rotaryDim'>

/** The shapes that heads have: of most layers, and of those that have `globalHeads`. */
export function headShapes(config: HeadShape & Pick<ModelConfig, 'globalHeads'>): HeadShape[] {
  const { nKvHeads, headDim, rotaryDim, globalHeads } = config
  const most = { nKvHeads, headDim, rotaryDim }
  return globalHeads ? [most, globalHeads] : [most]
}

/** What the cache is of, one for each of `headShapes`: the layers that keep keys and values. */
export function attentionShapes(config: ModelConfig): KvShape[] {
  const places = layerPlaces(config)
  return headShapes(config).map(({ nKvHeads, headDim }, shape) => {
    const slidingWindow = places.flatMap((place, layer) =>
      place.isRecurrent || place.borrows || place.shape !== shape
        ? []
        : [config.slidingWindow[layer] ?? 0],
    )
    return { nLayers: slidingWindow.length, nKvHeads, headDim, slidingWindow }
  })
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
