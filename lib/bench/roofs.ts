import type { Device, Tensor } from '../ops/index.js'
import { multiplyAdd, readStream } from '../ops/roofline.js'
import { readStream as referenceReadStream } from '../reference/index.js'
import { BenchTensors, uniforms } from './bench-tensors.js'
import { checkClose, kTolerance } from './check.js'
import { type Summary, summarize } from './summary.js'

/** What a device does at most, measured in turns with everything else. */
export interface Roof {
  readonly name: 'read' | 'multiply-add'
  readonly threads: number
  /**
   * GB/s (10^9 bytes) of `read`, GFLOP/s of `multiply-add`, in the fastest tenth of the
   * measurements: a roof is what the machine can do, whatever else runs on it.
   */
  readonly rate: number
  /** Milliseconds of one measurement. */
  readonly ms: Summary
}

/** The two roofs that one call can run into. */
export interface Roofline {
  readonly gigabytesPerSecond: number
  readonly gigaflopsPerSecond: number
}

/** Bytes that are read: far more than any cache holds. */
const kStreamBytes = 1 << 28
/** So many parts a thread, that one that is held up leaves work to the others. */
const kPartsPerThread = 4
/** Rows of FMA chains, see `multiplyAdd`. */
const kChainWidth = 192
const kChainSteps = 1 << 20
/** 0.5 x + 0.5 goes to 1, which it then stays, exactly. */
const kChain = { factor: 0.5, summand: 0.5, steps: kChainSteps }

interface RoofCell {
  readonly name: Roof['name']
  readonly threads: number
  /** Billions of bytes or of operations of one call. */
  readonly amount: number
  readonly milliseconds: number[]
  /** Enqueues one call. */
  run(): void
}

/** The roofs of a device, measured again and again between the ops. */
export class Roofs {
  readonly #cells: readonly RoofCell[]
  readonly #tensors: BenchTensors
  readonly #checks: (() => Promise<void>)[] = []

  constructor(device: Device) {
    const { nThreads } = device.info
    this.#tensors = new BenchTensors(device, 0)
    const words = kStreamBytes / 4
    const next = uniforms(1)
    const block = Int32Array.from({ length: 1 << 20 }, () => next() * 2 ** 32)
    const x = this.#tensors.output('i32', [words])
    for (let at = 0; at < words; at += block.length) x.write(block, at)
    const counts = nThreads === 1 ? [1] : [1, nThreads]
    this.#cells = counts.flatMap((threads) => {
      const parts = threads === 1 ? 1 : threads * kPartsPerThread
      return [this.#read(x, block, threads, parts), this.#chain(threads, parts)]
    })
  }

  /** Warms up; rejects with `ERR_ZC_INTERNAL` if the device does not compute what is timed. */
  async check(): Promise<void> {
    for (const check of this.#checks) await check()
    for (const { run } of this.#cells) run()
    await this.#tensors.device.sync()
  }

  /** Takes the time of each roof once. */
  async sample(): Promise<void> {
    for (const { run, milliseconds } of this.#cells) {
      const start = performance.now()
      run()
      await this.#tensors.device.sync()
      milliseconds.push(performance.now() - start)
    }
  }

  /** Each roof by its measurements so far. */
  get measured(): Roof[] {
    return this.#cells.map(({ name, threads, amount, milliseconds }) => {
      const ms = summarize(milliseconds)
      return { name, threads, rate: amount / (ms.p10 / 1000), ms }
    })
  }

  dispose(): void {
    this.#tensors.dispose()
  }

  #read(x: Tensor<'i32'>, block: Int32Array, threads: number, parts: number): RoofCell {
    const out = this.#tensors.output('i32', [parts])
    this.#checks.push(async () => {
      readStream({ x: this.#tensors.view(x, [block.length]), out })
      const expected = referenceReadStream({ x: block, parts })
      checkClose(await out.read(), expected, { name: 'readStream', tolerance: 0 })
    })
    const run = () => readStream({ x, out })
    return { name: 'read', threads, amount: kStreamBytes / 1e9, milliseconds: [], run }
  }

  #chain(threads: number, rows: number): RoofCell {
    const x = this.#tensors.normal('f32', [rows, kChainWidth])
    const out = this.#tensors.output('f32', [rows, kChainWidth])
    const run = () => multiplyAdd({ x, out, ...kChain })
    this.#checks.push(async () => {
      run()
      const ones = new Float32Array(rows * kChainWidth).fill(1)
      checkClose(await out.read(), ones, { name: 'multiplyAdd', tolerance: kTolerance.multiplyAdd })
    })
    const amount = (2 * rows * kChainWidth * kChainSteps) / 1e9
    return { name: 'multiply-add', threads, amount, milliseconds: [], run }
  }
}

/** The roofs with all threads that were measured. */
export function rooflineOf(roofs: readonly Roof[]): Roofline {
  const best = (name: Roof['name']) => {
    const own = roofs.filter((roof) => roof.name === name)
    const threads = Math.max(...own.map((roof) => roof.threads))
    return own.find((roof) => roof.threads === threads)?.rate as number
  }
  return { gigabytesPerSecond: best('read'), gigaflopsPerSecond: best('multiply-add') }
}

/** How something stands to the roofs. */
export interface Achieved {
  /** At the median. */
  readonly gigabytesPerSecond: number
  /** At the median. */
  readonly gigaflopsPerSecond: number
  /** Which roof it would run into first. */
  readonly bound: 'memory' | 'compute'
  /** The time that the nearer roof allows / the median; above 1 where caches help. */
  readonly share: number
  /** The same of the fastest tenth: what is left of `share` where other programs are not. */
  readonly bestShare: number
}

/** What times of so many bytes and operations mean. */
export function achieved(
  { bytes, flops, ms }: { bytes: number; flops: number; ms: Pick<Summary, 'median' | 'p10'> },
  roofline: Roofline,
): Achieved {
  const memoryMs = bytes / roofline.gigabytesPerSecond / 1e6
  const computeMs = flops / roofline.gigaflopsPerSecond / 1e6
  return {
    gigabytesPerSecond: bytes / ms.median / 1e6,
    gigaflopsPerSecond: flops / ms.median / 1e6,
    bound: memoryMs >= computeMs ? 'memory' : 'compute',
    share: Math.max(memoryMs, computeMs) / ms.median,
    bestShare: Math.max(memoryMs, computeMs) / ms.p10,
  }
}
