// A process with worker threads; its argument names what it does with them.
const path = require('node:path')
const { Worker } = require('node:worker_threads')
const { loadModel } = require('zipcache')
const { Device } = require('zipcache/ops')
const { dotProduct } = require('./work.cjs')

const MODEL = path.resolve(__dirname, '..', '..', '..', 'models', 'line-retrieval')

function start(task) {
  return new Worker(path.join(__dirname, 'worker.cjs'), { workerData: { task, model: MODEL } })
}

/** The first message of a worker. */
function message(worker) {
  return new Promise((resolve, reject) => {
    worker.once('message', resolve)
    worker.once('error', reject)
  })
}

/** The message of a worker that ends by itself, once it has. */
function run(task) {
  const worker = start(task)
  const ended = new Promise((resolve) => worker.once('exit', resolve))
  return Promise.all([message(worker), ended])
}

async function onMain() {
  const device = await Device.open('cpu', { threads: 2 })
  const value = await dotProduct(device)
  await device.dispose()
  return value
}

async function generateOnMain() {
  const model = await loadModel(MODEL, { threads: 1 })
  const ids = []
  const options = { maxTokens: 8, ignoreEos: true }
  for await (const { id } of model.generate([1, 2, 3, 4], options)) ids.push(id)
  await model.dispose()
  return ids
}

async function terminate(task = 'work', afterMs = 0) {
  const worker = start(task)
  await message(worker)
  if (afterMs > 0) await new Promise((resolve) => setTimeout(resolve, afterMs))
  const code = await worker.terminate()
  return [code, await onMain()]
}

const scenarios = {
  together: () => Promise.all([run('compute'), run('compute'), onMain()]),
  successive: async () => [await run('compute'), await run('compute')],
  // The main thread never loads the addon.
  alone: () => run('compute'),
  leave: async () => [await run('leave'), await onMain()],
  terminate: () => terminate(),
  'terminate often': async () => {
    const outcomes = []
    for (let i = 0; i < 5; ++i) outcomes.push(await terminate())
    return outcomes
  },
  'terminate in calls': async () => {
    const outcomes = []
    for (const task of ['call', 'fail', 'open', 'await'])
      for (let i = 0; i < 5; ++i) outcomes.push(await terminate(task, 3 + i))
    return outcomes
  },
  'leave between answers': async () => {
    const worker = start('leave between answers')
    const code = await new Promise((resolve) => worker.once('exit', resolve))
    return [code, await onMain()]
  },
  // The process ends under a worker that works.
  exit: async () => {
    await message(start('work'))
    console.log(JSON.stringify('leaving'))
    process.exit(0)
  },
  generate: async () => [await run('generate'), await generateOnMain()],
}

scenarios[process.argv[2]]().then((result) => console.log(JSON.stringify(result)))
