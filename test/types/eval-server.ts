/** Tasks, evaluations and servers: their options and what comes of them. */
import {
  type EvalResult,
  type EvalRow,
  evaluate,
  inspectSaliency,
  localAsker,
  type SaliencyReport,
  type SubjectModel,
  type TaskSpec,
} from '../../lib/eval/index.js'
import { evaluateLineRetrieval, type Model } from '../../lib/index.js'
import { type LogLevel, Server, type ServerState } from '../../lib/server/index.js'
import { type Equal, expectType } from './equal.js'

export async function evaluations(model: Model) {
  const subject: SubjectModel = model // an engine's model can be evaluated as it is
  const tasks: TaskSpec[] = [
    { task: 'line-retrieval', lines: 100, ask: 'after' },
    { task: 'needle', depth: 50, lines: 100 },
    { task: 'perplexity', data: 'file.txt', prefix: 512 },
    // @ts-expect-error: no such task
    { task: 'trivia' },
    // @ts-expect-error: a task of files needs one
    { task: 'gsm8k' },
    // @ts-expect-error: an option of another task
    { task: 'needle', depth: 50, shots: 8 },
  ]
  const asker = await localAsker({ model: subject, tasks, questions: 10, seed: 1 })
  const result = await evaluate({ askers: [asker], policies: ['fp16', { name: 'h2o' }] })
  expectType<Equal<typeof result, EvalResult>>()
  expectType<Equal<(typeof result.rows)[number], EvalRow>>()
  const report = await inspectSaliency({ model, ids: [1, 2], policy: 'zipcache', bins: 4 })
  expectType<Equal<typeof report, SaliencyReport>>()
  const seed = { seed: 1, policies: ['fp16'] }
  await evaluateLineRetrieval({ model, lines: [100], questions: 10, ...seed })
  // @ts-expect-error: lines is a list
  await evaluateLineRetrieval({ model, lines: 100, questions: 10, ...seed })
}

export async function servers(model: Model) {
  const server = new Server({ port: 0, logLevel: 'silent', policy: { name: 'kivi', bits: 2 } })
  server.serve(model)
  expectType<Equal<typeof server.state, ServerState>>()
  expectType<Equal<Awaited<ReturnType<Server['listen']>>, string>>()
  const quiet: LogLevel = 'fatal'
  new Server({ logLevel: quiet, sampling: { temperature: 0 } })
  // @ts-expect-error: no such level
  new Server({ logLevel: 'verbose' })
  // @ts-expect-error: a port is a number
  new Server({ port: '8000' })
  // @ts-expect-error: misspelled
  new Server({ apikeys: ['secret'] })
}
