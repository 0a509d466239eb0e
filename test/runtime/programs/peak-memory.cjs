// Prefills a prompt with a model of 25M parameters, every query head with its own K and V. Prints what the process took at
// most, beyond what it held before the model, and what `model.estimate` said before the prompt. A tiny model has run before:
// the addon's pages and the heap of JavaScript, some 7 MB whatever the model, are no part of an estimate.
const { spawnSync } = require('node:child_process')
const { readFileSync } = require('node:fs')
const path = require('node:path')
const dist = path.join(__dirname, '..', '..', '..', 'dist')
const { loadModel } = require(dist)
const { kRandomModelConfig, withRandomModel } = require(path.join(dist, 'bench', 'random-model.js'))

const [tokens, policy, folder] = [Number(process.argv[2]), process.argv[3], process.argv[4]]
const config = { ...kRandomModelConfig, num_hidden_layers: 8, num_key_value_heads: 8 }

function bytesOf(name) {
  const line = new RegExp(`${name}:\\s+(\\d+) kB`).exec(readFileSync('/proc/self/status', 'utf8'))
  return Number(line[1]) * 1024
}

// The folder is written by a process of its own, whose memory does not count.
if (folder === undefined) {
  withRandomModel(config, async (dir) => {
    const child = spawnSync(process.execPath, [__filename, tokens, policy, dir], {
      stdio: 'inherit',
    })
    process.exitCode = child.status ?? 1
  })
} else {
  measure(folder)
}

/** The bytes that `model.estimate` told for a prompt, which then was run. */
async function run(dir, nTokens) {
  const model = await loadModel(dir)
  const { peak } = model.estimate({ tokens: nTokens, policy })
  const sequence = model.createSequence({ policy })
  const ids = Int32Array.from({ length: nTokens }, (_, i) => (i * 7919) % model.config.vocabSize)
  await sequence.prefill(ids)
  sequence.dispose()
  return peak
}

async function measure(dir) {
  await run(path.join(__dirname, '..', '..', 'fixtures', 'hf', 'llama'), 200)
  const before = bytesOf('VmRSS')
  const estimated = await run(dir, tokens)
  console.log(JSON.stringify({ measured: bytesOf('VmHWM') - before, estimated }))
}
