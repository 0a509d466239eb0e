import { Device, embedding, linear, type Tensor } from '../../lib/ops/index.js'
import { describeDevices, isHost } from '../support/backends.js'
import { expectRejected } from '../support/errors.js'
import { normals } from '../support/random-data.js'

const OUT_OF_RANGE = {
  code: 'ERR_ZC_ARGUMENT',
  op: 'embedding',
  message: /^ids: token 7, expected 0 to 3/,
} as const

function matrix(device: Device, width: number, seed = 1): Tensor<'f32'> {
  return device.from(normals(seed, width * width), [width, width])
}

/** Enqueues an op whose fault only its run can find. */
function enqueueFault(device: Device): void {
  const ids = device.from(Int32Array.of(7), [1])
  const weight = device.from(new Float32Array(8), [4, 2])
  const out = device.tensor('f32', [1, 2])
  embedding({ ids, weight, out })
  for (const tensor of [ids, weight, out]) tensor.dispose()
}

/** Enqueues work for a while: `n` products of matrices. */
function enqueueWork(device: Device, n: number, width = 512): void {
  const x = matrix(device, width)
  const out = device.tensor('f32', [width, width])
  for (let i = 0; i < n; ++i) linear({ x, weight: x, out })
  x.dispose()
  out.dispose()
}

describeDevices('the stream', (name) => {
  // The emulator takes a thousand times longer, and what was started has to end.
  const [nProducts, width] = name === 'cuda-emu' ? [1000, 8] : [10_000, 512]

  let device: Device
  beforeEach(async () => {
    device = await Device.open(name, { threads: 2 })
  })
  afterEach(() => device.dispose())

  test('runs everything in the order in which it was enqueued', async () => {
    const x = device.from(Float32Array.of(1), [1, 1])
    const y = device.from(Float32Array.of(1), [1, 1])
    const reads: Promise<ArrayLike<number>>[] = []
    for (let i = 1; i <= 20; ++i) {
      linear({ x, weight: x, out: y, accumulate: true }) // y += x x
      if (i % 5 === 0) reads.push(y.read())
      if (i === 10) x.write(Float32Array.of(2))
    }
    const values = (await Promise.all(reads)).map((read) => read[0])
    expect(values).toEqual([6, 11, 31, 51])
  })

  test('promises resolve in the order of the calls', async () => {
    const order: number[] = []
    const promises = Array.from({ length: 10 }, (_, i) => device.sync().then(() => order.push(i)))
    await Promise.all(promises)
    expect(order).toEqual([...order.keys()])
  })

  test('reports a fault once, with the next sync, and goes on', async () => {
    enqueueFault(device)
    await expectRejected(device.sync(), OUT_OF_RANGE)
    await device.sync()
    const x = device.from(Float32Array.of(3), [1, 1])
    linear({ x, weight: x, out: x })
    expect([...(await x.read())]).toEqual([9])
  })

  test('reports a fault with the next read, and only there', async () => {
    const x = device.from(Float32Array.of(3), [1, 1])
    enqueueFault(device)
    const [first, second] = [x.read(), x.read()]
    await expectRejected(first, OUT_OF_RANGE)
    expect([...(await second)]).toEqual([3])
    await device.sync()
  })

  test('skips what follows a fault until it is reported, where ops run at once', async () => {
    const x = device.from(Float32Array.of(3), [1, 1])
    enqueueFault(device)
    x.write(Float32Array.of(4))
    linear({ x, weight: x, out: x })
    const reported = device.sync()
    const after = x.read()
    await expectRejected(reported, OUT_OF_RANGE)
    // A device finds the fault when all of it was started.
    expect([...(await after)]).toEqual([isHost(name) ? 3 : 16])
  })

  test('keeps the first of several faults', async () => {
    enqueueFault(device)
    enqueueFault(device)
    await expectRejected(device.sync(), OUT_OF_RANGE)
    await device.sync()
  })

  test('frees what a skipped op held', async () => {
    const before = device.memory.current
    enqueueFault(device)
    enqueueWork(device, 3, 16)
    await device.sync().catch(() => {})
    expect(device.memory.current).toBe(before)
  })

  test('a fault of one device is no other device’s', async () => {
    const other = await Device.open(name, { threads: 1 })
    enqueueFault(device)
    await other.sync()
    await expectRejected(device.sync(), OUT_OF_RANGE)
    await other.dispose()
  })

  test('a disposal rejects what is awaited, and does not wait for what is queued', async () => {
    enqueueWork(device, nProducts, width)
    const x = device.from(Float32Array.of(3), [1])
    const awaited = [device.sync(), x.read(), device.sync()]
    const outcomes = Promise.allSettled(awaited)
    const start = performance.now()
    await device.dispose()
    expect(performance.now() - start).toBeLessThan(2000)
    for (const promise of awaited) await expectRejected(promise, { code: 'ERR_ZC_HANDLE' })
    await outcomes
  })

  test('an idle device and one that is busy are apart', async () => {
    const other = await Device.open(name, { threads: 1 })
    enqueueWork(device, nProducts, width)
    const pending = device.sync().catch((error: unknown) => error)
    const x = other.from(Float32Array.of(3), [1])
    expect([...(await x.read())]).toEqual([3])
    await device.dispose()
    expect(await pending).toMatchObject({ code: 'ERR_ZC_HANDLE' })
    await other.dispose()
  })
})

test('the event loop runs while ops do', async () => {
  const device = await Device.open('cpu', { threads: 1 })
  // A blocked loop never sees more than the one tick that was due when it went on. A free one may
  // see no more either, where others have the processor just then: it is given many occasions.
  let nTicks = 0
  for (let attempt = 0; attempt < 100 && nTicks <= 1; ++attempt) {
    nTicks = 0
    enqueueWork(device, 1, 1536)
    const timer = setInterval(() => ++nTicks, 1)
    await device.sync()
    clearInterval(timer)
  }
  expect(nTicks).toBeGreaterThan(1)
  await device.dispose()
})

test('results are the same for 1, 2 and 3 threads', async () => {
  const results: Float32Array[] = []
  for (const threads of [1, 2, 3]) {
    const device = await Device.open('cpu', { threads })
    const [m, k, n] = [13, 259, 131]
    const x = device.from(normals(1, m * k), [m, k])
    const weight = device.from(normals(2, n * k), [n, k])
    const out = device.tensor('f32', [m, n])
    linear({ x, weight, out })
    results.push(await out.read())
    await device.dispose()
  }
  for (const result of results) expect(result).toEqual(results[0])
})

test('ZIPCACHE_THREADS is the default number of threads', async () => {
  const before = process.env.ZIPCACHE_THREADS
  try {
    process.env.ZIPCACHE_THREADS = '3'
    const device = await Device.open('cpu')
    expect(device.info.nThreads).toBe(3)
    await device.dispose()
    process.env.ZIPCACHE_THREADS = 'many'
    const fault = { code: 'ERR_ZC_ARGUMENT', argument: 'threads' } as const
    await expectRejected(Device.open('cpu'), fault)
  } finally {
    if (before === undefined) delete process.env.ZIPCACHE_THREADS
    else process.env.ZIPCACHE_THREADS = before
  }
})
