// How fast a device reads memory, measured between the rows. Needs dist/.
import { createRequire } from 'node:module'

const require = createRequire(import.meta.url)
const { readStream } = require('../../../dist/ops/roofline.js')
const { summarize } = require('../../../dist/bench/summary.js')
const { uniforms } = require('../../../dist/bench/bench-tensors.js')

/** Of one sample: milliseconds of reading, against which a wait of the host is nothing. */
const kCalls = 32
const kParts = 64
const kBlock = 1 << 16

export class ReadRoof {
  #device
  #x
  #out
  #milliseconds = []

  /** `bytes`: far more than any cache holds. */
  constructor(device, bytes) {
    this.#device = device
    const next = uniforms(1)
    const block = Int32Array.from({ length: kBlock }, () => next() * 2 ** 32)
    this.#x = device.tensor('i32', [bytes / 4])
    for (let at = 0; at < bytes / 4; at += kBlock) this.#x.write(block, at)
    this.#out = device.tensor('i32', [kParts])
  }

  get bytes() {
    return this.#x.sizeBytes
  }

  async sample() {
    readStream({ x: this.#x, out: this.#out })
    await this.#device.sync()
    const begin = performance.now()
    for (let call = 0; call < kCalls; call++) readStream({ x: this.#x, out: this.#out })
    await this.#device.sync()
    this.#milliseconds.push((performance.now() - begin) / kCalls)
  }

  /** 10^9 bytes a second, in the fastest tenth of the samples. */
  get gigabytesPerSecond() {
    return this.bytes / summarize(this.#milliseconds).p10 / 1e6
  }

  dispose() {
    this.#x.dispose()
    this.#out.dispose()
  }
}
