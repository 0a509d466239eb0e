// What whole steps came to, as tables and plots. Needs dist/.
import { createRequire } from 'node:module'
import { step } from '../model.mjs'

const require = createRequire(import.meta.url)
const { left, right } = require('../../../dist/cli/table.js')
const { section } = require('../../../dist/cli/page.js')
const { linePlot } = require('../../../dist/cli/plots.js')

/** Caches by the names that the model of the GPU gives them. */
const kModelled = {
  fp16: 'fp16',
  uniform4: 'uniform4',
  uniform2: 'uniform2',
  zipcache: 'zipcache-60',
  'zipcache-plus': 'zipcache-plus',
}

/** @param {object} result of bench/cuda/main.mjs */
export function stepTables({ steps = [], machine }) {
  const model = steps.find((line) => line.model !== undefined)
  if (!model) return []
  const roof = steps.findLast((line) => line.roof === 'read')?.['GB/s']
  const rows = steps.filter(({ prompts }) => prompts !== undefined).sort(byShape)
  return [
    decodeTable(rows, { model, roof, gpu: machine.gpu?.name }),
    windowTable(rows, model),
    promptTable(rows, model),
    figureTable(rows, model),
    leftOutTable(steps, model),
  ]
}

const byShape = (a, b) => a.context - b.context || a.batch - b.batch

const kShape = [right('batch'), right('context'), left('cache')]
const shapeOf = ({ batch, context, policy }) => [String(batch), String(context), policy]
const fixed = (value) => value.toFixed(value < 100 ? 2 : 0)
const spread = ({ median, p10, p90 }) => `${fixed(median)} (${fixed(p10)} to ${fixed(p90)})`
const gigabytes = (bytes) => (bytes / 1e9).toPrecision(3)

function decodeTable(rows, { model, roof, gpu }) {
  const columns = [
    ...kShape,
    right('ms a step (p10 to p90)'),
    right('tokens/s'),
    right('caches, GB'),
    right('times smaller'),
    right('floor, ms'),
    right('of the floor'),
    right('model, ms'),
  ]
  const read =
    roof === undefined ? '' : `, floor at ${roof.toFixed(0)} GB/s by readStream in the same run`
  return {
    title: `Decode steps of ${model.model}'s shape, random bf16 weights${read}`,
    columns,
    rows: rows.map((row) => {
      const { ms } = row.steps
      const floor = roof && (model.readBytes + row.readBytes) / roof / 1e6
      return [
        ...shapeOf(row),
        spread(ms),
        ((1000 * row.batch) / ms.median).toFixed(0),
        gigabytes(row.cacheBytes),
        row.cacheRatio.toFixed(2),
        floor ? fixed(floor) : '',
        floor ? `${(ms.median / floor).toFixed(2)}x` : '',
        predicted(gpu, model, row),
      ]
    }),
  }
}

/** The bounds of model.mjs, which knows one GPU and one shape. */
function predicted(gpu, model, { policy, batch, context }) {
  if (!gpu?.includes('H200') || model.model !== 'LLaMA3-8B' || !kModelled[policy]) return ''
  const { low, high } = step(kModelled[policy], batch, context)
  return `${fixed(low)} to ${fixed(high)}`
}

function windowTable(rows, { model }) {
  const columns = [
    ...kShape,
    right('ms of other steps'),
    right('closing one window'),
    right('ratio'),
    right('closing all at once'),
    right('ratio'),
  ]
  const against = (closing, other) =>
    closing ? [fixed(closing.median), `${(closing.median / other).toFixed(2)}x`] : ['', '']
  return {
    title: `Steps that close windows, ${model}'s shape`,
    columns,
    rows: rows
      .filter(({ steps }) => steps.closingTogether !== null)
      .map(({ steps, ...row }) => {
        // Of one sequence, all at once is one.
        const one = row.batch === 1 ? steps.closingTogether : steps.closingApart
        const all = row.batch === 1 ? null : steps.closingTogether
        const other = steps.otherApart ?? steps.other
        return [...shapeOf(row), fixed(other), ...against(one, other), ...against(all, other)]
      }),
  }
}

/** The driver's count where there is a GPU. */
const peakOf = ({ memory }) => memory.driver || memory.counted

function promptTable(rows, { model }) {
  const columns = [
    ...kShape,
    right('ms a prompt (p10 to p90)'),
    right('ms the batch'),
    right('tokens/s'),
    right('peak memory, GB'),
    right('of it counted'),
    right('model.estimate'),
    right('peak / estimate'),
  ]
  return {
    title: `Prompts of ${model}'s shape, one after another, and memory`,
    columns,
    rows: rows.map((row) => [
      ...shapeOf(row),
      spread(row.prompts),
      row.promptsMs.toFixed(0),
      ((1000 * row.batch * row.context) / row.promptsMs).toFixed(0),
      gigabytes(peakOf(row)),
      gigabytes(row.memory.counted),
      gigabytes(row.memory.estimate),
      (peakOf(row) / row.memory.estimate).toFixed(3),
    ]),
  }
}

function figureTable(rows, { model }) {
  const own = rows.filter(({ figure6 }) => figure6)
  const columns = [
    right('context'),
    left('cache'),
    right('prefill, ms'),
    right('decode, ms'),
    right('peak memory, GB'),
  ]
  return {
    title: `The paper's figure 6: ${model}'s shape, batch ${own[0]?.batch}; mikv scores tokens by all rows of a prompt`,
    columns,
    rows: own.map((row) => [
      String(row.context),
      row.policy,
      row.promptsMs.toFixed(0),
      fixed(row.steps.ms.median),
      gigabytes(peakOf(row)),
    ]),
  }
}

function leftOutTable(steps, { model }) {
  return {
    title: `Left out of ${model}'s shape`,
    columns: [...kShape, left('why')],
    rows: steps
      .filter(({ leftOut }) => leftOut !== undefined)
      .map((row) => [...shapeOf(row), row.leftOut]),
  }
}

/** @param {object} result of bench/cuda/main.mjs */
export function stepPlots({ steps = [] }) {
  const rows = steps.filter(({ prompts }) => prompts !== undefined).sort(byShape)
  const batches = [...new Set(rows.map(({ batch }) => batch))].sort((a, b) => a - b)
  const decode = batches.map((batch) =>
    plotOf(
      `Batch ${batch}: decode steps`,
      rows.filter((row) => row.batch === batch),
      'ms',
      (row) => row.steps.ms.median,
    ),
  )
  const own = rows.filter(({ figure6 }) => figure6)
  if (own.length === 0) return decode
  const figure = `Figure 6, batch ${own[0].batch}`
  return [
    ...decode,
    plotOf(`${figure}: prefill`, own, 'ms', ({ promptsMs }) => promptsMs),
    plotOf(`${figure}: decode step`, own, 'ms', (row) => row.steps.ms.median),
    plotOf(`${figure}: peak memory`, own, 'GB', (row) => peakOf(row) / 1e9),
  ]
}

/** A figure of rows over their context, a line for each cache. */
function plotOf(title, rows, unit, measureOf) {
  const lines = [...new Set(rows.map(({ policy }) => policy))].map((policy) => ({
    label: policy,
    points: rows.filter((row) => row.policy === policy).map((row) => [row.context, measureOf(row)]),
  }))
  return section(title, linePlot(title, lines, { x: 'tokens of context', y: unit }))
}
