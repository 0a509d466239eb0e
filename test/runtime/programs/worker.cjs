// A worker thread that does what `workerData.task` names and posts what came out.
const { parentPort, workerData } = require('node:worker_threads')
const { Device } = require('zipcache/ops')
const { loadModel } = require('zipcache')
const { dotProduct, enqueueWork } = require('./work.cjs')

const tasks = {
  compute: async () => {
    const device = await Device.open('cpu', { threads: 2 })
    let sum = 0
    for (let i = 0; i < 100; ++i) sum += await dotProduct(device)
    return sum
  },
  // Leaves without disposing of anything.
  leave: async () => {
    const device = await Device.open('cpu', { threads: 2 })
    enqueueWork(device, 10_000)
    return 'left'
  },
  work: async () => {
    const device = await Device.open('cpu', { threads: 2 })
    enqueueWork(device, 10_000)
    parentPort.postMessage('working')
    await device.sync()
    return 'done'
  },
  // Ends itself when the first of many promises is settled, that of the others being on its way.
  'leave between answers': async () => {
    const device = await Device.open('cpu', { threads: 1 })
    const answers = Array.from({ length: 50 }, () => device.sync())
    answers[0].then(() => process.exit(3))
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 200)
  },
  // Calls until it is terminated, which most likely happens within a call.
  call: async () => {
    const device = await Device.open('cpu', { threads: 1 })
    parentPort.postMessage('calling')
    for (;;) device.memory
  },
  fail: async () => {
    const device = await Device.open('cpu', { threads: 1 })
    parentPort.postMessage('calling')
    for (;;) {
      try {
        device.tensor('f32', [-1])
      } catch {}
    }
  },
  open: async () => {
    parentPort.postMessage('calling')
    for (;;) await Device.open('cpu', { threads: 1 })
  },
  await: async () => {
    const device = await Device.open('cpu', { threads: 1 })
    parentPort.postMessage('calling')
    for (;;) await Promise.all([Device.list(), device.sync(), device.sync()])
  },
  generate: async () => {
    const model = await loadModel(workerData.model, { threads: 1 })
    const ids = []
    const options = { maxTokens: 8, ignoreEos: true }
    for await (const { id } of model.generate([1, 2, 3, 4], options)) ids.push(id)
    await model.dispose()
    return ids
  },
}

tasks[workerData.task]().then((result) => {
  if (result !== undefined) parentPort.postMessage(result)
})
