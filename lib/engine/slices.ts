import type { Device } from '../ops/index.js'
import type { Slicing } from './prefill.js'
import type { Run } from './run.js'

/** A pass that waits for its next slice. */
interface Waiting {
  readonly run: Run
  resolve(): void
}

/** The turns of passes that are enqueued slice by slice, in the order in which they ask. */
export class Slices {
  readonly #device: Device
  /** Told when there is one to be granted. */
  readonly #wake: () => void
  readonly #waiting: Waiting[] = []

  constructor(device: Device, wake: () => void) {
    this.#device = device
    this.#wake = wake
  }

  /** How one pass of a run takes its turns. It rejects once the run was given up. */
  of(run: Run): Slicing {
    const enqueued: Promise<void>[] = []
    /** An error is told to the first wait behind it, and to no other: each has to be looked at. */
    const mark = () => {
      run.throwIfFailed()
      const done = this.#device.sync()
      done.catch(() => {}) // reported when it is awaited, if the run still lives then
      enqueued.push(done)
    }
    return {
      turn: async () => {
        mark()
        // At most two slices wait on the stream, so that a run that is given up ends soon.
        if (enqueued.length > 2) await enqueued.shift()
        await new Promise<void>((resolve) => {
          this.#waiting.push({ run, resolve })
          this.#wake()
        })
        run.throwIfFailed()
      },
      end: async () => {
        mark()
        for (const done of enqueued) await done
        run.throwIfFailed()
      },
    }
  }

  /** Lets one pass enqueue its next slice; those given up find out. */
  grant(): void {
    for (let slice = this.#waiting.shift(); slice; slice = this.#waiting.shift()) {
      slice.resolve()
      if (!slice.run.ended) return
    }
  }
}
