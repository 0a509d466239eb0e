// Whole steps of a model in LLaMA3-8B's shape, by the package's own engine: prompts, decode steps of
// a batch and memory, a line of JSON each. Plain Node, dist/ and build/Release.
import { statfsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { parseArgs } from 'node:util'
import { Device, loadModel, resolvePolicy } from '../../../dist/index.mjs'
import { reportFailure, ScriptError, say } from '../../../scripts/progress.mjs'
import { decodedTokens } from './lockstep.mjs'
import { batchMemory, measureRow, promptsOf } from './measure.mjs'
import { planSteps, promptWork, specOf } from './plan.mjs'
import { ReadRoof } from './read-roof.mjs'

const require = createRequire(import.meta.url)
const { withRandomModel } = require('../../../dist/bench/random-model.js')

const kUsage = `usage: node bench/cuda/steps/main.mjs [OPTIONS]
  --device NAME     default cuda
  --full            128k tokens of context, and 64 sequences of 32k, too
  --quick           half as many steps
  --budget SECONDS  no row begins that would not end in time; the most important ones come first
  --layers N        of the model, instead of all 32: written and loaded sooner
  --folder DIR      where the model is written, 16 GB; default the system's for temporary files
  --check           a tiny model, windows of 16 tokens: for the CPU and the emulator
`
/** Of the model's own engine, which nobody uses. */
const kLeastMemory = 1 << 22
/** Beside the pages of an engine: their tables, a thirtieth; probes of windows, and a step's rows. */
const kTableShare = 0.04
const kSpareMemory = 2e9
/** Rows take a little longer than their prompts. */
const kRowSeconds = 5

function readOptions(args) {
  const flag = { type: 'boolean', default: false }
  const text = { type: 'string' }
  try {
    const { values } = parseArgs({
      args,
      options: {
        device: { ...text, default: 'cuda' },
        folder: { ...text, default: tmpdir() },
        budget: text,
        layers: text,
        ...{ full: flag, quick: flag, check: flag, help: flag },
      },
    })
    const budget = values.budget === undefined ? Infinity : Number(values.budget)
    if (!(budget > 0)) throw new Error(`--budget: is ${values.budget}, expected seconds above 0`)
    const layers = values.layers === undefined ? undefined : Number(values.layers)
    if (layers !== undefined && !(Number.isInteger(layers) && layers > 0)) {
      throw new Error(`--layers: is ${values.layers}, expected a whole number above 0`)
    }
    return { ...values, budget, layers }
  } catch (error) {
    throw new ScriptError(`${error.message}\n\n${kUsage}`)
  }
}

const write = (line) => process.stdout.write(`${JSON.stringify(line)}\n`)

/** How many seconds have passed since the script began. */
const elapsed = () => performance.now() / 1000

async function main() {
  const options = readOptions(process.argv.slice(2))
  if (options.help) {
    process.stdout.write(kUsage)
    return
  }
  const plan = planSteps(options)
  const device = await Device.open(options.device)
  try {
    say(`writing ${plan.name}'s shape with random weights to ${options.folder} ...`)
    await withRandomModel(plan.model, (dir) => timeModel(dir, device, plan, options), {
      dtype: 'bf16',
      parent: options.folder,
    }).catch((error) => {
      if (error.argument !== 'parent') throw error
      const { bavail, bsize } = statfsSync(options.folder)
      throw new ScriptError(
        `--folder: ${options.folder} has ${gigabytes(bavail * bsize)} free, too little for the model`,
        'name another folder, /dev/shm perhaps.',
      )
    })
  } finally {
    await device.dispose()
  }
}

async function timeModel(dir, device, plan, { budget }) {
  const model = await loadModel(dir, { device, dtype: 'bf16', kvMemory: kLeastMemory })
  const roof = new ReadRoof(device, plan.roofBytes)
  const measureRoof = async () => {
    await roof.sample()
    write({ roof: 'read', 'GB/s': roof.gigabytesPerSecond })
  }
  try {
    const { weights } = model.estimate({ tokens: 1, policy: 'fp16' })
    const { vocabSize, hiddenSize } = model.config
    say(`${plan.name}: ${gigabytes(weights)} of weights, loaded after ${elapsed().toFixed(0)} s`)
    write({
      model: plan.name,
      weightBytes: weights,
      // A step reads one row of the embedding.
      readBytes: weights - 2 * vocabSize * hiddenSize,
      device: device.info.name,
    })
    await measureRoof()
    const warm = new Set()
    let secondsOfWork = 0
    for (const row of plan.rows) {
      const { batch, context, policy } = row
      const name = `batch ${batch}, ${context} tokens, ${policy}`
      const spec = specOf(policy, plan.window)
      const window = resolvePolicy(spec).compression?.window ?? null
      const how = { policy: spec, window, tokens: plan.tokens, unrelated: roof.bytes }
      const work = promptsOf(batch) * promptWork(model.config, context)
      const leaveOut = (reason) => {
        say(`${name}: left out, ${reason}`)
        write({ ...row, leftOut: reason })
      }
      const reason =
        memoryShort(model, { ...how, batch, context }) ?? timeShort(budget, secondsOfWork * work)
      if (reason !== null) {
        leaveOut(reason)
        continue
      }
      try {
        if (!warm.has(policy)) {
          const short = { batch: 1, context: 2 * (window ?? 50), tokens: window ?? 8 }
          await measureRow(model, { ...how, ...short })
          warm.add(policy)
        }
        const measured = await measureRow(model, { ...how, batch, context })
        const { promptsMs, prompts, steps } = measured
        secondsOfWork = (prompts.median * promptsOf(batch)) / 1000 / work
        say(`${name}: prompts ${promptsMs.toFixed(0)} ms, a step ${steps.ms.median.toFixed(2)} ms`)
        write({ ...row, ...measured })
      } catch (error) {
        leaveOut(`failed: ${error.message}`)
        if (error.code !== 'ERR_ZC_OUT_OF_MEMORY') {
          reportFailure(error)
          process.exitCode = 1 // the other rows are worth their minutes all the same
        }
      }
      await measureRoof()
    }
  } finally {
    roof.dispose()
    await model.dispose()
  }
}

function memoryShort(model, { tokens, window, ...shape }) {
  const decoded = decodedTokens(tokens, window)
  const { kvMemory, passing } = batchMemory(model, { ...shape, window, decoded })
  const needed = (1 + kTableShare) * kvMemory + passing + kSpareMemory
  const { free } = model.device.memory
  if (needed <= free) return null
  return `needs ${gigabytes(needed)} beside the weights, ${gigabytes(free)} are free`
}

/** `seconds`: of the prompts, by the last row's speed. */
function timeShort(budget, seconds) {
  const left = budget - elapsed()
  if (seconds + kRowSeconds <= left) return null
  return `no time for it: about ${(seconds + kRowSeconds).toFixed(0)} s, ${Math.max(0, left).toFixed(0)} s are left`
}

const gigabytes = (bytes) => `${(bytes / 1e9).toFixed(1)} GB`

try {
  await main()
} catch (error) {
  reportFailure(error)
  process.exitCode = 1
}
