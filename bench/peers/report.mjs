// The benchmark's result as Markdown: tables that are read on a terminal as well as in a page.
import { kDisturbed, kLongestPrefill } from './speed.mjs'

/**
 * @param {object} result of main.mjs
 * @param {string} command that made it
 * @returns {string}
 */
export function toMarkdown({ machine, settings, checks, speed, retrieval }, command) {
  const parts = [
    '# zipcache beside llama.cpp',
    machineText(machine),
    `\`\`\`sh\n${command}\n\`\`\``,
    `It took ${Math.round(settings.seconds / 60)} minutes.`,
  ]
  if (checks.length > 0) parts.push('## Both compute the same', checkText(), checkTable(checks))
  if (speed.length > 0) {
    parts.push('## Speed and memory', speedText(settings))
    for (const model of unique(speed.map((row) => row.model))) {
      const rows = speed.filter((row) => row.model === model)
      // Measured in turns, read one engine after the other.
      rows.sort((a, b) => a.engine.localeCompare(b.engine))
      parts.push(`### ${model}`, shapeText(settings.models[model]))
      for (const context of unique(rows.map((row) => row.context))) {
        parts.push(`${count(context)} tokens:`)
        parts.push(speedTable(rows.filter((row) => row.context === context)))
      }
    }
  }
  if (retrieval.length > 0) {
    parts.push('## Line retrieval', retrievalText(settings), retrievalTable(retrieval))
  }
  return `${parts.join('\n\n')}\n`
}

function machineText({ cpu, cores, flags, os, node, commit, zipcache, llama }) {
  return [
    `Machine: ${cpu}, ${cores} cores, ${flags.join(' ')}; ${os}; Node ${node}.`,
    `zipcache: commit ${commit}${zipcache ? `, ${zipcache}` : ''}.`,
    `llama.cpp: ${llama}.`,
  ].join('\n')
}

function checkText() {
  return (
    'Natural log-probabilities of all tokens at some positions, zipcache with its `full` cache against ' +
    'llama.cpp with F16 K and V and flash attention: the greatest difference, the bound beyond which ' +
    'the run stops, and the share of positions with the same most probable token.'
  )
}

function checkTable(checks) {
  return table(
    ['model', 'zipcache', 'llama.cpp', 'positions', 'difference', 'bound', 'same argmax'],
    checks.map((row) => [
      row.model,
      row.zipcache,
      `${row.llama} weights`,
      row.positions,
      row.maxDifference.toFixed(3),
      row.bound,
      percent(row.agreement),
    ]),
  )
}

function speedText({ cpu, repeats, tokens, windows, contexts }) {
  const percentDisturbed = 100 * kDisturbed
  const longest = Math.max(...contexts.filter((context) => context <= kLongestPrefill))
  return [
    `One thread on processor ${cpu}, a fresh process for each cell, all cells of a table in turns, greedy`,
    `decoding. Decode: ${repeats} runs of ${tokens} tokens, median (range). Prefill: of the whole context into`,
    'an empty cache, median of n runs. p50 and p99 are of the times between two tokens. `closing` is the median',
    'step that ends a window of 100 tokens and compresses it, with what the compression adds to the step after',
    `it; \`other\` is the median of all steps but these two; of one run of ${windows} windows after all others.`,
    'Bytes: zipcache counts all that the sequence was given; llama.cpp, which gives a context its memory',
    'beforehand, is counted by the elements of the tokens it holds: 2 bytes (F16), 34/32 (Q8_0), 18/32 (Q4_0).',
    `A run is left out when the hypervisor and other processes took more than ${percentDisturbed}% of the processor;`,
    'a cell without any other run has a \\*. `per CPU s` are tokens by the processor time that the cell itself',
    'used, over all runs: a guide where a \\* says that others had the rest.',
    ...(contexts.every((context) => context <= longest)
      ? []
      : [
          `llama.cpp's contexts beyond ${count(longest)} tokens are made of its own saved state of ${count(longest)},`,
          'repeated, since a prefill of them takes it minutes; they have no prefill figure.',
        ]),
  ].join('\n')
}

function shapeText({ parameters, nLayers, nHeads, nKvHeads, headDim, fasterWeights }) {
  return (
    `${(parameters / 1e6).toFixed(1)}M parameters, ${nLayers} layers, ${nHeads} heads, ${nKvHeads} KV heads of ` +
    `head_dim ${headDim}.` +
    (fasterWeights === null
      ? ''
      : ` llama.cpp is faster with ${fasterWeights} weights; its quantized caches are measured with these.`)
  )
}

function speedTable(rows) {
  return table(
    [
      'engine',
      'cache',
      'prefill tok/s (n)',
      'decode tok/s',
      'per CPU s: prefill, decode',
      'p50 ms',
      'p99 ms',
      'closing / other ms',
      'cache bytes',
      'ratio',
    ],
    rows.map((row) => {
      if (row.failed !== null) return [row.name, row.cache, `failed: ${oneLine(row.failed)}`]
      const { prefillTokensPerSecond: prefill, decodeTokensPerSecond: decode } = row
      const { cpu, isDisturbed } = row
      return [
        row.name,
        row.cache,
        prefill === null
          ? ''
          : `${number(prefill.median)} (${prefill.n})${isDisturbed.prefill ? ' \\*' : ''}`,
        `${number(decode.median)} (${number(decode.min)} to ${number(decode.max)})${isDisturbed.decode ? ' \\*' : ''}`,
        [cpu.prefillTokensPerSecond, cpu.decodeTokensPerSecond]
          .filter((value) => value !== null)
          .map(number)
          .join(', '),
        number(row.stepMs.p50),
        number(row.stepMs.p99),
        row.closingStepMs === null
          ? ''
          : `${number(row.closingStepMs.median)} / ${number(row.otherStepMs.median)}${isDisturbed.closings ? ' \\*' : ''}`,
        count(Math.round(row.bytes)),
        `${(row.fp16Bytes / row.bytes).toFixed(2)}x`,
      ]
    }),
  )
}

function retrievalText({ questions }) {
  return [
    `The share of ${questions} questions answered with all five digits right, greedily, and the mean ratio of`,
    '16-bit bytes to cache bytes after the last answer token. Both engines get the same token ids. zipcache computes',
    'in f32 over the float16 weights, llama.cpp over the same weights. `inside`: the question stands in one prompt',
    "with the records, which zipcache's prefill attends to exactly; `after`: it is a turn of its own, when the records",
    'are compressed. To llama.cpp both are the same.',
  ].join('\n')
}

function retrievalTable(retrieval) {
  const columns = unique(retrieval.map((row) => `${row.model}, ${row.lines} lines`))
  const kinds = unique(retrieval.map((row) => JSON.stringify([row.engine, row.cache, row.ask])))
  return table(
    ['engine', 'cache', 'asked', ...columns],
    kinds.map((kind) => {
      const [engine, cache, ask] = JSON.parse(kind)
      const rows = retrieval.filter(
        (row) => row.engine === engine && row.cache === cache && row.ask === ask,
      )
      const cellOf = ({ failed, hits, questions, ratio }) =>
        failed === null
          ? `${percent(hits / questions)} at ${ratio.toFixed(2)}x`
          : `failed: ${oneLine(failed)}`
      return [engine, cache, engine === 'zipcache' ? ask : 'either', ...rows.map(cellOf)]
    }),
  )
}

/** A Markdown table; a row may end early. */
function table(titles, rows) {
  const line = (cells) => `| ${cells.join(' | ')} |`
  const full = rows.map((row) => line(titles.map((_, i) => row[i] ?? '')))
  return [line(titles), line(titles.map(() => '---')), ...full].join('\n')
}

/** Three significant digits, no exponent. */
function number(value) {
  return value >= 100 ? value.toFixed(0) : value.toPrecision(3)
}

function count(value) {
  return value.toLocaleString('en-US')
}

function percent(share) {
  return `${(100 * share).toFixed(share === 1 ? 0 : 1)}%`
}

function oneLine(text) {
  return text.replace(/\s+/g, ' ').replaceAll('|', '\\|')
}

function unique(values) {
  return [...new Set(values)]
}
