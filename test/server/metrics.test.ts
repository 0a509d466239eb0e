/** /metrics, as Prometheus and routers read it. */
import { spawnSync } from 'node:child_process'
import { post, startServer } from './running'

const hasPromtool = spawnSync('promtool', ['--version']).status === 0
if (!hasPromtool)
  console.warn('promtool is not installed (Debian: prometheus): its check is skipped')

/** The metrics of a server that has answered something. */
async function page(vllmMetrics: boolean): Promise<string> {
  const { url, close } = await startServer({ vllmMetrics })
  try {
    const body = { prompt: 'line a', max_tokens: 120, ignore_eos: true }
    await post(`${url}/v1/completions`, body, { 'x-session-id': 'kept' })
    const response = await fetch(`${url}/metrics`)
    expect(response.headers.get('content-type')).toMatch(/^text\/plain; version=0\.0\.4/)
    return await response.text()
  } finally {
    await close()
  }
}

const read = (text: string, name: string) =>
  Number(new RegExp(`^${name.replace(/[{}]/g, '\\$&')} (\\S+)$`, 'm').exec(text)?.[1])

test('own names: what the caches hold, what was done, how long it took', async () => {
  const text = await page(false)
  expect(read(text, 'zipcache_generation_tokens_total')).toBe(120)
  expect(read(text, 'zipcache_windows_closed_total')).toBe(1)
  expect(read(text, 'zipcache_sessions')).toBe(1)
  const high = read(text, 'zipcache_kv_cache_bytes{class="high"}')
  expect(high).toBeGreaterThan(read(text, 'zipcache_kv_cache_bytes{class="low"}'))
  expect(read(text, 'zipcache_kv_cache_compression_ratio')).toBeGreaterThan(1)
  expect(read(text, 'zipcache_inter_token_latency_seconds_count')).toBe(119)
  expect(read(text, 'zipcache_time_to_first_token_seconds_count')).toBe(1)
  expect(text).not.toContain('vllm:')
})

const check = (input: string) => {
  const { status, stdout, stderr } = spawnSync('promtool', ['check', 'metrics'], {
    input,
    encoding: 'utf8',
  })
  return { status, complaints: `${stdout}${stderr}`.trim().split('\n').filter(Boolean) }
}

;(hasPromtool ? test : test.skip)('promtool has nothing to say', async () => {
  expect(check(await page(false))).toEqual({ status: 0, complaints: [] })
})

test("vLLM's names beside them", async () => {
  const text = await page(true)
  for (const name of [
    'num_requests_running',
    'num_requests_waiting',
    'kv_cache_usage_perc',
    'gpu_cache_usage_perc',
    'prefix_cache_queries_total',
    'gpu_prefix_cache_hits_total',
    'generation_tokens_total',
    'time_to_first_token_seconds_count',
    'inter_token_latency_seconds_count',
    'e2e_request_latency_seconds_count',
  ]) {
    expect(text).toMatch(new RegExp(`^vllm:${name}\\{model_name="zipcache"\\} `, 'm'))
  }
  expect(text).toMatch(/^vllm:cache_config_info\{[^}]*block_size="16",num_gpu_blocks="\d+"\} 1$/m)
  if (!hasPromtool) return
  // Their names have colons, which Prometheus advises against; it has no other complaint.
  const { complaints } = check(text)
  expect(complaints.filter((line) => !line.includes("should not contain ':'"))).toEqual([])
})
