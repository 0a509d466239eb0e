// How many conversations the cache memory holds.
import { ScriptError } from '../../scripts/progress.mjs'
import { readMetrics } from './server.mjs'

const kMaxTokens = 16

/** Begins conversations until the next one pushes the first one out; how many there are then. */
export async function countHeld(url, promptOf) {
  for (let i = 0; ; i++) {
    const response = await fetch(`${url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', 'x-session-id': `conversation-${i}` },
      body: JSON.stringify({ prompt: promptOf(i), max_tokens: kMaxTokens, temperature: 0 }),
    })
    if (response.status !== 200) throw new ScriptError(`status ${response.status}`)
    await response.arrayBuffer()
    const metrics = await readMetrics(url)
    if (metrics.zipcache_sessions_evicted_total > 0) return metrics.zipcache_sessions
  }
}
