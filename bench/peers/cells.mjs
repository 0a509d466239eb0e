// What is compared: each cell is one engine with one kind of cache.

/**
 * Our own recipe beside the paper's: few salient tokens, three bits for the other keys, K's ranges
 * searched instead of taken from the extremes.
 */
const kMixed = {
  name: 'zipcache',
  saliencyRatio: 0.2,
  metric: 'accumulated',
  keyBits: { high: 4, low: 3 },
  valueBits: { high: 4, low: 2 },
  keyRange: { norm: 3 },
}

/** Caches of zipcache. */
export const kZipCacheCaches = [
  { name: 'fp16', policy: 'fp16' },
  { name: 'uniform4', policy: 'uniform4' },
  { name: 'zipcache (paper: r 60%, 4/2 bits)', policy: 'zipcache' },
  { name: 'zipcache (r 20%, K 4/3, V 4/2 bits)', policy: kMixed },
]

/** Caches of llama.cpp. It quantizes V with flash attention alone. */
export const kLlamaCaches = [
  { name: 'F16, flash attention', kvType: 'F16', flashAttention: true },
  { name: 'F16, no flash attention', kvType: 'F16', flashAttention: false },
  { name: 'Q8_0', kvType: 'Q8_0', flashAttention: true },
  { name: 'Q4_0', kvType: 'Q4_0', flashAttention: true },
]

/** Bytes an element, the scale of each block of 32 included. Source: ggml's block formats. */
const kBytesAnElement = { F16: 2, Q8_0: 34 / 32, Q4_0: 18 / 32 }

/** Bytes that `tokens` tokens take in llama.cpp's cache, K and V of all layers. */
export function llamaCacheBytes({ nLayers, nKvHeads, headDim }, kvType, tokens) {
  return tokens * nLayers * 2 * nKvHeads * headDim * kBytesAnElement[kvType]
}

/** @returns {object} a cell of zipcache, computing in `dtype` over weights `stored` or `int8` */
export function zipcacheCell({ name, policy }, dtype, weights = 'stored') {
  const engine = 'zipcache'
  const of = weights === 'stored' ? dtype : `${dtype}, ${weights} weights`
  return { engine, name: `${engine} ${of}`, cache: name, policy, dtype, weights }
}

/** @returns {object} a cell of llama.cpp with weights of type `weights` */
export function llamaCell({ name, kvType, flashAttention }, weights) {
  const engine = 'llama.cpp'
  return { engine, name: `${engine} ${weights}`, cache: name, weights, kvType, flashAttention }
}
