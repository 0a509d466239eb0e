/**
 * zipcache/eval: what a cache policy costs and saves. Tasks, the runner with its journal, statistics,
 * and the audit of which tokens are salient.
 */
export { policyLabel } from '../policy/policy-label.js'
export type { Answer, Asker, Unit } from './asker.js'
export { type EvalResult, type Evaluation, evaluate } from './evaluate.js'
export {
  evaluateLineRetrieval,
  type LineRetrievalEvaluation,
  type LineRetrievalResult,
  type LineRetrievalRow,
} from './evaluate-line-retrieval.js'
export type { Gsm8kSpec } from './gsm8k.js'
export type { HumanEvalSpec } from './humaneval.js'
export {
  type Inspection,
  inspectSaliency,
  type SaliencyReport,
  type SaliencyShares,
} from './inspect.js'
export { Journal } from './journal.js'
export type { AskMode, LineRetrievalSpec } from './line-retrieval.js'
export {
  generateLineRetrieval,
  type LineRetrievalOptions,
  type LineRetrievalPrompt,
  type LineRetrievalRecord,
} from './line-retrieval-prompt.js'
export { type LocalAskerOptions, localAsker } from './local-asker.js'
export type { LongBenchSpec } from './longbench.js'
export { modelAsker } from './model-asker.js'
export type { MultiTurnSpec } from './multi-turn.js'
export type { NeedleSpec } from './needle.js'
export { type Granularity, granularityRatio, mixedRatio, type RatioShape } from './paper-ratio.js'
export type { PerplexitySpec } from './perplexity.js'
export type { EvalReport } from './report.js'
export type { RetrievalForm } from './retrieval-prompt.js'
export type { EvalPair, EvalRow } from './rows.js'
export { bootstrapMean, type Estimate, mcnemar, signFlipTest, wilson } from './statistics.js'
export type { SubjectModel, SubjectSequence, SubjectTokenizer } from './subject.js'
export type { Asked, Measure, Outcome, Question, Task, TaskFacts, TaskSetting } from './task.js'
export { makeTask, type TaskSpec } from './task-list.js'
export { type WorkerSetting, workerAsker } from './worker-asker.js'
