import { checkObject } from '../engine/options.js'
import { argumentError, show } from '../errors.js'
import { checkMethods } from './check.js'
import { type Gsm8kSpec, gsm8k } from './gsm8k.js'
import { type HumanEvalSpec, humanEval } from './humaneval.js'
import { type LineRetrievalSpec, lineRetrieval } from './line-retrieval.js'
import { type LongBenchSpec, longBench } from './longbench.js'
import { type MultiTurnSpec, multiTurn } from './multi-turn.js'
import { type NeedleSpec, needle } from './needle.js'
import { type PerplexitySpec, perplexity } from './perplexity.js'
import type { Task, TaskSetting } from './task.js'

/** A task by name, with its settings. */
export type TaskSpec =
  | LineRetrievalSpec
  | NeedleSpec
  | MultiTurnSpec
  | PerplexitySpec
  | Gsm8kSpec
  | HumanEvalSpec
  | LongBenchSpec

/**
 * The task that a specification names.
 *
 * Rejects with `ERR_ZC_ARGUMENT` for an unknown name, and as the task does.
 */
export async function makeTask(spec: TaskSpec, setting: TaskSetting): Promise<Task> {
  checkObject('spec', spec)
  checkObject('setting', setting)
  checkMethods('tokenizer', setting.tokenizer, 'encode', 'decode', 'tokenId')
  switch (spec.task) {
    case 'line-retrieval':
      return lineRetrieval(spec, setting)
    case 'needle':
      return needle(spec, setting)
    case 'multi-turn':
      return multiTurn(spec, setting)
    case 'perplexity':
      return perplexity(spec, setting)
    case 'gsm8k':
      return gsm8k(spec, setting)
    case 'humaneval':
      return humanEval(spec, setting)
    case 'longbench':
      return longBench(spec, setting)
    default:
      throw argumentError(
        'task',
        `is ${show((spec as { task?: unknown }).task)}, expected line-retrieval, needle, ` +
          'multi-turn, perplexity, gsm8k, humaneval or longbench',
      )
  }
}
