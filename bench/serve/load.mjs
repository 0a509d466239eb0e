// Streams of one workload, sent by autocannon, and the time of every token of their answers.
import autocannon from 'autocannon'
import { ScriptError } from '../../scripts/progress.mjs'
import { quantile } from '../peers/statistics.mjs'

const kTimeoutSeconds = 300

/**
 * Sends `streams` x `perStream` requests, so many at a time as there are streams.
 * @param {string} url of the server
 * @param {{ streams: number, perStream: number, maxTokens: number }} load
 * @param {(request: number) => string} promptOf each has a prompt of its own
 */
export async function measureLoad(url, { streams, perStream, maxTokens }, promptOf) {
  const answers = []
  let client = 0
  const instance = autocannon({
    url,
    connections: streams,
    amount: streams * perStream,
    timeout: kTimeoutSeconds,
    // A prompt of each request, the same ones in every cell.
    setupClient(connection) {
      const first = client++ * perStream
      const requests = Array.from({ length: perStream }, (_, i) => ({
        method: 'POST',
        path: '/v1/completions',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({
          prompt: promptOf(first + i),
          max_tokens: maxTokens,
          temperature: 0,
          ignore_eos: true,
          stream: true,
          stream_options: { include_usage: true },
        }),
        onResponse: (status, body) => {
          answers.push(answerOf(status, body, times, maxTokens))
        },
      }))
      let times
      connection.setRequests(requests)
      connection.on('request', () => {
        times = [performance.now()]
      })
      // One a server-sent event.
      connection.on('body', () => times.push(performance.now()))
    },
  })
  const { errors, timeouts } = await instance
  if (errors + timeouts > 0 || answers.length !== streams * perStream) {
    throw new ScriptError(`${errors} errors, ${timeouts} timeouts, ${answers.length} answers`)
  }
  return summaryOf(answers, maxTokens)
}

/** When an answer began and its tokens came; fails for one that is not whole. */
function answerOf(status, body, times, maxTokens) {
  const events = body.split('\n\n').filter((event) => event.startsWith('data: '))
  const isWhole = status === 200 && events.at(-1) === 'data: [DONE]'
  const usage = isWhole ? JSON.parse(events.at(-2).slice('data: '.length)).usage : null
  if (usage?.completion_tokens !== maxTokens) {
    throw new ScriptError(`an answer is not whole: status ${status}, ${body.slice(-300)}`)
  }
  // Behind the tokens come the end of the choice, the usage and [DONE].
  const nPieces = events.length - 3
  const isSharp = times.length - 1 === events.length
  return { startedAt: times[0], tokenTimes: times.slice(1, 1 + nPieces), isSharp, usage }
}

function summaryOf(answers, maxTokens) {
  const begin = Math.min(...answers.map(({ startedAt }) => startedAt))
  const end = Math.max(...answers.map(({ tokenTimes }) => tokenTimes.at(-1)))
  const seconds = (end - begin) / 1000
  const firsts = answers.map(({ startedAt, tokenTimes }) => tokenTimes[0] - startedAt)
  const sharp = answers.filter(({ isSharp }) => isSharp)
  const gaps = sharp.flatMap(({ tokenTimes }) =>
    tokenTimes.slice(1).map((time, i) => time - tokenTimes[i]),
  )
  const percentiles = (values) => ({
    p50: quantile(values, 0.5),
    p95: quantile(values, 0.95),
    p99: quantile(values, 0.99),
  })
  return {
    requests: answers.length,
    seconds,
    tokensPerSecond: (answers.length * maxTokens) / seconds,
    requestsPerSecond: answers.length / seconds,
    firstTokenMs: percentiles(firsts),
    interTokenMs: percentiles(gaps),
    /** Answers whose events did not come one by one, so that their gaps do not count. */
    blurred: answers.length - sharp.length,
    ratio: quantile(
      answers.map(({ usage }) => usage.kv_cache.ratio),
      0.5,
    ),
  }
}
