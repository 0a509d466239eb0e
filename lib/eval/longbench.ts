import { readFile } from 'node:fs/promises'
import { basename } from 'node:path'
import { checkBoolean, checkInteger } from '../engine/options.js'
import { argumentError, reasonOf, ZipCacheError } from '../errors.js'
import { toSeed } from '../random.js'
import {
  classification,
  codeSimilarity,
  count as countScore,
  questionF1,
  retrieval,
  rougeL,
} from './longbench-scores.js'
import { chatKey, encodeTurns, expectFits, writeAnswer } from './prompt.js'
import { drawItems, questionSeed } from './questions.js'
import type { Asked, Outcome, Task, TaskSetting } from './task.js'
import { readTaskFile, type TaskLine } from './task-file.js'

/** Settings of the LongBench task. */
export interface LongBenchSpec {
  /** Which task this is. */
  readonly task: 'longbench'
  /** One published JSONL file, named as its data set: `qasper.jsonl`. */
  readonly data: string
  /** The published `dataset2prompt.json`; default our own wording, which scores differently. */
  readonly prompts?: string | undefined
  /** Most tokens of an answer; default the published number of the data set. */
  readonly maxTokens?: number | undefined
  /** Ask through the model's chat template. Default false. */
  readonly chat?: boolean | undefined
}

type Kind = 'question' | 'summary' | 'class' | 'dialogue' | 'retrieval' | 'count' | 'code'

/** Our own wording; `{context}` and `{input}` are the file's fields. */
const kPrompts: Record<Kind, string> = {
  question:
    'Read the text and answer the question in as few words as you can.\n\nText:\n{context}\n\n' +
    'Question: {input}\nAnswer:',
  summary: 'Read the text and write a summary of it. {input}\n\nText:\n{context}\n\nSummary:',
  class: 'Say what kind of question the last one is. Examples come first.\n\n{context}\n{input}',
  dialogue: 'Go on as the examples do.\n\n{context}\n\n{input}',
  retrieval:
    'Here are paragraphs, and then a summary of one of them. Say which one, as "Paragraph 5".\n\n' +
    '{context}\n\nSummary: {input}\n\nThe summary is of',
  count:
    'Some of these paragraphs are repeated. Say how many different ones there are, as a number.\n\n' +
    '{context}\n\nThe number of different paragraphs is',
  code: 'Write the next line of this code.\n{context}{input}Next line:\n',
}

interface DataSet {
  readonly kind: Kind
  readonly maxTokens: number
}

/** The English and code data sets, with the published lengths of their answers. */
const kDataSets: Readonly<Record<string, DataSet>> = {
  narrativeqa: { kind: 'question', maxTokens: 128 },
  qasper: { kind: 'question', maxTokens: 128 },
  multifieldqa_en: { kind: 'question', maxTokens: 64 },
  hotpotqa: { kind: 'question', maxTokens: 32 },
  '2wikimqa': { kind: 'question', maxTokens: 32 },
  musique: { kind: 'question', maxTokens: 32 },
  gov_report: { kind: 'summary', maxTokens: 512 },
  qmsum: { kind: 'summary', maxTokens: 512 },
  multi_news: { kind: 'summary', maxTokens: 512 },
  trec: { kind: 'class', maxTokens: 64 },
  triviaqa: { kind: 'question', maxTokens: 32 },
  samsum: { kind: 'dialogue', maxTokens: 128 },
  passage_count: { kind: 'count', maxTokens: 32 },
  passage_retrieval_en: { kind: 'retrieval', maxTokens: 32 },
  lcc: { kind: 'code', maxTokens: 64 },
  'repobench-p': { kind: 'code', maxTokens: 64 },
}

/** Data sets whose answer is the first line that the model writes. */
const kOneLine = ['trec', 'triviaqa', 'samsum']

interface Item {
  readonly context: string
  readonly input: string
  readonly answers: readonly string[]
  readonly classes: readonly string[]
}

/**
 * One data set of LongBench: the best score against any of a question's answers. Prompts that do not
 * fit lose their middle, as published.
 *
 * Rejects with `ERR_ZC_ARGUMENT` for a setting out of its range and a damaged file, naming its line;
 * `ERR_ZC_UNSUPPORTED` for the Chinese sets, whose scores need a word segmenter; `ERR_ZC_IO`.
 *
 * Source: Bai et al., 2023, https://github.com/THUDM/LongBench.
 */
export async function longBench(spec: LongBenchSpec, setting: TaskSetting): Promise<Task> {
  const { chat = false } = spec
  checkBoolean('chat', chat)
  const { digest, lines } = await readTaskFile(spec.data)
  const name = basename(spec.data).replace(/(_e)?\.jsonl(\.gz)?$/, '')
  const set = kDataSets[name]
  if (set === undefined) {
    throw new ZipCacheError(
      'ERR_ZC_UNSUPPORTED',
      `data: ${spec.data} is of the set ${name}, expected one of ${Object.keys(kDataSets).join(', ')}`,
      { argument: 'data' },
    )
  }
  const maxTokens = checkInteger('maxTokens', spec.maxTokens ?? set.maxTokens, 1, 2 ** 20)
  const template = await promptOf(spec.prompts, name, set.kind)
  const items = lines.map((line) => readItem(line, set.kind))
  const seeds = toSeed(setting.seed)
  const chosen = drawItems(setting, items.length)
  return {
    name: 'longbench',
    facts: { set: name, prompt: spec.prompts === undefined ? 'own' : 'published' },
    key: JSON.stringify([
      'longbench',
      { digest, template, maxTokens, chat: chatKey(setting.tokenizer, chat) },
    ]),
    measure: 'score',
    count: chosen.length,
    question: (index) => ({
      seed: questionSeed(seeds, index),
      ask: (asked) =>
        askItem(asked, items[chosen[index] as number] as Item, {
          ...{ name, kind: set.kind, template, maxTokens, chat },
        }),
    }),
  }
}

async function askItem(
  asked: Asked,
  { context, input, answers, classes }: Item,
  options: { name: string; kind: Kind; template: string; maxTokens: number; chat: boolean },
): Promise<Outcome> {
  const { name, kind, template, maxTokens, chat } = options
  const fields = { context, input }
  const prompt = template.replace(
    /\{(context|input)\}/g,
    (_, key: keyof typeof fields) => fields[key],
  )
  const ids = encodeTurns(asked.tokenizer, [prompt], { chat }).flat()
  const room = asked.model.config.maxPositions - maxTokens
  expectFits(asked.model, maxTokens + 2, 'maxTokens')
  const half = Math.floor(room / 2)
  const fitting = ids.length <= room ? ids : [...ids.slice(0, half), ...ids.slice(-half)]
  await asked.sequence.prefill(fitting, { signal: asked.signal })
  const {
    text: answer,
    said,
    values,
  } = await writeAnswer(asked, {
    maxTokens,
    chat: chat ? fitting : null,
  })
  const judged = kOneLine.includes(name) ? (said.replace(/^\n+/, '').split('\n')[0] ?? '') : said
  const scores = answers.map((truth) => scoreOf(kind, judged, truth, classes))
  return {
    score: Math.max(0, ...scores),
    answer,
    expected: answers[0] ?? null,
    values: { cut: ids.length - fitting.length, ...values },
  }
}

function scoreOf(kind: Kind, answer: string, truth: string, classes: readonly string[]): number {
  switch (kind) {
    case 'question':
      return questionF1(answer, truth)
    case 'summary':
    case 'dialogue':
      return rougeL(answer, truth)
    case 'class':
      return classification(answer, truth, classes)
    case 'retrieval':
      return retrieval(answer, truth)
    case 'count':
      return countScore(answer, truth)
    case 'code':
      return codeSimilarity(answer, truth)
  }
}

function readItem(line: TaskLine, kind: Kind): Item {
  const answers = line.texts('answers')
  if (answers.length === 0) throw line.error("field 'answers' is empty")
  return {
    context: line.text('context'),
    input: line.text('input'),
    answers,
    classes: kind === 'class' ? line.texts('all_classes') : [],
  }
}

async function promptOf(path: string | undefined, name: string, kind: Kind): Promise<string> {
  if (path === undefined) return kPrompts[kind]
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (cause) {
    const message = `prompts: ${path} cannot be read: ${reasonOf(cause)}`
    throw new ZipCacheError('ERR_ZC_IO', message, { argument: 'prompts', cause })
  }
  let prompt: unknown
  try {
    prompt = (JSON.parse(text) as Record<string, unknown>)[name]
  } catch (cause) {
    throw argumentError('prompts', `${path} is no JSON: ${reasonOf(cause)}`, cause)
  }
  if (typeof prompt === 'string' && prompt.includes('{context}')) return prompt
  throw argumentError('prompts', `${path} has no text with {context} for ${name}`)
}
