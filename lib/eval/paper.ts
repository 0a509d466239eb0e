/**
 * The paper's comparisons, and ours beside them: which policies stand in which table, under which
 * words, and with which ratio there. Source: ZipCache (arXiv 2405.14256).
 */
import type { PolicySpec } from '../policy/index.js'
import { policyLabel } from '../policy/policy-label.js'
import { granularityRatio, mixedRatio } from './paper-ratio.js'

/** One line of a table. */
export interface PaperLine {
  /** The table's own columns: `channel`, `CST`. */
  readonly cells: readonly string[]
  readonly policy: PolicySpec
  /** The ratio as the paper has it; null where it has none. */
  readonly printedRatio: number | null
}

/** A table that is asked at one task. */
export interface PaperTable {
  readonly title: string
  /** Titles of `PaperLine.cells`. */
  readonly columns: readonly string[]
  readonly lines: readonly PaperLine[]
  /** The line that others are tested against, on the same questions. */
  readonly against: PolicySpec
}

const FP16: PaperLine = { cells: [], policy: 'fp16', printedRatio: 1 }
const fp16 = (...cells: string[]): PaperLine => ({ ...FP16, cells })

/** l of the tables on GSM8k. */
const kTableTokens = { tokens: 840 }
/** l of Table 1. */
const kGranularityTokens = { tokens: 4096 }

/** Names of `uniform`'s granularities, as Table 1 puts them. */
const kGranularities = {
  group: { cells: ['group', 'group'], ratio: 'group', suffix: '-group' },
  token: { cells: ['token', 'token'], ratio: 'token', suffix: '-token' },
  channel: { cells: ['channel', 'token'], ratio: 'channel-token', suffix: '-channel' },
  cst: { cells: ['channel', 'CST'], ratio: 'channel-cst', suffix: '' },
} as const

function granularityLines(bits: 2 | 3 | 4): PaperLine[] {
  return Object.values(kGranularities).map(({ cells, ratio, suffix }) => ({
    cells: [String(bits), ...cells],
    policy: `uniform${bits}${suffix}`,
    // The paper has 4 bits alone.
    printedRatio: bits === 4 ? granularityRatio(ratio, bits, kGranularityTokens) : null,
  }))
}

const kTable1: PaperTable = {
  title: 'Table 1: granularity, all tokens at 4 bits',
  columns: ['bits', 'K', 'V'],
  against: 'uniform4',
  lines: [fp16('16', '-', '-'), ...granularityLines(4)],
}

const kTable1Low: PaperTable = {
  title: 'Table 1 at 3 and at 2 bits (ours)',
  columns: ['bits', 'K', 'V'],
  against: 'uniform3',
  lines: [...granularityLines(3), ...granularityLines(2)],
}

const probes = (strategy: 'all' | 'random' | 'special' | 'recent'): PolicySpec => ({
  name: 'zipcache',
  saliencyRatio: 0.4,
  probes: strategy,
})
const kTable2Default: PolicySpec = { name: 'zipcache', saliencyRatio: 0.4 }

const kTable2: PaperTable = {
  title: 'Table 2: probes, 40% of the tokens at 4 bits, the others at 2, 10% probes',
  columns: ['probes'],
  against: kTable2Default,
  lines: [
    { cells: ['all tokens'], policy: probes('all'), printedRatio: null },
    { cells: ['random'], policy: probes('random'), printedRatio: null },
    { cells: ['special'], policy: probes('special'), printedRatio: null },
    { cells: ['recent'], policy: probes('recent'), printedRatio: null },
    { cells: ['random + recent'], policy: kTable2Default, printedRatio: null },
  ],
}

const kBudgets: PaperTable = {
  title: 'Probe budgets (ours): 60% of the tokens at 4 bits, half random and half recent',
  columns: ['budget'],
  against: 'zipcache',
  lines: [
    { cells: ['all rows'], policy: { name: 'zipcache', probes: 'all' }, printedRatio: null },
    { cells: ['10%'], policy: 'zipcache', printedRatio: null },
    ...([0.05, 0.02] as const).map((budget) => ({
      cells: [`${100 * budget}%`],
      policy: {
        name: 'zipcache',
        probes: { random: budget / 2, recent: budget / 2 },
      } as PolicySpec,
      printedRatio: null,
    })),
  ],
}

const mixed = (r: number) => mixedRatio({ r }, kTableTokens)

const kTable3: PaperTable = {
  title: 'Table 3: methods at their published settings',
  columns: ['method', 'H/L bits', 'saliency'],
  against: 'zipcache',
  lines: [
    fp16('FP16', '16/16', '100%'),
    { cells: ['H2O', '16/0', '40%'], policy: 'h2o', printedRatio: 2.5 },
    { cells: ['GEAR', '4/4', '100%'], policy: 'gear4', printedRatio: 3 },
    { cells: ['KIVI', '16/2', 'last 128'], policy: 'kivi2', printedRatio: 3.46 },
    { cells: ["MiKV, its own paper's", '16/2', '20%'], policy: 'mikv-paper', printedRatio: null },
    { cells: ['MiKV', '4/2', '60%'], policy: 'mikv', printedRatio: mixed(0.6) },
    { cells: ['ZipCache', '4/2', '60%'], policy: 'zipcache', printedRatio: mixed(0.6) },
    {
      cells: ["ZipCache, authors' code", '4/2', '60%'],
      policy: 'zipcache-official',
      printedRatio: mixed(0.6),
    },
    {
      cells: ['zipcache-plus (ours)', 'K 4/3, V 4/2', '10%'],
      policy: 'zipcache-plus',
      printedRatio: null,
    },
    { cells: ['SnapKV', '16/0', '2,048 tokens'], policy: 'snapkv', printedRatio: null },
    { cells: ['rotated, as in llama.cpp', '4/4', '100%'], policy: 'rotated4', printedRatio: null },
    { cells: ['uniform', '4/4', '100%'], policy: 'uniform4', printedRatio: null },
  ],
}

const kTableA: PaperTable = {
  title: 'Table A: saliency metrics, 60% of the tokens at 4 bits, the others at 2',
  columns: ['metric'],
  against: 'zipcache',
  lines: [
    fp16('FP16'),
    {
      cells: ['locality'],
      policy: { name: 'zipcache', metric: 'locality' },
      printedRatio: mixed(0.6),
    },
    {
      cells: ['accumulated'],
      policy: { name: 'zipcache', metric: 'accumulated' },
      printedRatio: mixed(0.6),
    },
    { cells: ['normalized'], policy: 'zipcache', printedRatio: mixed(0.6) },
    { cells: ['accumulated, all rows (MiKV)'], policy: 'mikv', printedRatio: mixed(0.6) },
    {
      cells: ["authors' normaliser"],
      policy: { name: 'zipcache', metric: 'causal' },
      printedRatio: mixed(0.6),
    },
  ],
}

/** The tables of `zipcache eval paper`, asked at one task. */
export const kPaperTables: readonly PaperTable[] = [
  kTable1,
  kTable1Low,
  kTable2,
  kBudgets,
  kTable3,
  kTableA,
]

/** Lines of Figure 5, by the number of record lines. */
export const kFigure5: readonly PolicySpec[] = [
  'fp16',
  'zipcache',
  'kivi2',
  'mikv',
  'h2o',
  'zipcache-plus',
]

/** Of Figure 6, on its memory side; MiKV is what the paper compares with. */
export const kFigure6: readonly PolicySpec[] = ['fp16', 'mikv', 'zipcache', 'zipcache-plus']

/** Every method at its published setting, and a sweep of its main knob. */
export const kFront: readonly PolicySpec[] = [
  'fp16',
  ...['uniform2', 'uniform3', 'uniform4', 'uniform8'],
  ...['zipcache', ...saliencyRatios('zipcache', [0.2, 0.4, 0.8, 'auto'])],
  ...['zipcache-plus', ...saliencyRatios('zipcache-plus', [0.2, 0.4])],
  ...['zipcache-official', ...saliencyRatios('zipcache-official', [0.8])],
  ...['mikv', ...saliencyRatios('mikv', [0.4, 0.8])],
  ...['mikv-paper', { name: 'mikv', preset: 'paper', lowBits: 4 }],
  ...['h2o', { name: 'h2o', heavy: 0.1, recent: 0.1 }, { name: 'h2o', heavy: 0.3, recent: 0.3 }],
  ...['kivi2', 'kivi4'],
  ...['gear2', 'gear4'],
  ...['snapkv', { name: 'snapkv', capacity: 512 }, { name: 'snapkv', capacity: 1024 }],
  ...['rotated2', 'rotated3', 'rotated4'],
] as PolicySpec[]

function saliencyRatios(name: string, ratios: readonly (number | 'auto')[]): PolicySpec[] {
  return ratios.map((saliencyRatio) => ({ name, saliencyRatio }) as PolicySpec)
}

/** Policies, each once. */
export function distinctPolicies(policies: readonly PolicySpec[]): PolicySpec[] {
  return [...new Map(policies.map((policy) => [policyLabel(policy), policy])).values()]
}

/** Whose choice of tokens is shown by position. */
export const kSaliency: readonly PolicySpec[] = [
  'zipcache',
  { name: 'zipcache', metric: 'accumulated' },
  'mikv',
  'zipcache-official',
]
