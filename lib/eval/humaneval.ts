import { checkInteger } from '../engine/options.js'
import { argumentError, ZipCacheError } from '../errors.js'
import { toSeed } from '../random.js'
import { encodeTurns, expectFits, prefillTurns, writeAnswer } from './prompt.js'
import { drawItems, questionSeed } from './questions.js'
import { type PythonLimits, runPython } from './run-python.js'
import type { Asked, Outcome, Task, TaskSetting } from './task.js'
import { readTaskFile, type TaskLine } from './task-file.js'

/** Settings of the HumanEval task. */
export interface HumanEvalSpec {
  /** Which task this is. */
  readonly task: 'humaneval'
  /** The published JSONL, gzipped or not. */
  readonly data: string
  /** Programs that the model writes are run on this machine: they must be allowed to. */
  readonly allowCodeExecution?: boolean | undefined
  /** Most tokens of a function; default 400. */
  readonly maxTokens?: number | undefined
  /** Default 10,000. */
  readonly timeoutMs?: number | undefined
  /** Default 1 GiB. */
  readonly memoryBytes?: number | undefined
}

/** What begins after a function's end. */
const kStop = ['\nclass ', '\ndef ', '\n#', '\nif ', '\nprint(', '\n@', '\nassert ']

interface Problem {
  readonly prompt: string
  readonly test: string
  readonly entryPoint: string
}

/**
 * HumanEval: the model completes a Python function, greedily (pass@1); a hit passes the tests of the
 * file, run in a child process.
 *
 * Rejects with `ERR_ZC_ARGUMENT` unless programs may be run, for a setting out of its range and a
 * damaged file, naming its line; `ERR_ZC_IO`; `ERR_ZC_UNSUPPORTED` where they cannot be run.
 *
 * Source: Chen et al., 2021, https://github.com/openai/human-eval.
 */
export async function humanEval(spec: HumanEvalSpec, setting: TaskSetting): Promise<Task> {
  if (spec.allowCodeExecution !== true) {
    throw argumentError(
      'allowCodeExecution',
      'is not given, expected that programs written by the model may run here',
    )
  }
  const maxTokens = checkInteger('maxTokens', spec.maxTokens ?? 400, 1, 2 ** 20)
  const limits = {
    timeoutMs: checkInteger('timeoutMs', spec.timeoutMs ?? 10_000, 1, 2 ** 31 - 1),
    memoryBytes: checkInteger('memoryBytes', spec.memoryBytes ?? 2 ** 30, 2 ** 24, 2 ** 50),
  }
  const { digest, lines } = await readTaskFile(spec.data)
  const problems = lines.map(readProblem)
  if ((await runPython('', limits)) !== 'passed') {
    throw new ZipCacheError(
      'ERR_ZC_UNSUPPORTED',
      'programs cannot be run: python3 does not run an empty one within the limits',
    )
  }
  const seeds = toSeed(setting.seed)
  const chosen = drawItems(setting, problems.length)
  return {
    name: 'humaneval',
    facts: { data: spec.data },
    key: JSON.stringify(['humaneval', { digest, maxTokens, ...limits }]),
    measure: 'hits',
    count: chosen.length,
    question: (index) => ({
      seed: questionSeed(seeds, index),
      ask: (asked) =>
        program(asked, problems[chosen[index] as number] as Problem, maxTokens, limits),
    }),
  }
}

async function program(
  asked: Asked,
  { prompt, test, entryPoint }: Problem,
  maxTokens: number,
  limits: PythonLimits,
): Promise<Outcome> {
  const turns = encodeTurns(asked.tokenizer, [prompt])
  expectFits(asked.model, turns.flat().length + maxTokens, 'data')
  await prefillTurns(asked, turns)
  const { text: answer } = await writeAnswer(asked, { maxTokens, stop: kStop })
  const source = `${prompt}${answer}\n\n${test}\n\ncheck(${entryPoint})\n`
  const end = await runPython(source, limits, asked.signal)
  return {
    score: end === 'passed' ? 1 : 0,
    answer,
    expected: null,
    values: { timeout: end === 'timeout' ? 1 : 0 },
  }
}

function readProblem(line: TaskLine): Problem {
  const entryPoint = line.text('entry_point')
  if (!/^[A-Za-z_]\w*$/.test(entryPoint)) throw line.error("field 'entry_point' is no Python name")
  return { prompt: line.text('prompt'), test: line.text('test'), entryPoint }
}
