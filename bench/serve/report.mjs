// The benchmark's result as tables.

const kMs = (value) => (value >= 100 ? value.toFixed(0) : value.toFixed(1))
const kMb = (bytes) => (bytes / 1e6).toFixed(1)

/** Each as { title, columns, rows }, for `formatTable` and `formatMarkdownTable`. */
export function tablesOf({ cells, held }, { left, right }) {
  return [
    {
      title: 'Streams',
      columns: [
        ...[
          left('workload'),
          left('cache'),
          right('streams'),
          right('tokens/s'),
          right('of 1 stream'),
        ],
        ...[right('first token p50, p95, p99 ms'), right('token to token p50, p95, p99 ms')],
        ...[
          right('at a time'),
          right('cores busy'),
          right('by others'),
          right('caches MB'),
          right('process MB'),
          right('ratio'),
        ],
      ],
      rows: cells.map((cell) => [
        ...[cell.workload, cell.policy, String(cell.streams), cell.tokensPerSecond.toFixed(0)],
        cell.speedup === null ? '' : `${cell.speedup.toFixed(2)}x`,
        ...[cell.firstTokenMs, cell.interTokenMs].map(({ p50, p95, p99 }) =>
          [p50, p95, p99].map(kMs).join(', '),
        ),
        ...[
          String(cell.running),
          cell.busyCores.toFixed(2),
          cell.othersCores.toFixed(2),
          kMb(cell.kvBytes),
        ],
        ...[kMb(cell.residentBytes), `${cell.ratio.toFixed(2)}x`],
      ]),
    },
    {
      title: 'Conversations of 200 lines that are held',
      columns: [left('cache'), right('conversations'), right(`times ${held[0]?.policy}`)],
      rows: held.map(({ policy, conversations }) => [
        ...[policy, String(conversations)],
        `${(conversations / held[0].conversations).toFixed(2)}x`,
      ]),
    },
  ].filter(({ rows }) => rows.length > 0)
}

export function toMarkdown(result, tables, formatMarkdownTable, command) {
  const { machine, settings } = result
  const { kvMemory, workloads, seconds } = settings
  const workloadLines = workloads.map(
    ({ name, lines, promptTokens, maxTokens, perStream }) =>
      `- \`${name}\`: ${lines} lines (about ${promptTokens} tokens), ${maxTokens} new tokens; ` +
      `${perStream} requests a stream, each with a prompt of its own`,
  )
  const parts = [
    '# The server under load',
    `Machine: ${machine.cpu}, ${machine.cores} cores, ${machine.flags.join(' ')}; ${machine.os}; ` +
      `Node ${machine.node}. zipcache: commit ${machine.commit}. It took ${Math.round(seconds)} s.`,
    `\`\`\`sh\n${command}\n\`\`\``,
    `One process of \`zipcache serve\` with \`--kv-memory ${kvMemory}\` for all caches, on all cores, which ` +
      'it shares with the load: autocannon, streams of `/v1/completions`, greedy. The model is the ' +
      'shipped one (1.9M parameters, float32).',
    workloadLines.join('\n'),
    ...tables.map((table) => `## ${table.title}\n\n${formatMarkdownTable(table).trimEnd()}`),
    '`of 1 stream`: tokens per second against those of one stream. `at a time`: the most requests that ' +
      'were under way together; the others waited for cache memory. `cores busy`: processor time of the ' +
      'server over time; `by others`: of processes that have nothing to do with it, which should be near 0. ' +
      '`caches` and `process`: the peaks of what caches were given and of resident ' +
      'memory. `ratio`: the 16-bit cache over the measured one at the end of an answer, the median.',
    ...result.notes,
  ]
  return `${parts.join('\n\n')}\n`
}

/** What follows from the numbers. */
export function notesOf({ cells, machine }) {
  return cells
    .filter(({ speedup }) => speedup !== null && speedup < 4)
    .map((cell) => {
      const one = cells.find(
        (other) =>
          other.workload === cell.workload && other.policy === cell.policy && other.streams === 1,
      )
      const per = (own) => ((1000 * own.busyCores) / own.tokensPerSecond).toFixed(2)
      return (
        `${cell.workload}, \`${cell.policy}\`, ${cell.streams} streams give ${cell.speedup.toFixed(2)}x of ` +
        `one: one stream keeps ${one.busyCores.toFixed(2)} of ${machine.cores} cores busy already, all ` +
        `together ${cell.busyCores.toFixed(2)}, and a token (its share of the prompt included) takes ` +
        `${per(one)} ms of processor time alone and ${per(cell)} ms among others.`
      )
    })
}
