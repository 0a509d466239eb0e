import { readFile } from 'node:fs/promises'
import { addAbortSignal } from 'node:stream'
import { text as readText } from 'node:stream/consumers'
import { type Command, Option } from 'commander'
import type { Model } from '../engine/model.js'
import { ZipCacheError } from '../errors.js'
import type { PolicySpec } from '../policy/index.js'
import {
  addModelOptions,
  decimal,
  integer,
  list,
  type ModelOptions,
  policyName,
  seed,
} from './options.js'
import { print, printJson, say } from './output.js'
import { formatBytes, formatRatio } from './table.js'
import { withModel } from './with-model.js'

interface GenerateCommandOptions extends ModelOptions {
  readonly model: string
  readonly prompt?: string
  readonly promptFile?: string
  readonly ids?: number[]
  readonly chat?: boolean
  readonly maxTokens: number
  readonly temperature: number
  readonly topK?: number
  readonly topP?: number
  readonly minP?: number
  readonly repetitionPenalty?: number
  readonly seed: number
  readonly stop?: string[]
  readonly ignoreEos?: boolean
  readonly policy: string
  readonly saliencyRatio?: number
  readonly highBits?: number
  readonly lowBits?: number
  readonly window?: number
}

/** `zipcache generate`: a model's continuation of a prompt, streamed. */
export function addGenerateCommand(program: Command, signal: AbortSignal): void {
  const command = program
    .command('generate')
    .description(
      'continue a prompt; without --prompt, --prompt-file or --ids it is read from stdin',
    )
    .requiredOption('--model <dir>', 'Hugging Face model folder')
    .addOption(new Option('--prompt <text>', 'the prompt').conflicts(['promptFile', 'ids']))
    .addOption(
      new Option(
        '--prompt-file <file>',
        'a file with the prompt; its last newline is dropped',
      ).conflicts(['prompt', 'ids']),
    )
    .addOption(
      new Option('--ids <list>', 'the prompt as token ids: 1,2,3')
        .argParser(list(integer(0)))
        .conflicts(['prompt', 'promptFile', 'chat']),
    )
    .option('--chat', "take the prompt as a user's message to the model's chat template")
    .option('--max-tokens <n>', 'end after so many tokens', integer(1), 256)
    .option('--temperature <t>', '0 takes the likeliest token', decimal(0), 0)
    .option('--top-k <n>', 'sample among the n likeliest tokens', integer(1))
    .option('--top-p <p>', 'sample among the likeliest tokens that together have p', decimal(0, 1))
    .option(
      '--min-p <p>',
      "sample among tokens with at least p times the likeliest's",
      decimal(0, 1),
    )
    .option('--repetition-penalty <x>', 'make tokens that were there unlikelier', decimal(0))
    .option('--seed <n>', 'makes other samples', seed, 0)
    .option('--stop <text...>', 'end before any of these texts')
    .option('--ignore-eos', 'do not end at an end-of-text token')
    .option('--policy <name>', 'cache policy', policyName, 'zipcache')
    .option('--saliency-ratio <r>', 'share of tokens kept at high bits', decimal(0, 1))
    .option('--high-bits <n>', 'bits of salient tokens', integer(2, 8))
    .option('--low-bits <n>', 'bits of the other tokens', integer(2, 8))
    .option('--window <n>', 'new tokens kept in 16 bits before they are compressed', integer(1))
  addModelOptions(command).action(async (options: GenerateCommandOptions) => {
    await withModel(options.model, options, signal, (model) => generate(model, options, signal))
  })
}

async function generate(
  model: Model,
  options: GenerateCommandOptions,
  signal: AbortSignal,
): Promise<void> {
  const { json = false } = options
  const prompt = await readPrompt(model, options, signal)
  const sequence = model.createSequence({ policy: policyOf(options), seed: options.seed })
  try {
    const tokens: { id: number; text: string; logprob: number }[] = []
    for await (const token of sequence.generate(prompt, { ...samplingOf(options), signal })) {
      const { id, text, logprob } = token
      tokens.push({ id, text, logprob })
      // A model without a tokenizer has ids only.
      if (!json) print(model.tokenizer === null ? `${tokens.length > 1 ? ' ' : ''}${id}` : text)
    }
    const { bytes } = sequence
    if (json) {
      printJson({ text: tokens.map(({ text }) => text).join(''), tokens, bytes })
      return
    }
    print('\n')
    if (process.stderr.isTTY) {
      const size = `${formatBytes(bytes.resident)}, ${formatRatio(bytes.ratio)} smaller than fp16`
      say(`${tokens.length} tokens; cache ${size}`)
    }
  } finally {
    sequence.dispose()
  }
}

async function readPrompt(
  model: Model,
  options: GenerateCommandOptions,
  signal: AbortSignal,
): Promise<string | number[]> {
  if (options.ids !== undefined) return options.ids
  const text = options.prompt ?? (await readPromptText(options.promptFile, signal))
  if (!options.chat) return text
  if (model.tokenizer === null) {
    throw new ZipCacheError('ERR_ZC_TOKENIZER', '--chat: the model has no tokenizer.json', {
      argument: 'chat',
    })
  }
  const message = { role: 'user', content: text }
  const chat = model.tokenizer.applyChatTemplate([message], { addGenerationPrompt: true })
  return model.tokenizer.encode(chat, { addSpecialTokens: false })
}

async function readPromptText(file: string | undefined, signal: AbortSignal): Promise<string> {
  if (file === undefined && process.stdin.isTTY) say('zipcache: reading the prompt from stdin')
  try {
    const text =
      file === undefined
        ? await readText(addAbortSignal(signal, process.stdin))
        : await readFile(file, { encoding: 'utf8', signal })
    return text.replace(/\r?\n$/, '')
  } catch (cause) {
    signal.throwIfAborted()
    const from = file === undefined ? 'stdin' : `--prompt-file ${file}`
    const why = cause instanceof Error ? cause.message : String(cause)
    throw new ZipCacheError('ERR_ZC_IO', `${from}: cannot be read: ${why}`, { cause })
  }
}

/** The policy alone where nothing else is asked, so that names with bits in them work too. */
function policyOf(options: GenerateCommandOptions): PolicySpec {
  const { policy, saliencyRatio, highBits, lowBits, window } = options
  const given = Object.entries({ saliencyRatio, highBits, lowBits, window }).filter(
    ([, value]) => value !== undefined,
  )
  if (given.length === 0) return policy
  return { name: policy, ...Object.fromEntries(given) } as PolicySpec
}

function samplingOf(options: GenerateCommandOptions) {
  const { maxTokens, temperature, topK, topP, minP, repetitionPenalty, seed, stop } = options
  const { ignoreEos = false } = options
  return { maxTokens, temperature, topK, topP, minP, repetitionPenalty, seed, stop, ignoreEos }
}
