/** The tasks of `zipcache eval`: their options, and what they ask for. */
import { Option } from 'commander'
import type { TaskSpec } from '../eval/task-list.js'
import { choice, decimal, distinctList, integer } from './options.js'

/** One task's command. */
export interface TaskCommand {
  readonly name: TaskSpec['task']
  readonly description: string
  readonly options: readonly Option[]
  /** - `given`: the values of `options` */
  tasksOf(given: object): TaskSpec[]
}

const kAskModes = ['inside', 'after'] as const
const kAsk = new Option(
  '--ask <when>',
  'ask inside the prompt, as the paper does, or after it was compressed; or both: inside,after',
)
  .argParser(distinctList(choice(...kAskModes)))
  .default(['inside'])
const kForm = new Option(
  '--form <form>',
  'words of the models of this package, or sentences (default: as the vocabulary is)',
).argParser(choice('words', 'longeval'))
const kChat = new Option('--chat', "ask through the model's chat template")
const kNumberTokens = new Option(
  '--max-tokens <n>',
  'most tokens of an answer (default: those of a number, with some words around it)',
).argParser(integer(1))
const kData = (what: string) => new Option('--data <file>', what)
const kLines = (lines: readonly number[]) =>
  new Option('--lines <list>', 'lines of the prompts')
    .argParser(distinctList(integer(1, 4096)))
    .default(lines)

type Ask = (typeof kAskModes)[number]

export const kTaskCommands: readonly TaskCommand[] = [
  command({
    name: 'line-retrieval',
    description: 'ask for the number in one of many lines',
    options: [
      kLines([50, 100, 200]),
      kAsk,
      kForm,
      kData("LongEval's own prompts (JSONL), instead of lines made of the seed").conflicts('lines'),
      kChat,
      kNumberTokens,
    ],
    tasksOf: ({
      lines,
      ask,
      data,
      ...rest
    }: Options<{ lines: number[]; ask: Ask[]; data?: string }>) =>
      ask.flatMap((when): TaskSpec[] => {
        const common = { task: 'line-retrieval', ask: when, ...shared(rest) } as const
        if (data !== undefined) return [{ ...common, data }]
        return lines.map((n) => ({ ...common, lines: n }))
      }),
  }),
  command({
    name: 'needle',
    description: 'ask for a fact at given depths of the context',
    options: [
      kLines([100]),
      new Option('--depth <list>', 'where the fact stands, in percent')
        .argParser(distinctList(decimal(0, 100)))
        .default([0, 25, 50, 75, 100]),
      kAsk,
      kForm,
      kData('a text that it is hidden in, instead of lines').conflicts('lines'),
      new Option('--tokens <n>', 'tokens of the context, with --data')
        .argParser(integer(1))
        .default(4096),
      kChat,
      kNumberTokens,
    ],
    tasksOf: ({
      lines,
      depth,
      ask,
      data,
      tokens,
      ...rest
    }: Options<{ lines: number[]; depth: number[]; ask: Ask[]; data?: string; tokens: number }>) =>
      ask.flatMap((when) =>
        depth.flatMap((percent): TaskSpec[] => {
          const common = { task: 'needle', depth: percent, ask: when, ...shared(rest) } as const
          if (data !== undefined) return [{ ...common, data, tokens }]
          return lines.map((n) => ({ ...common, lines: n }))
        }),
      ),
  }),
  command({
    name: 'multi-turn',
    description: 'ask a question again, some turns later',
    options: [
      kLines([100]),
      new Option('--turns <n>', 'turns between the two').argParser(integer(1, 100)).default(3),
      kForm,
    ],
    tasksOf: ({ lines, turns, form }: Options<{ lines: number[]; turns: number }>) =>
      lines.map((n) => ({ task: 'multi-turn', lines: n, turns, ...shared({ form }) })),
  }),
  command({
    name: 'perplexity',
    description: 'predict a text, token by token, after its compressed beginning',
    options: [
      kData('a text').makeOptionMandatory(),
      new Option('--prefix <n>', 'tokens that are compressed').argParser(integer(1)).default(512),
      new Option('--tokens <n>', 'tokens that are predicted').argParser(integer(1)).default(128),
      new Option('--no-special-tokens', 'the text has <s> and the like written in it'),
    ],
    tasksOf: ({
      data,
      prefix,
      tokens,
      specialTokens,
    }: Options<{ data: string; prefix: number; tokens: number; specialTokens: boolean }>) => [
      { task: 'perplexity', data, prefix, tokens, addSpecialTokens: specialTokens },
    ],
  }),
  command({
    name: 'gsm8k',
    description: 'grade-school mathematics, with a chain of thought',
    options: [
      kData('the published JSONL').makeOptionMandatory(),
      new Option('--shots <n>', 'worked examples before a question')
        .argParser(integer(0, 64))
        .default(8),
      new Option('--shots-data <file>', 'where they are from (default: other questions of --data)'),
      new Option('--max-tokens <n>', 'most tokens of an answer').argParser(integer(1)).default(400),
      kChat,
    ],
    tasksOf: ({
      data,
      shots,
      shotsData,
      maxTokens,
      chat,
    }: Options<{ data: string; shots: number; shotsData?: string; maxTokens: number }>) => [
      {
        ...{ task: 'gsm8k', data, shots, maxTokens, ...shared({ chat }) },
        ...(shotsData === undefined ? {} : { shotsData }),
      },
    ],
  }),
  command({
    name: 'humaneval',
    description:
      'complete Python functions; programs that the model writes are run on this machine',
    options: [
      kData('the published JSONL').makeOptionMandatory(),
      new Option('--allow-code-execution', 'let them run: limits hold mistakes, not malice'),
      new Option('--max-tokens <n>', 'most tokens of a function')
        .argParser(integer(1))
        .default(400),
      new Option('--timeout <s>', 'seconds that a program may take')
        .argParser(integer(1, 3600))
        .default(10),
      new Option('--memory <mib>', 'MiB that a program may take')
        .argParser(integer(16))
        .default(1024),
    ],
    tasksOf: ({
      data,
      allowCodeExecution = false,
      maxTokens,
      timeout,
      memory,
    }: Options<{
      data: string
      allowCodeExecution?: boolean
      maxTokens: number
      timeout: number
      memory: number
    }>) => [
      {
        ...{ task: 'humaneval', data, allowCodeExecution, maxTokens },
        ...{ timeoutMs: 1000 * timeout, memoryBytes: memory * 2 ** 20 },
      },
    ],
  }),
  command({
    name: 'longbench',
    description: 'data sets of LongBench, in English and in code',
    options: [
      new Option('--data <files>', 'published JSONL files, named as their sets: qasper.jsonl,…')
        .argParser(distinctList((file: string) => file))
        .makeOptionMandatory(),
      new Option(
        '--prompts <file>',
        'the published dataset2prompt.json (default: our own wording)',
      ),
      new Option('--max-tokens <n>', 'most tokens of an answer (default: as published)').argParser(
        integer(1),
      ),
      kChat,
    ],
    tasksOf: ({
      data,
      prompts,
      maxTokens,
      chat,
    }: Options<{ data: string[]; prompts?: string; maxTokens?: number }>) =>
      data.map((file) => ({
        ...{ task: 'longbench', data: file, ...shared({ chat }) },
        ...(prompts === undefined ? {} : { prompts }),
        ...(maxTokens === undefined ? {} : { maxTokens }),
      })),
  }),
]

/** A task's command, its options typed by what `tasksOf` reads. */
function command<T>(
  task: Omit<TaskCommand, 'tasksOf'> & { tasksOf(given: T): TaskSpec[] },
): TaskCommand {
  return { ...task, tasksOf: (given) => task.tasksOf(given as T) }
}

type Options<T> = T & {
  readonly form?: 'words' | 'longeval'
  readonly chat?: boolean
  readonly maxTokens?: number
}

/** What is not given is left out: it is part of what a question depends on. */
function shared({ form, chat, maxTokens }: Options<object>) {
  return {
    ...(form === undefined ? {} : { form }),
    ...(chat === undefined ? {} : { chat }),
    ...(maxTokens === undefined ? {} : { maxTokens }),
  }
}
