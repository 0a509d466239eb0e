import { readFile } from 'node:fs/promises'
import { addAbortSignal } from 'node:stream'
import { text as readText } from 'node:stream/consumers'
import { type Command, Option } from 'commander'
import type { Model } from '../engine/model.js'
import { reasonOf, ZipCacheError } from '../errors.js'
import { integer, list } from './options.js'
import { say } from './output.js'

/** Where a prompt comes from; from stdin without any of them. */
export interface PromptOptions {
  readonly prompt?: string
  readonly promptFile?: string
  readonly ids?: number[]
  readonly chat?: boolean
}

/** Adds `--prompt`, `--prompt-file`, `--ids` and `--chat` to a command. */
export function addPromptOptions(command: Command): Command {
  return command
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
}

/**
 * The prompt that was asked for.
 *
 * Rejects with `ERR_ZC_IO` where it cannot be read, `ERR_ZC_TOKENIZER` for a chat without a
 * tokenizer.
 */
export async function readPrompt(
  model: Model,
  { ids, prompt, promptFile, chat = false }: PromptOptions,
  signal: AbortSignal,
): Promise<string | number[]> {
  if (ids !== undefined) return ids
  const text = prompt ?? (await readPromptText(promptFile, signal))
  if (!chat) return text
  if (model.tokenizer === null) {
    throw new ZipCacheError('ERR_ZC_TOKENIZER', '--chat: the model has no tokenizer.json', {
      argument: 'chat',
    })
  }
  const message = { role: 'user', content: text }
  const whole = model.tokenizer.applyChatTemplate([message], { addGenerationPrompt: true })
  return model.tokenizer.encode(whole, { addSpecialTokens: false })
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
    throw new ZipCacheError('ERR_ZC_IO', `${from}: cannot be read: ${reasonOf(cause)}`, { cause })
  }
}
