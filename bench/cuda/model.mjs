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
 * Constants of the kernel of the first run, by least squares over the table of cuda-attention.md, in
 * microseconds. `item`: to begin and end one; `split`: of each further split that a block takes in
 * turn; `tokens`: of 1,000 tokens of one KV head, streamed by a block's six warps beside the
 * multiprocessor's other block.
 */
const kFirstRun = {
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
/**
 * Waits for memory, one behind the other, from a call's beginning to its end, counted in the source: of the first
 * run's kernel with codes and with 16 bits, and of today's (lengths, the table's header, its entry, the
 * page's address, the page; results, the counter, others' results eight at a time).
 */
const kWaits = { codes: 46, fp16: 20, today: 9 }
/** From them and the first run's `item`: a wait, and everything else. */
const kWaitUs = (kFirstRun['zipcache-60'].item - kFirstRun.fp16.item) / (kWaits.codes - kWaits.fp16)
const kBeginUs = kFirstRun.fp16.item - kWaits.fp16 * kWaitUs
/** What a good kernel's call takes beside its bytes, as published for others (FlashInfer, FA3, TileOPs). */
const kLeastUs = 4
/** Instructions of a code, sm_90a, as they were when this was predicted. Others were not counted, and are bound by their bytes. */
const kInstructions = { '2/2': 1.17, '3/2': 1.3, '4/4': 1.28 }

/** Splits of a sequence: csrc/cuda/mixed_attention/layout.h. */
function splitCount(nTokens) {
  const small = Math.floor((nTokens + 512) / 1024)
  const large = Math.floor((nTokens + 1024) / 2048)
  return Math.min(32, Math.max(1, small < 8 ? small : Math.max(8, large)))
}

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
 * One layer by the kernel of the first run, in microseconds: items of (sequence, KV head, split) go to
 * blocks that are resident together, wave after wave; no faster than the bytes can be read.
 */
export function firstKernel(policy, shape, gpu = kH200) {
  const { batch, context, nHeads, nKvHeads } = shape
  const { item, split, tokens } = kFirstRun[policy]
  const nTokens = context + kTail
  const splits = Math.min(8, Math.max(1, Math.ceil(nTokens / 1024)))
  // Many rows: a block takes all splits of its head, and no partial results are stored.
  const whole = batch * nHeads >= 12 * gpu.multiprocessors
  const items = batch * nKvHeads * (whole ? 1 : splits)
  const waves = Math.ceil(items / (kResident * gpu.multiprocessors))
  const perItem = whole ? splits : 1
  const streamed = (tokens * nTokens) / (splits / perItem) / 1000
  const floor = ((batch * cacheBytes(policy, context, shape)) / gpu.readGBs) * 1e-3
  return Math.max(floor, waves * (item + split * (perItem - 1) + streamed))
}

/**
 * One layer by today's kernel, in microseconds, between two bounds. `low`: its bytes at the rate of
 * reading, or its instructions at four a clock, and what a good kernel takes beside. `high`: a block
 * streams no faster than the first run's did, and only its first beginning and last end are waited for.
 */
export function attention(policy, shape, gpu = kH200) {
  const { batch, context, nKvHeads, headDim } = shape
  const nTokens = context + kTail
  const splits = splitCount(nTokens)
  const items = batch * nKvHeads * splits
  const places = kResident * gpu.multiprocessors
  const perPlace = (Math.ceil(items / places) * nTokens) / splits
  const MB = (batch * cacheBytes(policy, context, shape)) / 1e6
  const floor = (MB / gpu.readGBs) * 1000
  const slots = kClasses[policy].reduce((sum, [k, v, share]) => {
    const codes = 2 * headDim * context * share * batch * nKvHeads
    return sum + (codes * (kInstructions[`${k}/${v}`] ?? 0)) / 32
  }, 0)
  const issue = slots / (4 * gpu.multiprocessors * gpu.clockGHz * 1000)
  const low = kLeastUs + Math.max(floor, issue)
  const begins = kBeginUs + kWaits.today * kWaitUs
  const high = Math.max(low, begins + (kFirstRun[policy].tokens * perPlace) / 1000)
  return { MB, floor, issue, splits: items, low, high }
}

/** The model's bounds for a row of the benchmark; null for another GPU, or a cache it does not know. */
export function predictedMicroseconds(gpu, { policy, batch, context, heads }) {
  if (!gpu?.includes('H200') || !kFirstRun[policy]) return null
  const [nHeads, nKvHeads, headDim] = heads.split('/').map(Number)
  if (headDim !== kLlama3.headDim) return null // the constants are of one head_dim
  return attention(policy, { batch, context, nHeads, nKvHeads, headDim })
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
  const others = read / kWeightEfficiency + gaps
  const [low, high] = [one.low, one.high].map((us) => others + (kLlamaLayers * us) / 1000)
  return { floor, low, high }
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

const range = ({ low, high }) => `${number(low)} to ${number(high)}`

function attentionTable() {
  const run = firstRun()
  const rows = []
  for (const context of [4096, 32768, 131072]) {
    for (const batch of [1, 8, 64]) {
      for (const policy of ['fp16', 'uniform4', 'uniform2', 'zipcache-60', 'zipcache-plus']) {
        const shape = { batch, context, ...kLlama3 }
        const one = attention(policy, shape)
        if (one.MB * kLlamaLayers > 110_000) continue // does not fit beside the weights
        const found = run.find(
          (row) => row.batch === batch && row.context === context && row.policy === policy,
        )
        const then = firstKernel(policy, shape)
        rows.push([
          String(batch),
          String(context),
          policy,
          number(one.MB),
          number(one.floor),
          found ? number(then) : '',
          found ? `${number(found.us)} (${(found.us / then).toFixed(2)}x)` : '',
          String(one.splits),
          range(one),
          `${((100 * one.floor) / one.high).toFixed(0)} to ${((100 * one.floor) / one.low).toFixed(0)}%`,
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
    right('measured then'),
    right('splits now'),
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
      const one = step(policy, batch, context)
      const times = { low: one.low / one.floor, high: one.high / one.floor }
      const rates = { low: (1000 * batch) / one.high, high: (1000 * batch) / one.low }
      rows.push(
        [batch, context, policy, number(one.floor), range(one)]
          .concat(`${times.low.toFixed(2)} to ${times.high.toFixed(2)}`, range(rates))
          .map(String),
      )
    }
  }
  const columns = [
    right('batch'),
    right('context'),
    left('cache'),
    right('floor, ms'),
    right('predicted step, ms'),
    right('of the floor'),
    right('tokens/s'),
  ]
  return formatMarkdownTable({ columns, rows })
}

/** Products of one layer of LLaMA3-8B's shape: elements of its weights. */
const kLayerWeights = 4096 * (4096 + 2 * 1024 + 4096 + 3 * 14336)
/** Of the dense rate: what products of a prompt, and an attention between its bounds, are taken to reach. */
const kProductEfficiency = 0.7

/** Rows of a slice of LLaMA3-8B's shape, whose probes are kept by a launch of their own: lib/engine/prefill.ts. */
const kSliceRows = 2048
/** A tile of probeAttention's kernel for Hopper: rows of q by a block's keys. */
const kProbeTile = { rows: 64, keys: 128 }
/**
 * selectSalient, counted in the source for two histograms: passes over the row in shared memory and
 * barriers of a block of 1024. Instructions of an element and pass, and clocks of a barrier, are guesses.
 */
const kSelection = { passes: 5, barriers: 22, instructions: 12, barrierClocks: 40 }
/** Instructions of an element of K, its seven candidates together: search_ranges_kernel on sm_90a, by cuobjdump. */
const kSearchInstructions = 81

/** Tiles that the busiest multiprocessor has, 5% of the rows being the last ones and 5% at random. */
function busiestTiles(length, gpu) {
  const { nHeads, nKvHeads } = kLlama3
  const tiles = (0.05 * length * nHeads) / nKvHeads / kProbeTile.rows // of each half of the probes
  const blocks = Math.ceil(length / kProbeTile.keys) * nKvHeads
  const sums = new Array(gpu.multiprocessors).fill(0)
  for (let i = 0; i < blocks; i++) {
    // Round after round of blocks, each the other way (work_of_block in probe_attention.h).
    const round = Math.floor(i / gpu.multiprocessors)
    const place = i % gpu.multiprocessors
    const key = Math.floor(i / nKvHeads) * kProbeTile.keys
    sums[round % 2 === 0 ? place : gpu.multiprocessors - 1 - place] +=
      tiles * (1 + Math.max(0, 1 - key / (0.95 * length)))
  }
  return Math.max(...sums)
}

/**
 * The kernels that compress one layer of a prompt, in microseconds, in order. A launch follows the one
 * in front by `kGapUs`, all of them beginning early; then it waits for memory, so many times one behind
 * the other as its source has it, and takes as long as its bytes at the rate of reading, or its units.
 */
export function compressionKernels(length, policy, gpu = kH200) {
  const { nHeads, nKvHeads, headDim } = kLlama3
  const reading = (bytes) => bytes / gpu.readGBs / 1e3
  const clocks = (n) => n / (1000 * gpu.clockGHz)
  const kernel = (name, launches, waits, work) => {
    return { name, launches, us: launches * (kGapUs + waits * kWaitUs) + work }
  }
  // A tile by the units of a multiprocessor, between all at once and one after the other, as flash() has it.
  const { rows, keys } = kProbeTile
  const units = {
    tensor: (2 * rows * keys * headDim) / 4096,
    exponentials: (rows * keys) / 16,
    scaling: (2 * rows * keys) / 128,
    shared: (3 * 2 * rows * headDim) / 128, // written once, read by two warpgroups
  }
  const all = Object.values(units)
  const sum = all.reduce((total, value) => total + value, 0)
  const perTile = 2 / (1 / Math.max(...all) + 1 / sum)
  const { passes, barriers, instructions, barrierClocks } = kSelection
  const selection = (passes * instructions * length) / 32 / 4 + barriers * barrierClocks
  const kvBytes = 2 * 2 * length * nKvHeads * headDim
  const packed = cacheBytes(policy, length, kLlama3) - cacheBytes(policy, 0, kLlama3)
  const searches = policy === 'zipcache-plus'
  const elements = length * nKvHeads * headDim
  const slots = (elements * kSearchInstructions) / 32 / (4 * gpu.multiprocessors)
  return [
    kernel(
      'store_probes',
      Math.ceil(length / kSliceRows),
      4,
      reading(0.1 * length * 2 * 2 * nHeads * headDim),
    ),
    kernel('list_probes', 1, 3, 0),
    kernel('probe_attention_hopper', 1, 3, clocks(busiestTiles(length, gpu) * perTile)),
    kernel('select_salient', 1, 2, clocks(selection)),
    kernel('segment_ranges', 1, 9, reading(kvBytes)),
    ...(searches ? [kernel('search_ranges', 1, 8, clocks(slots / kSearchIssue))] : []),
    kernel('pack_segment', 1, 6, reading(kvBytes + packed)),
  ]
}

/** Of the instructions that a multiprocessor could begin, the share that it does where arithmetic bounds: a guess. */
const kSearchIssue = 0.7

/** One layer of a prompt in microseconds: attention, products, and what compression adds. */
export function prompt(length, policy, gpu = kH200) {
  const { nHeads, headDim } = kLlama3
  const { least, most } = flash('wgmma', gpu)
  const attentionUs = (2 * length * length * headDim * nHeads) / ((least + most) / 2) / 1e6
  const products = (2 * length * kLayerWeights) / (kProductEfficiency * gpu.denseTflops) / 1e6
  const kernels = compressionKernels(length, policy, gpu)
  const launches = kernels.reduce((total, kernel) => total + kernel.launches, 0)
  const added = kernels.reduce((total, kernel) => total + kernel.us, 0)
  return { attention: attentionUs, products, kernels, launches, added }
}

function promptTable() {
  const rows = []
  for (const length of [4096, 8192, 16384, 32768]) {
    for (const policy of ['zipcache-60', 'zipcache-plus']) {
      const one = prompt(length, policy)
      rows.push([
        String(length),
        policy,
        ...[one.attention, one.products].map(number),
        String(one.launches),
        number(one.added),
        `${((100 * one.added) / one.attention).toFixed(0)}%`,
        `${((100 * one.added) / (one.attention + one.products)).toFixed(1)}%`,
      ])
    }
  }
  const columns = [
    right('tokens'),
    left('cache'),
    right('attention, us'),
    right('products'),
    right('launches'),
    right('added'),
    right('to attention'),
    right('to the layer'),
  ]
  return formatMarkdownTable({ columns, rows })
}

function promptKernelTable() {
  const lengths = [4096, 8192, 32768]
  const all = lengths.map((length) => compressionKernels(length, 'zipcache-plus'))
  const rows = all[0].map(({ name, launches }, i) => [
    `\`${name}\``,
    String(launches),
    ...all.map((kernels) => number(kernels[i].us)),
  ])
  const columns = [
    left('kernel'),
    right('launches at 4096'),
    ...lengths.map((length) => right(`${length}, us`)),
  ]
  return formatMarkdownTable({ columns, rows })
}

/** What follows for the bars. */
function promptBars() {
  const share = (policy) => (length) => {
    const { added, attention: us } = prompt(length, policy)
    return `${((100 * added) / us).toFixed(0)}% at ${length}`
  }
  const four = prompt(4096, 'zipcache-60')
  const slower = (2 * 4096 * 4096 * kLlama3.headDim * kLlama3.nHeads) / 520e6
  return `- To attention: zipcache-60 ${[4096, 8192].map(share('zipcache-60')).join(', ')}; zipcache-plus ${[4096, 8192, 16384].map(share('zipcache-plus')).join(', ')} (asked: 15%).
- The share is the larger the faster attention is: at the 520 TFLOP/s that are asked of it, zipcache-60 is ${((100 * four.added) / slower).toFixed(0)}% at 4096.
- zipcache-60 at 4096: ${number(four.launches * kGapUs)} of the ${number(four.added)} us are launches that follow one another; nothing overlaps probes, selection and packing, each of which needs all of the one in front.`
}

/**
 * A window of 100 tokens, all layers at once: launches counted in the source, what one took when it was of one layer
 * (cuda.md: 48 us of seven), and how often K and V go through memory: tail read, written as rows, read for scores, ranges and codes.
 */
const kClosing = { tokens: 100, launches: 7, us: 48 / 7, passes: 4.5 }

/** Milliseconds that closing one window adds to a step. */
function closingMs() {
  const bytes = kClosing.tokens * kLlamaLayers * kLlama3.nKvHeads * kLlama3.headDim * 2 * 2
  const memory = (kClosing.passes * bytes) / kH200.readGBs / 1e6
  return (kClosing.launches * kClosing.us) / 1e3 + memory
}

function memoryTable() {
  const rows = [1024, 2048, 4096].map((context) => {
    const GB = (policy) => (kLlamaLayers * 8 * cacheBytes(policy, context, kLlama3)) / 1e9
    return [String(context), ...['fp16', 'zipcache-60', 'zipcache-plus'].map((p) => number(GB(p)))]
  })
  const columns = [
    right('context'),
    right('fp16, GB'),
    right('zipcache-60'),
    right('zipcache-plus'),
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
  const { item, tokens } = kFirstRun['zipcache-60']
  const peer = { large: 245.7, small: 38.4 } // cuda-attention.md
  const closing = closingMs()
  const times = (us, { low, high }) => `${(us / high).toFixed(1)} to ${(us / low).toFixed(1)}`
  return `# What an H200 should measure

Written by \`node bench/cuda/model.mjs\`, from bytes, occupancy and constants. Figures under "measured then" are those of
cuda-attention.md, of a kernel that is no more; everything else here was predicted before the second run, and [cuda.md](cuda.md) says what that found.
\`npm run bench:cuda\` prints the model's figures beside each that it measures on such a GPU.

## mixedAttention

LLaMA3-8B's heads, a tail of ${kTail} tokens, one layer. ${kResident} blocks are resident on each of ${kH200.multiprocessors} multiprocessors; each takes one
piece of the line of all splits (of a KV head of a sequence). The floor is bytes at ${kH200.readGBs} GB/s.

In the first run an item, one split, cost ${item} us to begin and end and ${tokens} us for 1,000 tokens (zipcache-60; the other caches have constants of
their own): "first run, model". Of the beginning and end, ${kWaits.codes} waits for memory stood one behind the other, with 16 bits ${kWaits.fp16}, so that a wait is
${kWaitUs.toFixed(2)} us and everything else ${kBeginUs.toFixed(1)} us. The kernel was rewritten for that: a warp of its own reads tables and brings pages, channel
parameters among them, ahead of six others, and on into the next split. What is left is ${kWaits.today} waits a call.

Predicted are two bounds. The lower: bytes at the rate of reading, or instructions at four a clock, whichever is longer, and ${kLeastUs} us
beside, as good kernels of others take. The upper: a block streams no faster than in the first run, where a warp waited for the page table once a unit; the
beginning of its first item and the end of its last are waited for, ${(kBeginUs + kWaits.today * kWaitUs).toFixed(1)} us.

${attentionTable()}

One sequence in 16 bits is the case that the first model misses: alone, a block streams them faster than beside others that wait for the same memory.

What follows for the bars:

- Batch 8 at 32k: ${times(peer.large, large)} times PyTorch's fastest (${peer.large} us then; asked: 3.5), ${((100 * large.floor) / large.high).toFixed(0)} to ${((100 * large.floor) / large.low).toFixed(0)}% of reading (asked: 85).
- Batch 8 at 4k: ${times(peer.small, small)} times PyTorch's fastest (${peer.small} us then).
- Instructions are no bound: at batch 8 and 32k they would take ${number(large.issue)} us, the bytes ${number(large.floor)}.

## flashAttention

A tile of 128 rows of q by 64 keys at head_dim 128: clocks of each unit of a multiprocessor at ${kH200.clockGHz} GHz. A real kernel lies
between the last two columns, the nearer to the right the more warps there are to fill waits: two blocks of four warps (255 registers)
for mma.sync, two consumer warpgroups for wgmma. Power limits are not in it; cuDNN reaches 635 TFLOP/s on the H200 of cuda-attention.md. The bars are 300 and 520.

${flashTable()}

## What ZipCache adds to a prompt

One layer, one prompt (each of several is a pass of its own), wgmma: attention at the middle of its two rates, products at ${100 * kProductEfficiency}% of the dense rate that
was measured. The bars are 15% of attention and 5% of the whole from 4k on.

${promptTable()}

Launches are counted: ops of a layer by test/engine/device-ops.test.ts, kernels of each by test/emu/ops/launch_tests.cc. Beside them a layer is one small copy to the
device, for the places of its probes. Each begins ${kGapUs} us after the one in front, waits for memory (${kWaitUs.toFixed(2)} us, above) as often as its source has one wait behind the
other, and moves its bytes at the rate of reading. probeAttention is its busiest multiprocessor's tiles of ${kProbeTile.rows} rows by ${kProbeTile.keys} keys, between units that all work at
once and one after the other; searched ranges are their ${kSearchInstructions} instructions an element, ${100 * kSearchIssue}% of what could begin. zipcache-60 has no \`search_ranges\`. Guessed are the
${kGapUs} us, the ${100 * kSearchIssue}%, and of \`select_salient\` ${kSelection.instructions} instructions an element and pass and ${kSelection.barrierClocks} clocks a barrier.

${promptKernelTable()}

${promptBars()}

## Decode steps of LLaMA3-8B's shape

Floor: ${kWeightGB} GB of weights and the cache, once each, at ${kH200.readGBs} GB/s. Predicted: weights at ${100 * kWeightEfficiency}% of reading, ${kernelsALayer(1)} kernels a layer (${kernelsALayer(64)} from
${kFewRows + 1} rows on) ${kGapUs} us apart, ${kLlamaLayers} layers of mixedAttention between its bounds. The bar is 1.25 times the floor.

${stepTable()}

## A step that closes a window

Predicted after the second run, when layers came to be compressed together: ${kClosing.launches} launches a window (unpackSegment and probeAttention two each,
selectSalient one, packSegments two) for all ${kLlamaLayers} layers, where there had been ${kClosing.launches * kLlamaLayers}. Each took ${kClosing.us.toFixed(1)} us for one layer, which was latency; with the
bytes of all, K and V ${kClosing.passes} times, a window takes ${number(closing)} ms: ${(1 + closing / step('zipcache-60', 1, 4096).low).toFixed(2)}x the step at batch 1 and 4k, and ${(1 + (8 * closing) / step('zipcache-60', 8, 4096).low).toFixed(2)}x at batch 8 where all eight
close at once. Measured before: 1.6 ms a window. The bar is 1.5x.

## Peak memory

\`model.estimate\` counts every byte that is allocated (test/engine/estimate.test.ts holds it against the allocator, byte for byte, on the CPU); a
GPU's context and the code of the kernels, some hundreds of MB, come on top and are not in it. Caches of the paper's figure 6, batch 8, beside
16.06 GB of weights:

${memoryTable()}
`
}

if (process.argv[1] === fileURLToPath(import.meta.url)) process.stdout.write(page())
