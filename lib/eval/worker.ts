/** The other end of `workerAsker`: a thread with a model of its own. */
import { parentPort, workerData } from 'node:worker_threads'
import { reasonOf, ZipCacheError } from '../errors.js'
import { modelAsker } from './model-asker.js'
import type { PlainError, WorkerReply, WorkerRequest, WorkerSetting } from './worker-asker.js'

const port = parentPort
if (port === null) throw new ZipCacheError('ERR_ZC_INTERNAL', 'worker: is not run as a thread')

const post = (reply: WorkerReply) => port.postMessage(reply)

async function serve(setting: WorkerSetting): Promise<void> {
  const asker = await modelAsker(setting)
  const interrupt = new AbortController()
  const facts = asker.tasks.map(({ name, facts, key, measure, count }) => ({
    ...{ name, facts, key, measure, count },
  }))
  post({ type: 'ready', tasks: facts, identity: asker.identity })
  port?.on('message', (request: WorkerRequest) => {
    switch (request.type) {
      case 'abort':
        interrupt.abort()
        break
      case 'close':
        port.close()
        void asker.close()
        break
      case 'ask': {
        const { id, unit } = request
        const onAnswer = async (answer: (WorkerReply & { type: 'answer' })['answer']) =>
          post({ type: 'answer', id, answer })
        asker.ask(unit, onAnswer, interrupt.signal).then(
          () => post({ type: 'done', id, error: null }),
          (error: unknown) => post({ type: 'done', id, error: toPlain(error) }),
        )
        break
      }
    }
  })
}

function toPlain(error: unknown): PlainError {
  const message = reasonOf(error)
  if (!(error instanceof ZipCacheError)) return { message, code: null, argument: undefined }
  return { message, code: error.code, argument: error.argument }
}

serve(workerData as WorkerSetting).catch((error: unknown) => {
  post({ type: 'failed', error: toPlain(error) })
  port.close()
})
