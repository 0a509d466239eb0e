// Programs of a user of the package, by the names of their files. Each prints `ok` at its end.
const answers = `
const prompt = generateLineRetrieval({ lines: 20, seed: 1 })
const model = await loadModel(exampleModel(), { threads: 1 })
let text = ''
for await (const token of model.generate(prompt.text, { maxTokens: 16, temperature: 0, policy: 'zipcache' }))
  text += token.text
await model.dispose()
if (!text.replaceAll(' ', '').includes(prompt.number)) throw new Error(text + ' is not ' + prompt.number)
console.log('ok')
`
const names = 'exampleModel, generateLineRetrieval, loadModel'

export const programs = {
  'esm.mjs': `import { ${names} } from 'zipcache'\n${answers}`,
  'commonjs.cjs': `const { ${names} } = require('zipcache')\nasync function main() {${answers}}\nmain()\n`,
  'worker.mjs': `
import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
for (let i = 0; i < 2; i++) {
  const worker = new Worker(new URL('./esm.mjs', import.meta.url), { stdout: true })
  let text = ''
  worker.stdout.on('data', (data) => { text += data })
  const [code] = await once(worker, 'exit')
  if (code !== 0 || text !== 'ok\\n') throw new Error(code + ': ' + text)
}
console.log('ok')
`,
  'entries.mjs': `
import { createRequire } from 'node:module'
import * as zipcache from 'zipcache'
import { Device, siluGate } from 'zipcache/ops'
import { siluGate as reference } from 'zipcache/reference'
const require = createRequire(import.meta.url)
if (require('zipcache').ZipCacheError !== zipcache.ZipCacheError) throw new Error('two packages')
const device = await Device.open('auto')
const x = device.from(Float32Array.of(-1, 2), [1, 2])
const out = device.tensor('f32', [1, 2])
siluGate({ gate: x, up: x, out })
const [values, expected] = [await out.read(), reference({ gate: [-1, 2], up: [-1, 2] })]
if (Math.abs(values[1] - expected[1]) > 1e-5) throw new Error(values[1] + ' is not ' + expected[1])
await device.dispose()
console.log('ok')
`,
  'page.mjs': `
import { Server } from 'zipcache/server'
const server = new Server({ port: 0, logLevel: 'silent' })
const url = await server.listen()
for (const path of ['/', '/page.css', '/page.js']) {
  const response = await fetch(url + path)
  if (response.status !== 200) throw new Error(path + ': ' + await response.text())
}
await server.close()
console.log('ok')
`,
  'typed.mts': `
import { type CacheBytes, createEngine, exampleModel, loadModel, type Model, ZipCacheError } from 'zipcache'
import { evaluateLineRetrieval, type TaskSpec } from 'zipcache/eval'
import { Device, type Tensor } from 'zipcache/ops'
import { quantize } from 'zipcache/reference'
import type { Call } from 'zipcache/server'
const maybe = { lines: undefined, chat: undefined, owner: undefined, done: undefined }
const task: TaskSpec = { task: 'line-retrieval', lines: maybe.lines, chat: maybe.chat }
const call: Call = { signal: AbortSignal.abort(), session: null, owner: maybe.owner, done: maybe.done }
if (!task || !call) throw new Error('these are not there')
const given: { signal?: AbortSignal | undefined; seed?: number | undefined } = { signal: undefined }
const model: Model = await loadModel(exampleModel(), { device: 'cpu', dtype: 'f32', threads: 1, signal: given.signal })
await evaluateLineRetrieval({ model, lines: [20], questions: 1, seed: 1, policies: ['fp16'] })
for await (const _ of model.generate([1], { ...given, maxTokens: 1 }));
const sequence = model.createSequence({ policy: { name: 'zipcache', saliencyRatio: 0.6, window: 100 } })
const { resident }: CacheBytes = sequence.bytes
const engine = createEngine({ model, kvMemory: 2 ** 24 })
await engine.dispose()
sequence.dispose()
await model.dispose()
const device = await Device.open()
const tensor: Tensor<'f32'> = device.tensor('f32', [2, 2])
// @ts-expect-error: no such element type
try { device.tensor('f64', [2]) } catch {}
// @ts-expect-error: a tensor of float32 takes no bytes
try { tensor.write(new Uint8Array(4)) } catch (error) { if (!(error instanceof ZipCacheError)) throw error }
// @ts-expect-error: no such option
await loadModel(exampleModel(), { devices: 'cpu' }).catch((error) => { if (error.code !== 'ERR_ZC_ARGUMENT') throw error })
const codes: Uint8Array = quantize({ x: [1, 2], rows: 1, channels: 2, bits: 4, scheme: 'tokenwise' }).codes
if (resident < 0 || codes.length === 0) throw new Error('sizes')
await device.dispose()
console.log('ok')
`,
  'typed.cts': `
import zipcache = require('zipcache')
import ops = require('zipcache/ops')
async function main(): Promise<void> {
  const device: ops.Device = await zipcache.Device.open('cpu', { threads: 1 })
  await device.dispose()
  console.log('ok')
}
void main()
`,
}
