// A process that ends in the way that its argument names, with work in flight unless it says so.
const { writeSync } = require('node:fs')
const { Device } = require('zipcache/ops')
const { loadAddon } = require('../../../dist/native/load.js')
const { enqueueWork } = require('./work.cjs')

const say = (text) => writeSync(1, `${text}\n`)

const endings = {
  idle: () => say('idle'),
  disposed: async (device) => {
    enqueueWork(device, 10_000)
    await device.dispose()
    say('disposed')
  },
  'sync pending': async (device) => {
    enqueueWork(device, 20)
    await device.sync()
    say('synced')
  },
  'read pending': async (device) => {
    enqueueWork(device, 20)
    const [value] = await device.from(Float32Array.of(7), [1]).read()
    say(`read ${value}`)
  },
  'nothing awaited': (device) => enqueueWork(device, 10_000),
  exit: (device) => {
    enqueueWork(device, 10_000)
    process.exit(0)
  },
  'exit while awaited': (device) => {
    enqueueWork(device, 10_000)
    device.sync().then(() => say('synced'))
    setTimeout(() => process.exit(0), 20)
  },
  'exit code': (device) => {
    enqueueWork(device, 10_000)
    process.exitCode = 7
  },
  throw: (device) => {
    enqueueWork(device, 10_000)
    device.sync().then(() => say('synced'))
    setTimeout(() => {
      throw new Error('thrown by the program')
    }, 20)
  },
  'unhandled fault': (device) => {
    enqueueWork(device, 10_000)
    device.sync() // nobody looks at what it rejects with
    device.dispose()
  },
  'collected device': async () => {
    // Nothing but the promise refers to the device: a collection must not take the work along.
    const pending = (async () => {
      const device = await Device.open('cpu', { threads: 1 })
      enqueueWork(device, 20)
      return { synced: device.sync() }
    })()
    const { synced } = await pending
    for (let i = 0; i < 5; ++i) {
      await new Promise((resolve) => setImmediate(resolve))
      globalThis.gc()
    }
    await synced
    say('synced')
  },
  'collected device, read pending': async () => {
    // Of the tensor there is its handle alone, which does not hold the device.
    const pending = (async () => {
      const device = await Device.open('cpu', { threads: 1 })
      enqueueWork(device, 20)
      const { handle } = device.from(Float32Array.of(7), [1])
      return { read: loadAddon().readTensor(handle) }
    })()
    const { read } = await pending
    for (let i = 0; i < 5; ++i) {
      await new Promise((resolve) => setImmediate(resolve))
      globalThis.gc()
    }
    say(`read ${new Float32Array(await read)[0]}`)
  },
  'many devices': async () => {
    for (let i = 0; i < 50; ++i) enqueueWork(await Device.open('cpu', { threads: 2 }), 10, 256)
    say('opened')
  },
}

Device.open('cpu', { threads: 2 }).then((device) => endings[process.argv[2]](device))
