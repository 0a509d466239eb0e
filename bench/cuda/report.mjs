// What bench/cuda measured, as Markdown and as a page with plots. A peer is PyTorch's fastest backend
// for the same batch and context. Needs dist/.
import { createRequire } from 'node:module'
import { predictedMicroseconds } from './model.mjs'
import { stepPlots, stepTables } from './steps/report.mjs'

const require = createRequire(import.meta.url)
const { formatMarkdownTable, left, right } = require('../../dist/cli/table.js')
const { formatPage, section, tableSection } = require('../../dist/cli/page.js')
const { linePlot } = require('../../dist/cli/plots.js')

const kTitle = 'zipcache on a GPU'

/** @param {object} result of main.mjs */
export function toMarkdown(result) {
  const facts = factsOf(result).map(([name, value]) => `- ${name}: ${value}`)
  const tables = tablesOf(result).map(
    (table) => `## ${table.title}\n\n${formatMarkdownTable(table)}`,
  )
  return `${[`# ${kTitle}`, facts.join('\n'), ...tables].join('\n\n')}`
}

/** @param {object} result of main.mjs */
export function toPage(result) {
  return formatPage(kTitle, factsOf(result), [
    ...attentionPlots(result),
    ...stepPlots(result),
    ...tablesOf(result).map(tableSection),
  ])
}

function factsOf({ machine, command, leftOut }) {
  const { gpu } = machine
  return [
    ['command', command],
    ['commit', machine.commit],
    ['GPU', gpu ? `${gpu.name}, driver ${gpu.driver_version}` : 'none: emulated'],
    ...(gpu
      ? [['greatest clocks', `${gpu['clocks.max.sm']}, memory ${gpu['clocks.max.mem']}`]]
      : []),
    ['processor', machine.cpu],
    ['Node', machine.node],
    ...Object.entries(leftOut).map(([part, reason]) => [`${part}, left out`, reason]),
  ]
}

function tablesOf(result) {
  return [
    roofTable(result),
    attentionTable(result),
    prefillTable(result),
    productTable(result),
    ...stepTables(result),
  ].filter((table) => table.rows.length > 0)
}

const roofsOf = ({ peers = [] }) => peers.filter(({ roof }) => roof !== undefined)

function roofTable(result) {
  const rows = roofsOf(result).map((row) => [
    row.roof,
    row['GB/s'] === undefined ? `${row['TFLOP/s']} TFLOP/s` : `${row['GB/s']} GB/s`,
  ])
  return {
    title: 'Roofs, by PyTorch in the same run',
    columns: [left('roof'), right('rate')],
    rows,
  }
}

/** Sequences of one length each: what the peers and the model are of. */
const isEven = ({ context, shortest = context }) => shortest === context

/** PyTorch's fastest decode attention for a shape, if it ran. */
function fastestPeer({ peers = [] }, shape) {
  const { batch, context } = shape
  if (!isEven(shape)) return null
  return peers
    .filter((row) => row.op === 'decode' && row.batch === batch && row.context === context)
    .filter(({ us }) => us !== undefined)
    .reduce((best, row) => (best === null || row.us < best.us ? row : best), null)
}

function attentionTable(result) {
  const read = roofsOf(result).find(({ roof }) => roof === 'read')?.['GB/s']
  const rows = (result.attention ?? []).map((row) => {
    const peer = fastestPeer(result, row)
    return [
      String(row.batch),
      isEven(row) ? String(row.context) : `${row.shortest} to ${row.context}`,
      row.heads,
      row.policy,
      `${row.us.toFixed(1)} (${row.min.toFixed(1)} to ${row.max.toFixed(1)})`,
      row.MB.toFixed(1),
      row['GB/s'].toFixed(0),
      read ? `${((100 * row['GB/s']) / read).toFixed(0)}%` : '',
      peer ? `${peer.us} (${peer.peer})` : '',
      peer ? (peer.us / row.us).toFixed(2) : '',
      predicted(result, row),
      row.error.toExponential(0),
    ]
  })
  const columns = [
    right('batch'),
    right('context'),
    left('heads/KV/dim'),
    left('cache'),
    right('us a layer (range)'),
    right('MB'),
    right('GB/s'),
    right('of reading'),
    left('fastest 16-bit peer, us'),
    right('ratio'),
    right('model, us'),
    right('error'),
  ]
  return { title: 'Decode attention', columns, rows }
}

/** The model's bounds, where it knows the GPU. */
function predicted(result, row) {
  const bounds = isEven(row) ? predictedMicroseconds(result.machine.gpu?.name, row) : null
  return bounds ? `${bounds.low.toFixed(1)} to ${bounds.high.toFixed(1)}` : ''
}

function prefillTable({ prefill = [], peers = [] }) {
  const own = prefill
    .filter(({ op }) => op === 'flash' || op === 'probes')
    .map((row) => [
      row.op === 'flash' ? `flashAttention, ${row.form}` : `probeAttention, ${row.n_probes} rows`,
      String(row.batch ?? 1),
      String(row.length),
      String(row.head_dim),
      row.causal === false ? 'no' : 'yes',
      (row.us / 1000).toFixed(3),
      row.tflops.toFixed(0),
    ])
  const other = peers
    .filter(({ op, ms }) => op === 'prefill' && ms !== undefined)
    .map((row) => [
      row.peer,
      String(row.batch),
      String(row.length),
      String(row.head_dim),
      'yes',
      String(row.ms),
      String(row['TFLOP/s']),
    ])
  const columns = [
    left('op'),
    right('batch'),
    right('length'),
    right('head_dim'),
    left('causal'),
    right('ms'),
    right('TFLOP/s'),
  ]
  return {
    title: 'Prefill attention, 32 query and 8 KV heads, bf16',
    columns,
    rows: [...own, ...other],
  }
}

function productTable({ products = [], peers = [] }) {
  const peerOf = ({ rows, n, k }) =>
    peers.find((row) => row.op === 'product' && row.rows === rows && row.n === n && row.k === k)
  const rows = products
    .filter(({ op }) => op === 'linear')
    .map((row) => [
      row.product,
      row.form,
      String(row.rows),
      `${row.n} x ${row.k}`,
      (row.us / 1000).toFixed(3),
      row.tflops.toFixed(0),
      String(peerOf(row)?.['TFLOP/s'] ?? ''),
      String(row.different),
    ])
  const columns = [
    left('product'),
    left('form'),
    right('rows'),
    right('weight'),
    right('ms'),
    right('TFLOP/s'),
    right("PyTorch's bf16 product, TFLOP/s"),
    right('elements that the forms disagree on'),
  ]
  return { title: 'Products of prompts, LLaMA3-8B, bf16 weights', columns, rows }
}

/** For each batch: microseconds of a layer over the context, all caches and the fastest peer. */
function attentionPlots(result) {
  const rows = (result.attention ?? []).filter(isEven)
  return [...new Set(rows.map(({ batch }) => batch))].map((batch) => {
    const own = rows.filter((row) => row.batch === batch && row.heads === rows[0].heads)
    const lineOf = (label, points) => ({ label, points: points.toSorted(([a], [b]) => a - b) })
    const caches = [...new Set(own.map(({ policy }) => policy))].map((policy) =>
      lineOf(
        policy,
        own.filter((row) => row.policy === policy).map(({ context, us }) => [context, us]),
      ),
    )
    const contexts = [...new Set(own.map(({ context }) => context))]
    const peers = contexts
      .map((context) => [context, fastestPeer(result, { batch, context })?.us])
      .filter(([, us]) => us !== undefined)
    const lines = peers.length > 0 ? [...caches, lineOf('PyTorch, 16 bits', peers)] : caches
    const title = `Batch ${batch}: decode attention of a layer`
    return section(title, linePlot(title, lines, { x: 'tokens of context', y: 'us' }))
  })
}
