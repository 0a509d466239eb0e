import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { type ErrorCode, ZipCacheError } from '../errors.js'
import type { ComputeDtype, WeightFormat } from '../model/weights.js'
import type { Answer, Asker, Unit } from './asker.js'
import type { TaskFacts } from './task.js'
import type { TaskSpec } from './task-list.js'

/** What a worker is started with. */
export interface WorkerSetting {
  /** The checkpoint's folder. */
  readonly dir: string
  /** As `Device.open` takes it. */
  readonly device?: string | undefined
  /** What the model computes in. */
  readonly dtype?: ComputeDtype | undefined
  /** How its matrices are kept; default `stored`. */
  readonly weights?: WeightFormat | undefined
  /** Threads of the CPU; default one a core. */
  readonly threads?: number | undefined
  /** What will be asked. */
  readonly tasks: readonly TaskSpec[]
  /** Questions of each task, or as many as its file has. */
  readonly questions: number
  /** Any integer; the same seed gives the same questions and probes. */
  readonly seed: number
}

/** To the worker. */
export type WorkerRequest =
  | { readonly type: 'ask'; readonly id: number; readonly unit: Unit }
  | { readonly type: 'abort' }
  | { readonly type: 'close' }

/** An error on its way between threads, which drops classes. */
export interface PlainError {
  readonly message: string
  readonly code: ErrorCode | null
  readonly argument: string | undefined
}

/** From the worker. */
export type WorkerReply =
  | {
      readonly type: 'ready'
      readonly tasks: readonly TaskFacts[]
      readonly identity: Asker['identity']
    }
  | { readonly type: 'answer'; readonly id: number; readonly answer: Answer }
  | { readonly type: 'done'; readonly id: number; readonly error: PlainError | null }
  | { readonly type: 'failed'; readonly error: PlainError }

interface Pending {
  onAnswer(answer: Answer): Promise<void>
  resolve(): void
  reject(error: unknown): void
  written: Promise<void>
}

/**
 * Asks a model that a thread of its own loads.
 *
 * Rejects as `loadModel` and `localAsker`.
 */
export async function workerAsker(setting: WorkerSetting): Promise<Asker> {
  const worker = new Worker(join(__dirname, 'worker.js'), { workerData: setting })
  const post = (request: WorkerRequest) => worker.postMessage(request)
  const pending = new Map<number, Pending>()
  let nextId = 0
  let failure: unknown = null
  let ready: (reply: WorkerReply & { type: 'ready' }) => void = () => {}
  let failedToStart: (error: unknown) => void = () => {}
  const started = new Promise<WorkerReply & { type: 'ready' }>((resolve, reject) => {
    ready = resolve
    failedToStart = reject
  })
  const fail = (error: unknown) => {
    failure ??= error
    failedToStart(error)
    for (const { reject } of pending.values()) reject(error)
    pending.clear()
  }
  const exited = new Promise<void>((resolve) => {
    worker.on('error', fail)
    worker.on('exit', (code) => {
      fail(new ZipCacheError('ERR_ZC_INTERNAL', `worker: ended with ${code}`))
      resolve()
    })
  })
  worker.on('message', (reply: WorkerReply) => {
    if (reply.type === 'ready') return ready(reply)
    if (reply.type === 'failed') return fail(toError(reply.error))
    const unit = pending.get(reply.id)
    if (!unit) return
    if (reply.type === 'answer') {
      unit.written = unit.written.then(() => unit.onAnswer(reply.answer))
      unit.written.catch(() => {}) // reported when the unit is done
      return
    }
    pending.delete(reply.id)
    const { error } = reply
    if (error) unit.reject(toError(error))
    else unit.written.then(unit.resolve, unit.reject)
  })

  const close = async () => {
    if (failure === null) post({ type: 'close' })
    await exited
  }
  try {
    const { tasks, identity } = await started
    return {
      tasks,
      identity,
      async ask(unit, onAnswer, signal) {
        if (failure !== null) throw failure as Error
        const id = nextId++
        const abort = () => post({ type: 'abort' })
        signal?.addEventListener('abort', abort, { once: true })
        return new Promise<void>((resolve, reject) => {
          pending.set(id, { onAnswer, resolve, reject, written: Promise.resolve() })
          post({ type: 'ask', id, unit })
        }).finally(() => signal?.removeEventListener('abort', abort))
      },
      close,
    }
  } catch (error) {
    await exited
    throw error
  }
}

function toError({ message, code, argument }: PlainError): Error {
  return code === null ? new Error(message) : new ZipCacheError(code, message, { argument })
}
