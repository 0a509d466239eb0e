// What bench:cuda should measure, from bytes, occupancy and a few constants of one GPU, beside what was
// measured: `node bench/cuda/model.mjs` writes docs/results/cuda-model.md to stdout. Needs dist/.
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const require = createRequire(import.meta.url)
const { codeFormat, pageBytes, paramsBytes, PAGE_TOKENS } = require('../../dist/cache/format.js')
const { formatMarkdownTable, left, right } = require('../../dist/cli/table.js')

/** An H200: what was measured on one (cuda-attention.md), and what NVIDIA states. */
export const kH200 = {
  multiprocessors: 132,
  readGBs: 4289,
  denseTflops: 767,
  clockGHz: 1.755,
}

/**
 * mixedAttention's constants, by least squares over the table of cuda-attention.md, in microseconds.
 * `item`: to begin and end one; `split`: of each further split that a block takes in turn; `tokens`:
 * of 1,000 tokens of one KV head, streamed by a block's six warps beside the multiprocessor's other
 * block.
 */
const kAttention = {
  fp16: { item: 13.4, split: 3.1, tokens: 28.4 },
  uniform8: { item: 20.5, split: 8.0, tokens: 17.1 },
  uniform4: { item: 20.1, split: 9.1, tokens: 9.45 },
  uniform2: { item: 19.6, split: 8.8, tokens: 7.22 },
  'zipcache-60': { item: 20.2, split: 8.6, tokens: 10.4 },
  'zipcache-plus': { item: 20.0, split: 9.7, tokens: 10.9 },
}

/** Classes of the caches that are measured: bits of K and V, and the share of the tokens. */
const kClasses = {
  fp16: [],
  uniform8: [[8, 8, 1]],
  uniform4: [[4, 4, 1]],
  uniform2: [[2, 2, 1]],
  'zipcache-60': [
    [4, 4, 0.6],
    [2, 2, 0.4],
  ],
  'zipcache-plus': [
    [4, 4, 0.2],
    [3, 2, 0.8],
  ],
}
const kTail = 50
/** Blocks of mixedAttention on a multiprocessor: kernels.md. */
const kResident = 2
const kSplitTokens = 1024
const kMaxSplits = 8

/** Bytes of one sequence's cache in one layer that a decode step reads. */
export function cacheBytes(policy, context, { nKvHeads, headDim }) {
  const classes = kClasses[policy]
  const plain = classes.length === 0 ? context + kTail : kTail
  const pages = (nTokens) => Math.ceil(nTokens / PAGE_TOKENS)
  let bytes = pages(plain) * pageBytes('f16', 'f16', headDim)
  for (const [k, v, share] of classes) {
    bytes += pages(context * share) * pageBytes(codeFormat(k), codeFormat(v), headDim)
    bytes += paramsBytes(headDim)
  }
  return nKvHeads * bytes
}

/**
 * mixedAttention of one layer in microseconds: items of (sequence, KV head, split) go to blocks that
 * are resident together, wave after wave; no faster than the bytes can be read.
 */
export function attention(
  policy,
  { batch, context, nHeads, nKvHeads, headDim },
  gpu = kH200,
  round = Math.round, // of splits; the first run's kernel rounded up
) {
  const { item, split, tokens } = kAttention[policy]
  const nTokens = context + kTail
  const splits = Math.min(kMaxSplits, Math.max(1, round(nTokens / kSplitTokens)))
  // Many rows: a block takes all splits of its head, and no partial results are stored.
  const whole = batch * nHeads >= 12 * gpu.multiprocessors
  const items = batch * nKvHeads * (whole ? 1 : splits)
  const waves = Math.ceil(items / (kResident * gpu.multiprocessors))
  const perItem = whole ? splits : 1
  const streamed = (tokens * nTokens) / (splits / perItem) / 1000
  const MB = (batch * cacheBytes(policy, context, { nKvHeads, headDim })) / 1e6
  const floor = (MB / gpu.readGBs) * 1000
  const us = Math.max(floor, waves * (item + split * (perItem - 1) + streamed))
  return { MB, floor, items, waves, us }
}

/** The model's time for a row of the benchmark; null for another GPU, or a cache it does not know. */
export function predictedMicroseconds(gpu, { policy, batch, context, heads }) {
  if (!gpu?.includes('H200') || !kAttention[policy]) return null
  const [nHeads, nKvHeads, headDim] = heads.split('/').map(Number)
  if (headDim !== kLlama3.headDim) return null // the constants are of one head_dim
  return attention(policy, { batch, context, nHeads, nKvHeads, headDim }).us
}

const kLlama3 = { nHeads: 32, nKvHeads: 8, headDim: 128 }
const kLlamaLayers = 32
/** Read by each step of LLaMA3-8B in bf16: all weights but the table of embeddings. */
const kWeightGB = 15.01
/**
 * Ops of a layer in a decode step, each a kernel: lib/model/forward.ts and decode-step.ts. Q, K and V, and
 * gate and up, are one each up to so many rows (csrc/cuda/linear_16.h), else five.
 */
const kFewRows = 16
const kernelsALayer = (batch) => (batch <= kFewRows ? 9 : 12)
/** From one kernel of a graph to the next, and the share of reading that matrix products reach: not measured here yet. */
const kGapUs = 1.2
const kWeightEfficiency = 0.85

/** A decode step of LLaMA3-8B's shape in milliseconds. */
export function step(policy, batch, context, gpu = kH200) {
  const one = attention(policy, { batch, context, ...kLlama3 }, gpu)
  const read = (kWeightGB / gpu.readGBs) * 1000
  const floor = read + (kLlamaLayers * one.floor) / 1000
  const gaps = (kLlamaLayers * kernelsALayer(batch) * kGapUs) / 1000
  const ms = read / kWeightEfficiency + (kLlamaLayers * one.us) / 1000 + gaps
  return { floor, ms, attention: (kLlamaLayers * one.us) / 1000 }
}

/**
 * Causal flashAttention at head_dim 128 in TFLOP/s: as though the units of a multiprocessor never
 * waited for each other, and as though they always did.
 *
 * A tile is 128 rows of q by 64 keys. mma.sync reaches 62% of wgmma's rate; MUFU takes 16 exponentials a
 * clock, FMA lanes 128, shared memory 128 bytes.
 */
export function flash(form, gpu = kH200) {
  const [rows, keys, d] = [128, 64, 128]
  const flop = 4 * rows * keys * d
  const clocks = {
    tensor: flop / (form === 'wgmma' ? 4096 : 0.62 * 4096),
    exponentials: (rows * keys) / 16,
    scaling: (4 * rows * keys) / 128,
    // wgmma reads K and V from shared memory once for 64 rows, mma.sync's warps each for their 32.
    shared: ((form === 'wgmma' ? rows / 64 : rows / 32) * 2 * keys * d * 2) / 128,
  }
  const all = Object.values(clocks)
  const rate = (total) => (flop / total) * gpu.multiprocessors * gpu.clockGHz * 1e-3
  return {
    clocks,
    most: rate(Math.max(...all)),
    least: rate(all.reduce((sum, value) => sum + value, 0)),
  }
}

/** Rows of the table in cuda-attention.md: the first run. */
export function firstRun() {
  const file = path.join(path.dirname(fileURLToPath(import.meta.url)), '../../docs/results')
  const text = readFileSync(path.join(file, 'cuda-attention.md'), 'utf8')
  const row = /^\| (\d+) \| (\d+) \| (\S+) \| ([\d.]+) \|/gm
  return [...text.matchAll(row)].map(([, batch, context, policy, us]) => ({
    batch: Number(batch),
    context: Number(context),
    policy,
    us: Number(us),
  }))
}

const number = (value) => (value >= 100 ? value.toFixed(0) : value.toPrecision(3))

function attentionTable() {
  const run = firstRun()
  const rows = []
  for (const context of [4096, 32768, 131072]) {
    for (const batch of [1, 8, 64]) {
      for (const policy of ['fp16', 'uniform4', 'uniform2', 'zipcache-60', 'zipcache-plus']) {
        const shape = { batch, context, ...kLlama3 }
        const { MB, floor, items, waves, us } = attention(policy, shape)
        const then = attention(policy, shape, kH200, Math.ceil)
        if (MB * kLlamaLayers > 110_000) continue // does not fit beside the weights
        const found = run.find(
          (row) => row.batch === batch && row.context === context && row.policy === policy,
        )
        rows.push([
          String(batch),
          String(context),
          policy,
          number(MB),
          number(floor),
          found ? number(then.us) : '',
          found ? `${number(found.us)} (${(found.us / then.us).toFixed(2)}x)` : '',
          `${items}, ${waves}`,
          number(us),
          `${((100 * floor) / us).toFixed(0)}%`,
        ])
      }
    }
  }
  const columns = [
    right('batch'),
    right('context'),
    left('cache'),
    right('MB'),
    right('floor, us'),
    right('first run, model'),
    right('measured'),
    right('items, waves now'),
    right('predicted, us'),
    right('of reading'),
  ]
  return formatMarkdownTable({ columns, rows })
}

function stepTable() {
  const rows = []
  for (const [batch, context] of [
    [1, 4096],
    [1, 32768],
    [8, 4096],
    [8, 32768],
    [64, 4096],
  ]) {
    for (const policy of ['fp16', 'uniform4', 'zipcache-60', 'zipcache-plus']) {
      const { floor, ms, attention: part } = step(policy, batch, context)
      const rate = (1000 * batch) / ms
      rows.push(
        [batch, context, policy, number(floor), number(part), number(ms)]
          .concat((ms / floor).toFixed(2), number(rate))
          .map(String),
      )
    }
  }
  const columns = [
    right('batch'),
    right('context'),
    left('cache'),
    right('floor, ms'),
    right('attention, ms'),
    right('predicted step, ms'),
    right('of the floor'),
    right('tokens/s'),
  ]
  return formatMarkdownTable({ columns, rows })
}

function flashTable() {
  const rows = ['mma.sync', 'wgmma'].map((form) => {
    const { clocks, most, least } = flash(form)
    return [form, ...Object.values(clocks).map(number), number(least), number(most)]
  })
  const columns = [
    left('form'),
    right('tensor cores, clocks'),
    right('exponentials'),
    right('scaling'),
    right('shared memory'),
    right('TFLOP/s, one after the other'),
    right('all at once'),
  ]
  return formatMarkdownTable({ columns, rows })
}

/** What the page says beside the tables: what follows from them for each bar. */
function page() {
  const at = (policy, batch, context) => attention(policy, { batch, context, ...kLlama3 })
  const large = at('zipcache-60', 8, 32768)
  const small = at('zipcache-60', 8, 4096)
  const { item, split, tokens } = kAttention['zipcache-60']
  return `# What an H200 should measure

Written by \`node bench/cuda/model.mjs\`, from bytes, occupancy and constants. Figures under "measured" are those of
cuda-attention.md, to which the constants of mixedAttention were fitted; everything else here is a prediction that no run has met yet.
\`npm run bench:cuda\` prints the model's figure beside each that it measures on such a GPU.

## mixedAttention

LLaMA3-8B's heads, a tail of ${kTail} tokens, one layer. An item is one split (about 1,024 tokens, ${kMaxSplits} splits at most) of one KV head of one
sequence; ${kResident} blocks of six warps are resident on each of ${kH200.multiprocessors} multiprocessors (kernels.md: 168 registers), and take items wave after
wave. An item costs ${item} us to begin and end, ${split} us for each further split where one block takes them all, and ${tokens} us for
1,000 tokens (zipcache-60; the other caches have constants of their own). The floor is bytes at ${kH200.readGBs} GB/s.

The kernel has changed since the first run in three ways that no GPU has timed yet. The number of splits is rounded to the nearest, not up: 4,096 tokens and a tail made five splits, and at
batch 8 320 items for ${kResident * kH200.multiprocessors} places, two waves where one does. A segment's channel parameters are asked for in advance: each
warp read them when a segment began, in eight steps that each waited for memory. At 0.7 us a wait, assumed and not measured, that would be most of what codes cost an item more than 16-bit
values (${(item - kAttention.fp16.item).toFixed(1)} us). And a warp no longer waits for the page table once a unit: it looks at a page's address when it copies the page. The first is in the
predictions, the others are not.

${attentionTable()}

One sequence in 16 bits is the case that it misses: alone, a block streams them faster than beside others that wait for the same memory.

What follows:

- Of the ${number(large.us)} us at batch 8 and 32k, ${number(large.waves * item)} are the beginnings and ends of ${large.waves} waves, and streaming reaches
  ${((100 * large.floor) / (large.us - large.waves * item)).toFixed(0)}% of reading without them. 85% of reading needs both: an item's fixed cost below 2 us, and 1.7 times as many tokens a second.
- At batch 8 and 4k ${small.items} items meet ${kResident * kH200.multiprocessors} places: ${number(small.us)} us, of which ${number(small.waves * item)} are beginning and end; PyTorch's fastest takes 38.4.
- Where the last wave is nearly full, as at batch 8 and 32k, fewer splits gain less than their longer items cost at batch 1.

## flashAttention

A tile of 128 rows of q by 64 keys at head_dim 128: clocks of each unit of a multiprocessor at ${kH200.clockGHz} GHz. A real kernel lies
between the last two columns, the nearer to the right the more warps there are to fill waits: two blocks of four warps (255 registers)
for mma.sync, two consumer warpgroups for wgmma. Power limits are not in it; cuDNN reaches 635 TFLOP/s on the H200 of cuda-attention.md. The bars are 300 and 520.

${flashTable()}

## Decode steps of LLaMA3-8B's shape

Floor: ${kWeightGB} GB of weights and the cache, once each, at ${kH200.readGBs} GB/s. Predicted: weights at ${100 * kWeightEfficiency}% of reading, ${kernelsALayer(1)} kernels a layer (${kernelsALayer(64)} from
${kFewRows + 1} rows on) ${kGapUs} us apart, ${kLlamaLayers} layers of mixedAttention as above. The bar is 1.25 times the floor.

${stepTable()}

## A step that closes a window

Six launches a layer more (unpackSegment, the probes' gather, probeAttention, selectSalient, packSegment twice), each over 100 tokens: latency, not
bytes. At 5 us each, ${kLlamaLayers} layers take ${number((6 * kLlamaLayers * 5) / 1000)} ms: ${(1 + (6 * kLlamaLayers * 5) / 1000 / step('zipcache-60', 1, 4096).ms).toFixed(2)}x the step at batch 1 and 4k, ${(1 + (6 * kLlamaLayers * 5) / 1000 / step('zipcache-60', 8, 32768).ms).toFixed(2)}x at batch 8 and 32k
when one sequence closes. The bar is 1.5x.

## Peak memory

\`model.estimate\` counts every byte that is allocated (test/engine/estimate.test.ts holds it against the allocator, byte for byte, on the CPU); a
GPU's context and the code of the kernels, some hundreds of MB, come on top and are not in it.
`
}

if (process.argv[1] === fileURLToPath(import.meta.url)) process.stdout.write(page())
