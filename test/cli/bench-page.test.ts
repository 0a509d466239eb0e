import type { BenchReport, DecodeRow } from '../../lib/bench/report'
import { formatBenchPage } from '../../lib/cli/bench-page'
import { formatBenchReport } from '../../lib/cli/bench-tables'

const ms = { samples: 9, min: 1, p10: 1.25, median: 2, p90: 3, p99: 4, max: 5 }
const achieved = {
  gigabytesPerSecond: 7.25,
  gigaflopsPerSecond: 14.5,
  bound: 'memory',
  share: 0.625,
  bestShare: 0.75,
} as const
const work = { ms, bytes: 1000, flops: 2000, ...achieved }
const hostile = '<b onload="x">&\'</b>'

function decodeRow(context: number, policy: string): DecodeRow {
  return {
    ...{ model: hostile, context, policy, dtype: 'f32', ...work },
    histogram: { edges: [1, 2, 4], counts: [3, 1] },
    closing: policy === 'fp16' ? null : { steps: 2, medianMs: 6, otherMs: 2 },
    cacheBytes: 4096,
    cacheRatio: 4.5,
  }
}

const report: BenchReport = {
  schema: 'zipcache-bench-1',
  machine: {
    ...{ cpu: hostile, cpuFlags: ['avx2', 'fma'], cores: 2, lastLevelCacheBytes: 1 << 25 },
    ...{ memoryBytes: 2 ** 34, os: 'linux 6 x64', node: 'v20', version: '1.2.3', commit: 'abc' },
  },
  settings: {
    ...{
      device: 'cpu',
      isa: 'avx2',
      threads: 2,
      dtype: 'f32',
      weights: 'stored',
      generated: false,
      full: false,
      seed: 0,
    },
    filter: hostile,
  },
  roofs: [
    { name: 'read', threads: 2, rate: 11.6, ms },
    { name: 'multiply-add', threads: 2, rate: 123, ms },
  ],
  ops: [
    { op: 'linear', shape: 'm=1', dtype: 'f16', ...work },
    { op: 'linear', shape: 'm=512', dtype: 'f16', ...work, bound: 'compute', share: 3 },
  ],
  prefill: [{ model: hostile, context: 500, policy: 'fp16', dtype: 'f32', ...work }],
  decode: [1024, 4096].flatMap((context) =>
    ['fp16', 'zipcache'].map((policy) => decodeRow(context, policy)),
  ),
  seconds: 120.4,
}

describe('the page', () => {
  const page = formatBenchPage(report)

  test('needs no host, no script, no other file', () => {
    expect(page).not.toMatch(/https?:|\/\/|<script|<link|<img|<iframe|src=|href=|url\(|@import/i)
    expect(page).toContain('prefers-color-scheme: dark')
  })

  test('escapes what it did not write itself', () => {
    expect(page).not.toContain('<b onload')
    expect(page).toContain('&lt;b onload=&quot;x&quot;&gt;&amp;&#39;&lt;/b&gt;')
  })

  test('every element that opens is closed', () => {
    const open: string[] = []
    for (const [, end, name, own] of page.matchAll(/<(\/?)([a-z][a-z0-9]*)\b[^>]*?(\/?)>/gi)) {
      if (own || name === 'meta') continue
      if (end) expect(open.pop()).toBe(name)
      else open.push(name as string)
    }
    expect(open).toEqual([])
  })

  test('has a plot of the ops, and two of each model', () => {
    expect(page.match(/<svg /g)).toHaveLength(3)
    expect(page.match(/<polyline /g)).toHaveLength(2)
    expect(page.match(/<path /g)).toHaveLength(2)
    expect(page).not.toMatch(/NaN|undefined|Infinity|null/)
  })

  test('a bar beyond its plot is cut off and says its value', () => {
    const widths = [...page.matchAll(/<rect [^>]*width="([\d.]+)" height="13"/g)].map(([, w]) => w)
    // 345 to 640: 295 are 125%.
    expect(widths).toEqual([String((295 / 1.25) * 0.625), '295'])
    expect(page).toContain('>300%</text>')
  })

  test('says in tables what the plots show', () => {
    const cells = [...page.matchAll(/<td[^>]*>([^<]*)<\/td>/g)].map(([, text]) => text)
    for (const text of ['11.6', '63%', '75%', '7.3', '250000', '3.00x', '4.50x', '4.00 KiB']) {
      expect(cells).toContain(text)
    }
  })

  test('one context and one step time still make plots', () => {
    const histogram = { edges: [2, 3], counts: [1] }
    const decode = [{ ...decodeRow(64, 'fp16'), histogram }]
    const small = formatBenchPage({ ...report, ops: [], prefill: [], decode })
    expect(small.match(/<svg /g)).toHaveLength(2)
    expect(small).not.toMatch(/NaN|undefined|Infinity/)
  })
})

test('the tables of a terminal', () => {
  const lines = formatBenchReport(report).split('\n')
  expect(lines.slice(0, 6).map((line) => line.split(' ')[0])).toEqual([
    ...['machine', 'flags', 'device', 'zipcache', 'filter', 'took'],
  ])
  const row = (start: string) => lines.find((line) => line.startsWith(start))?.split(/ {2,}/)
  expect(row('read')).toEqual(['read', '2', '11.6', 'GB/s', '2.00', '1.00', '1.25', '3.00'])
  expect(row('linear  m=512')).toEqual([
    ...['linear', 'm=512', 'f16', '2000', '1000', '1250', '3000', '14.5', 'GFLOP/s', '300%', '75%'],
  ])
  expect(row(`${hostile}     1024  zipcache`)?.slice(2)).toEqual([
    ...['zipcache', '2.00', '1.25', '3.00', '4.00', '6.00', '3.00x', '4.00 KiB', '4.50x'],
    ...['7.3', 'GB/s', '63%', '75%'],
  ])
})

test('only the tables that have rows', () => {
  const text = formatBenchReport({ ...report, prefill: [], decode: [] })
  expect(text).not.toMatch(/prefill|decode|NaN|undefined/)
})
