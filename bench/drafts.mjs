// What drafts save (`promptLookup`, `prediction`): a model with random weights is told beforehand what it
// will answer, with so many tokens right between two wrong ones. Cases take turns; tokens a second of the
// fastest of three rounds, beside decoding without drafts.
//   npm run bench:drafts -- [--context N] [--tokens N] [--weights stored|int8|int4] [--threads N] [--device NAME]
import { createRequire } from 'node:module'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { root, setup } from '../scripts/setup.mjs'

const kPolicies = ['fp16', 'zipcache']
/** Right tokens between two wrong ones; null: nothing is predicted. */
const kRuns = [null, Number.POSITIVE_INFINITY, 15, 7, 3, 1, 0]
const kRounds = 3

/** 125M parameters, four heads to a KV head. */
const kConfig = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  hidden_size: 1024,
  intermediate_size: 2816,
  num_hidden_layers: 10,
  num_attention_heads: 8,
  num_key_value_heads: 2,
  head_dim: 128,
  hidden_act: 'silu',
  rms_norm_eps: 1e-5,
  rope_theta: 500000,
  vocab_size: 6144,
  max_position_embeddings: 32768,
  tie_word_embeddings: false,
}

const { values } = parseArgs({
  options: {
    context: { type: 'string', default: '1024' },
    tokens: { type: 'string', default: '160' },
    weights: { type: 'string', default: 'stored' },
    threads: { type: 'string' },
    device: { type: 'string', default: 'cpu' },
  },
})

await setup()
const require = createRequire(import.meta.url)
const { loadModel } = require(path.join(root, 'dist'))
const { withRandomModel } = require(path.join(root, 'dist', 'bench', 'random-model.js'))

await withRandomModel(kConfig, async (dir) => {
  const threads = values.threads === undefined ? undefined : Number(values.threads)
  const { weights, device } = values
  const model = await loadModel(dir, { weights, device, threads })
  const prompt = Array.from({ length: Number(values.context) }, (_, i) => (i * 7919) % 6144)
  const asked = { maxTokens: Number(values.tokens), ignoreEos: true }
  const say = (line) => process.stdout.write(`${line}\n`)
  say(`${device}, ${values.context} tokens, weights ${weights}, ${threads ?? 'all'} threads\n`)
  say('| cache | right between two wrong | tokens a step | tokens a second | against none |')
  say('| --- | ---: | ---: | ---: | ---: |')
  for (const policy of kPolicies) {
    const past = model.createSequence({ policy })
    await past.prefill(prompt)
    const { ids } = await decode(model, past, asked)
    const cases = kRuns.map((run) => ({ run, best: 0, perStep: 1 }))
    for (let round = 0; round < kRounds; round++) {
      for (const one of cases) {
        const prediction = one.run === null ? undefined : predicted(ids, one.run)
        const found = await decode(model, past, { ...asked, prediction })
        if (found.ids.join() !== ids.join())
          throw new Error(`drafts changed what ${policy} answers`)
        one.best = Math.max(one.best, found.perSecond)
        one.perStep = found.perStep
      }
    }
    past.dispose()
    for (const { run, best, perStep } of cases) {
      const name = run === null ? 'no drafts' : run === Number.POSITIVE_INFINITY ? 'all' : run
      const cells = [
        policy,
        name,
        perStep.toFixed(2),
        best.toFixed(0),
        (best / cases[0].best).toFixed(2),
      ]
      say(`| ${cells.join(' | ')} |`)
    }
  }
  await model.dispose()
})

/** An answer with so many right tokens between two wrong ones. */
function predicted(ids, run) {
  return ids.map((id, i) => (i % (run + 1) === run ? (id + 1) % 6144 : id))
}

/** An answer behind a past, and how fast it came behind its first token. */
async function decode(model, past, options) {
  const sequence = past.fork()
  const before = model.stats().steps
  const ids = []
  let start = 0
  for await (const { id } of sequence.generate(null, options)) {
    if (ids.push(id) === 1) start = performance.now()
  }
  const nAfter = ids.length - 1
  const nSteps = model.stats().steps - before
  const perSecond = (nAfter / (performance.now() - start)) * 1000
  sequence.dispose()
  return { ids, perSecond, perStep: nAfter / nSteps }
}
