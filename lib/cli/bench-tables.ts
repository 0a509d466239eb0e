import type { BenchReport } from '../bench/report.js'
import type { Achieved } from '../bench/roofs.js'
import {
  formatBytes,
  formatMs,
  formatPairs,
  formatRatio,
  formatTable,
  left,
  right,
  type TitledTable,
} from './table.js'

/** A report for people: the machine, its roofs, and a table for each part that was asked for. */
export function formatBenchReport(report: BenchReport): string {
  const tables = benchTables(report).map(({ columns, rows }) => formatTable(columns, rows))
  return [formatPairs(machinePairs(report)), ...tables].join('\n')
}

/** What was measured on, as pairs of a name and a text. */
export function machinePairs({ machine, settings, seconds }: BenchReport): [string, string][] {
  const { cpu, cores, cpuFlags, lastLevelCacheBytes, memoryBytes, os, node } = machine
  const cache = lastLevelCacheBytes === null ? '' : `, ${formatBytes(lastLevelCacheBytes)} cache`
  const { device, isa, threads, dtype, weights, generated, filter } = settings
  const pairs: [string, string | null][] = [
    ['machine', `${cpu}, ${cores} cores${cache}, ${formatBytes(memoryBytes)}; ${os}`],
    ['flags', cpuFlags?.join(' ') ?? null],
    ['device', `${device} (${isa}), ${threads} threads, models in ${dtype}, weights ${weights}`],
    ['zipcache', `${machine.version}${machine.commit ? ` (${machine.commit})` : ''}, Node ${node}`],
    ['contexts', generated ? 'decoded themselves, but for 100 tokens' : null],
    ['filter', filter],
    ['took', `${seconds.toFixed(0)} s`],
  ]
  return pairs.filter((pair): pair is [string, string] => pair[1] !== null)
}

/** The tables that have rows. */
export function benchTables(report: BenchReport): TitledTable[] {
  const tables = [roofTable(report), opTable(report), prefillTable(report), decodeTable(report)]
  return tables.filter(({ rows }) => rows.length > 0)
}

function roofTable({ roofs }: BenchReport): TitledTable {
  return {
    title: 'Roofs',
    columns: [
      ...[left('roof'), right('threads'), right('rate'), left('')],
      ...[right('median ms'), right('min'), right('p10'), right('p90')],
    ],
    rows: roofs.map(({ name, threads, rate, ms }) => [
      ...[name, String(threads), rate.toFixed(1), name === 'read' ? 'GB/s' : 'GFLOP/s'],
      ...[ms.median, ms.min, ms.p10, ms.p90].map(formatMs),
    ]),
  }
}

/** The rate that its nearer roof bounds, and how much of that roof: at the median, and at p10. */
const achievedColumns = [right('rate'), left(''), right('of roof'), right('p10')]

function achievedCells(row: Achieved): string[] {
  const [rate, unit] =
    row.bound === 'memory' ? [row.gigabytesPerSecond, 'GB/s'] : [row.gigaflopsPerSecond, 'GFLOP/s']
  const percent = (share: number) => `${(100 * share).toFixed(0)}%`
  return [rate.toFixed(1), unit, percent(row.share), percent(row.bestShare)]
}

function opTable({ ops }: BenchReport): TitledTable {
  return {
    title: 'Ops',
    columns: [
      ...[left('op'), left('shape'), left('dtype')],
      ...[right('median us'), right('min'), right('p10'), right('p90'), ...achievedColumns],
    ],
    rows: ops.map(({ op, shape, dtype, ms, ...row }) => [
      ...[op, shape, dtype],
      ...[ms.median, ms.min, ms.p10, ms.p90].map((value) => formatMs(1000 * value)),
      ...achievedCells(row),
    ]),
  }
}

function prefillTable({ prefill }: BenchReport): TitledTable {
  return {
    title: 'Prefill',
    columns: [
      ...[left('prefill'), right('context'), left('policy')],
      ...[right('median ms'), right('min'), right('max'), right('tokens/s'), ...achievedColumns],
    ],
    rows: prefill.map(({ model, context, policy, ms, ...row }) => [
      ...[model, String(context), policy],
      ...[ms.median, ms.min, ms.max].map(formatMs),
      ((1000 * context) / ms.median).toFixed(0),
      ...achievedCells(row),
    ]),
  }
}

function decodeTable({ decode }: BenchReport): TitledTable {
  return {
    title: 'Decoding',
    columns: [
      ...[left('decode'), right('context'), left('policy')],
      // No minimum: behind a token that was read late the next one is ready at once.
      ...[right('p50 ms'), right('p10'), right('p90'), right('p99')],
      ...[right('closing ms'), right('x others'), right('cache'), right('ratio')],
      ...achievedColumns,
    ],
    rows: decode.map(({ model, context, policy, ms, closing, cacheBytes, cacheRatio, ...row }) => [
      ...[model, String(context), policy],
      ...[ms.median, ms.p10, ms.p90, ms.p99].map(formatMs),
      closing ? formatMs(closing.medianMs) : '-',
      closing ? formatRatio(closing.medianMs / closing.otherMs) : '-',
      ...[formatBytes(cacheBytes), formatRatio(cacheRatio), ...achievedCells(row)],
    ]),
  }
}
