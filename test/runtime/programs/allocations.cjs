// A process in which the addon's allocations fail, one after another, while it does what its first
// argument names; its second is 'one' or 'all after'. See fail_allocation.cc. Prints how many there
// were, what went otherwise than it should, and how often it was told.
const path = require('node:path')
const { loadModel, ZipCacheError } = require('zipcache')
const { Device, linear } = require('zipcache/ops')

const [, , task, mode] = process.argv
const MODEL = path.resolve(__dirname, '..', '..', 'fixtures', 'hf', 'llama')

const ids = (n) => Array.from({ length: n }, (_, i) => 3 + ((i * 37) % 200))

async function collect(tokens) {
  const all = []
  for await (const { id } of tokens) all.push(id)
  return all
}

/** Goes on over copies of a sequence: with `nTokens`, after a prompt and `nBefore`. */
async function decoding(policy, nBefore, nTokens) {
  // More threads than a few sequences have tasks for: attention divides the cache among them.
  const model = await loadModel(MODEL, { threads: 3, kvMemory: 2 ** 25 })
  const sequence = model.createSequence({ policy })
  await sequence.prefill(ids(130))
  const generate = (of, maxTokens) => collect(of.generate(null, { maxTokens, ignoreEos: true }))
  await generate(sequence, nBefore)
  return {
    device: model.device,
    async attempt() {
      const fork = sequence.fork()
      try {
        return await generate(fork, nTokens)
      } finally {
        fork.dispose()
        await fork.released
      }
    },
  }
}

const tasks = {
  // A device, one op, one read.
  async op() {
    const device = await Device.open('cpu', { threads: 3 })
    return {
      device,
      async attempt() {
        const tensors = []
        try {
          tensors.push(device.from(Float32Array.of(1, 2, 3, 4), [1, 4]))
          tensors.push(device.from(Float32Array.of(5, 6, 7, 8), [1, 4]))
          tensors.push(device.tensor('f32', [1, 1]))
          const [x, weight, out] = tensors
          linear({ x, weight, out })
          return [...(await out.read())]
        } finally {
          for (const tensor of tensors) tensor.dispose()
        }
      },
    }
  },
  async open() {
    return {
      device: null,
      async attempt() {
        const device = await Device.open('cpu', { threads: 3 })
        try {
          await device.sync()
          return [device.info.nThreads]
        } finally {
          await device.dispose()
        }
      },
    }
  },
  step: () => decoding('zipcache', 3, 3),
  window: () => decoding('zipcache', 98, 5),
  rows: async () => ({ ...(await decoding('h2o', 3, 2)), stride: 7 }),
  async prompt() {
    const model = await loadModel(MODEL, { threads: 3, kvMemory: 2 ** 25 })
    return {
      device: model.device,
      stride: 23,
      attempt: () => collect(model.generate(ids(130), { maxTokens: 2, ignoreEos: true })),
    }
  },
  async load() {
    return {
      device: null,
      stride: 11,
      async attempt() {
        const model = await loadModel(MODEL, { threads: 2, kvMemory: 2 ** 25 })
        try {
          return await collect(model.generate(ids(5), { maxTokens: 1, ignoreEos: true }))
        } finally {
          await model.dispose()
        }
      },
    }
  },
}

const tell = (value) => {
  process.env.ZC_FAIL_ALLOCATION = value
}

async function main() {
  const { device, attempt, stride = 1 } = await tasks[task]()
  const memory = async () => {
    if (!device) return 0
    await device.sync()
    return device.memory.current
  }
  const expected = JSON.stringify(await attempt())
  const before = await memory()
  tell('0')
  await attempt()
  const count = Number(process.env.ZC_ALLOCATIONS)
  const wrong = []
  let told = 0
  for (let n = 1; n <= count; n += stride) {
    let outcome
    tell(mode === 'one' ? `${n}` : `${n}+`)
    try {
      outcome = JSON.stringify(await attempt())
    } catch (error) {
      const isTyped = error instanceof ZipCacheError && error.code === 'ERR_ZC_OUT_OF_MEMORY'
      outcome = isTyped ? 'told' : `${error?.stack}`
    }
    tell('0')
    // What was enqueued has failed, too, and there was no memory for a wait to be told so.
    if (mode !== 'one') await device?.sync().catch(() => {})
    if (outcome === 'told') told++
    else if (outcome !== expected) wrong.push([n, outcome])
    try {
      const after = JSON.stringify(await attempt())
      if (after !== expected) wrong.push([n, `then ${after}`])
      const now = await memory()
      if (now !== before) wrong.push([n, `${now - before} bytes more`])
    } catch (error) {
      wrong.push([n, `then ${error?.stack}`])
    }
    if (wrong.length > 5) break
  }
  console.log(JSON.stringify({ count, told, wrong }))
  process.exit(0)
}

main()
