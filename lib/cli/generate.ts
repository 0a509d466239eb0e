import type { Command } from 'commander'
import { answerReader } from '../chat/answer-reader.js'
import type { Model } from '../engine/model.js'
import { exampleModel } from '../model/example-model.js'
import type { PolicySpec } from '../policy/index.js'
import { policyLabel } from '../policy/policy-label.js'
import {
  addModelOptions,
  decimal,
  integer,
  type ModelOptions,
  policySpec,
  seed,
} from './options.js'
import { print, printJson, say } from './output.js'
import { addPromptOptions, type PromptOptions, readPrompt } from './prompt-input.js'
import { formatBytes, formatRatio } from './table.js'
import { withModel } from './with-model.js'

interface GenerateCommandOptions extends ModelOptions, PromptOptions {
  readonly model?: string
  readonly maxTokens: number
  readonly temperature: number
  readonly topK?: number
  readonly topP?: number
  readonly minP?: number
  readonly repetitionPenalty?: number
  readonly seed: number
  readonly promptLookup?: number
  readonly stop?: string[]
  readonly ignoreEos?: boolean
  readonly policy: PolicySpec
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
    .option('--model <dir>', 'model folder (default: the one that comes with the package)')
  addPromptOptions(command)
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
    .option(
      '--prompt-lookup <n>',
      'draft up to n tokens of a step from the text so far',
      integer(0),
    )
    .option('--stop <text...>', 'end before any of these texts')
    .option('--ignore-eos', 'do not end at an end-of-text token')
    .option('--policy <spec>', 'a cache policy: its name, or a JSON object', policySpec, 'zipcache')
    .option('--saliency-ratio <r>', 'share of tokens kept at high bits', decimal(0, 1))
    .option('--high-bits <n>', 'bits of salient tokens', integer(2, 8))
    .option('--low-bits <n>', 'bits of the other tokens', integer(2, 8))
    .option('--window <n>', 'new tokens kept in 16 bits before they are compressed', integer(1))
  addModelOptions(command).action(async (options: GenerateCommandOptions) => {
    const { model: dir = exampleModel() } = options
    await withModel(dir, options, signal, (model) =>
      generate(model, { ...options, model: dir }, signal),
    )
  })
}

async function generate(
  model: Model,
  options: GenerateCommandOptions & { model: string },
  signal: AbortSignal,
): Promise<void> {
  const { json = false } = options
  const prompt = await readPrompt(model, options, signal)
  const policy = policyOf(options)
  const sequence = model.createSequence({ policy, seed: options.seed })
  try {
    const tokens: { id: number; text: string; logprob: number }[] = []
    const { stop, ignoreEos, ...sampling } = samplingOf(options)
    const reader = readerOf(model, prompt, options)
    const ends = reader
      ? { ignoreEos, stopTokens: ignoreEos ? [] : reader.stopTokens }
      : { ignoreEos, stop }
    for await (const token of sequence.generate(prompt, { ...sampling, ...ends, signal })) {
      const { id, text, logprob } = token
      tokens.push({ id, text, logprob })
      const said = reader ? reader.push(token) : text
      // A model without a tokenizer has ids only.
      if (!json) print(model.tokenizer === null ? `${tokens.length > 1 ? ' ' : ''}${id}` : said)
      if (reader?.isStopped) break
    }
    const { bytes } = sequence
    const finishReason = reader?.isStopped ? 'stop' : sequence.finishReason
    const rest = reader?.end(finishReason === 'length') ?? ''
    if (json) {
      const text = reader ? reader.text : tokens.map((token) => token.text).join('')
      printJson({
        ...{ schema: 'zipcache-generate-1', model: options.model, policy: policyLabel(policy) },
        ...(reader ? { reasoning: reader.reasoning } : {}),
        ...{ text, finishReason, tokens, bytes },
      })
      return
    }
    print(rest)
    print('\n')
    if (reader?.reasoning && reader.text.trim() === '') {
      const why = finishReason === 'length' ? '; --max-tokens leaves it more room' : ''
      say(
        `zipcache: it has said nothing: ${tokens.length} tokens of thoughts, --json has them${why}`,
      )
    }
    if (process.stderr.isTTY) {
      const size = `${formatBytes(bytes.resident)}, ${formatRatio(bytes.ratio)} smaller than fp16`
      say(`${tokens.length} tokens; cache ${size}`)
    }
  } finally {
    sequence.dispose()
  }
}

/** Tells a chat's thoughts from what it says; null where nothing is to be told apart. */
function readerOf(
  { tokenizer }: Model,
  prompt: string | number[],
  { chat, stop }: GenerateCommandOptions,
) {
  const isChat = chat && tokenizer && typeof prompt !== 'string'
  return isChat ? answerReader(tokenizer, prompt, stop ?? []) : null
}

/** The policy as it was given, with what else was asked of it. */
function policyOf(options: GenerateCommandOptions): PolicySpec {
  const { policy, saliencyRatio, highBits, lowBits, window } = options
  const given = Object.entries({ saliencyRatio, highBits, lowBits, window }).filter(
    ([, value]) => value !== undefined,
  )
  if (given.length === 0) return policy
  const spec = typeof policy === 'string' ? { name: policy } : policy
  return { ...spec, ...Object.fromEntries(given) } as PolicySpec
}

function samplingOf(options: GenerateCommandOptions) {
  const { maxTokens, temperature, topK, topP, minP, repetitionPenalty, seed, stop } = options
  const { ignoreEos = false, promptLookup } = options
  const sampled = { maxTokens, temperature, topK, topP, minP, repetitionPenalty, seed }
  return { ...sampled, promptLookup, stop, ignoreEos }
}
