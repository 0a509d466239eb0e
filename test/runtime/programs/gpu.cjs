// What `cuda-emu` does under the machine that the environment describes: prints JSON.
//   node gpu.cjs list | memory | opening | scratch | engine | graphs | lost
const path = require('node:path')
const { Device, linear, siluGate } = require('../../../dist/ops/index.js')

const fault = ({ code, message }) => ({ code, message })
const caught = async (call) => {
  try {
    await call()
    return null
  } catch (error) {
    return fault(error)
  }
}

const scenarios = {
  /** The emulated GPUs, and what opening the first one says. */
  async list() {
    const devices = (await Device.list()).filter(({ name }) => name.startsWith('cuda-emu'))
    return {
      devices,
      opening: await caught(() => Device.open('cuda-emu').then((d) => d.dispose())),
    }
  },

  /** A device of 64 MiB. */
  async memory() {
    const MiB = 2 ** 20
    const device = await Device.open('cuda-emu')
    const { total } = device.memory
    const tooMuch = await caught(() => device.tensor('u8', [65 * MiB]))
    const first = device.tensor('u8', [40 * MiB])
    const second = await caught(() => device.tensor('u8', [40 * MiB]))
    const reservation = await caught(() => device.reserve('u8', [40 * MiB]))
    // Freed in stream order, and there again for whoever asks at once.
    first.write(new Uint8Array(40 * MiB).fill(7))
    await device.sync()
    first.dispose()
    const third = device.reserve('u8', [40 * MiB])
    const sum = (await third.read()).reduce((a, b) => a + b, 0)
    third.dispose()
    await device.sync()
    const { current, free } = device.memory
    await device.dispose()
    return { total, tooMuch, second, reservation, sum, current, lent: total - free }
  },

  /** A device with so little left that it cannot be opened once more. */
  async opening() {
    const device = await Device.open('cuda-emu')
    device.tensor('u8', [device.memory.free - 16])
    await device.sync()
    const { free } = device.memory
    const refusals = []
    for (let i = 0; i < 3; i++) refusals.push(await caught(() => Device.open('cuda-emu')))
    const lost = free - device.memory.free
    await device.dispose()
    return { refusals, lost }
  },

  /** A device with room for what an op needs for itself, but not for that twice. */
  async scratch() {
    const [m, k, n] = [64, 512, 16]
    const device = await Device.open('cuda-emu')
    const x = device.from(new Float32Array(m * k).fill(1), [m, k])
    const weight = device.from(new Uint16Array(n * k).fill(0x3f80), [n, k], 'bf16')
    const out = device.tensor('f32', [m, n])
    const planes = 3 * 2 * m * k // of x, in the weight's type
    device.tensor('u8', [device.memory.free - planes - planes / 2])
    linear({ x, weight, out })
    linear({ x, weight, out })
    const sums = await out.read()
    await device.dispose()
    return { sums: [...new Set(sums)] }
  },

  /** A model on a device of 64 MiB, and an engine that wants more. */
  async engine() {
    const { createEngine, loadModel } = require('../../../dist/index.js')
    const model = await loadModel(path.join(__dirname, '../../fixtures/hf/llama'), {
      device: 'cuda-emu',
    })
    const { capacity } = model.kvMemory
    const before = model.device.memory
    const tooMuch = await caught(() => createEngine({ model, kvMemory: 60 * 2 ** 20 }))
    await model.device.sync()
    const after = model.device.memory
    const tokens = async (of) => {
      let n = 0
      for await (const _ of of.generate([5, 6, 7], { maxTokens: 3, ignoreEos: true })) n++
      return n
    }
    const engine = createEngine({ model, kvMemory: 2 ** 21 })
    const counts = [await tokens(engine), await tokens(model)]
    await engine.dispose()
    await model.dispose()
    return { capacity, tooMuch, lost: before.free - after.free, counts }
  },

  /** A program of a device that has no memory for the first graphs of it. */
  async graphs() {
    const device = await Device.open('cuda-emu')
    const tensor = () => device.tensor('f32', [1, 4])
    const [input, weight, out] = [tensor(), device.tensor('f32', [4, 4]), tensor()]
    weight.write(Float32Array.from({ length: 16 }, (_, i) => (i % 5 === 0 ? 2 : 0)))
    const program = device.record(() => linear({ x: input, weight, out }))
    const outcomes = []
    for (let i = 0; i < 140; i++) {
      const values = await program.run(input, Float32Array.of(i, 0, 0, 1), out)
      outcomes.push([...values].join() === [2 * i, 0, 0, 2].join())
    }
    const { unrecordedRuns } = device
    program.dispose()
    for (const one of [input, weight, out]) one.dispose()
    await device.sync()
    const { current } = device.memory
    await device.dispose()
    return { right: outcomes.every((isRight) => isRight), unrecordedRuns, current }
  },

  /** A device that a kernel breaks. */
  async lost() {
    const device = await Device.open('cuda-emu')
    const x = device.tensor('f32', [1, 4])
    const other = device.from(Float32Array.of(1, 2, 3, 4), [1, 4])
    for (let i = 0; i < 100; i++) siluGate({ gate: other, up: other, out: x })
    const outcomes = {
      awaited: await caught(() => x.read()),
      op: await caught(() => {
        siluGate({ gate: other, up: other, out: x })
        return device.sync()
      }),
      tensor: await caught(() => device.tensor('f32', [4])),
      sync: await caught(() => device.sync()),
      write: await caught(() => {
        x.write(new Float32Array(4))
        return device.sync()
      }),
    }
    x.dispose()
    other.dispose()
    await device.dispose()
    const cpu = await Device.open('cpu', { threads: 1 })
    const alive = [...(await cpu.from(Float32Array.of(5), [1]).read())]
    await cpu.dispose()
    return { ...outcomes, alive }
  },
}

scenarios[process.argv[2]]().then((result) => console.log(JSON.stringify(result)))
