/** A model that says what a test wants it to, token by token, with a real tokenizer and template. */
import type { Engine } from '../../lib/engine/engine'
import type { GenerateOptions } from '../../lib/engine/generation'
import type { Model } from '../../lib/engine/model'
import type { PromptCourse, Sequence } from '../../lib/engine/sequence'
import { TextStream } from '../../lib/model/text-stream'
import { loadTokenizer, type ModelTokenizer } from '../../lib/model/tokenizer'
import { Server, type ServerOptions } from '../../lib/server/index'
import { ModelFolders } from '../model/model-folder'
import { byteLevelTokenizer } from '../model/tokenizer-files'

const folders = new ModelFolders()
afterAll(() => folders.remove())

const kBytes = {
  resident: 100,
  fp16: 400,
  byClass: { high: 60, low: 40, tail: 0, params: 0, bitmaps: 0, tables: 0, probes: 0, states: 0 },
}

/** A byte-level tokenizer with a chat template, and these special tokens from id 302 on. */
export async function tokenizerWith(
  chat_template: string,
  specials: readonly string[] = [],
): Promise<ModelTokenizer> {
  const json = byteLevelTokenizer()
  const added = json.added_tokens as Record<string, unknown>[]
  for (const [i, content] of specials.entries()) added.push({ ...added[0], id: 302 + i, content })
  const dir = folders.write({ 'tokenizer.json': json, 'tokenizer_config.json': { chat_template } })
  return (await loadTokenizer(dir)) as ModelTokenizer
}

/** What the next generation says, and the error that it ends with, if any; default reason: stop. */
export interface Script {
  say: string
  fail?: Error
  finishReason?: 'stop' | 'length'
}

/**
 * A server whose model follows `script.next`; `prompts` are what it was asked, as texts, `asked` how,
 * `said` how many tokens were taken of it, `open` the sequences that were not disposed of.
 */
export async function startScripted(tokenizer: ModelTokenizer, options: ServerOptions = {}) {
  const script: { next: Script } = { next: { say: '' } }
  const prompts: string[] = []
  const asked: GenerateOptions[] = []
  const said = { count: 0 }
  const shape = { nLayers: 1, nKvHeads: 1, headDim: 4, slidingWindow: [0] }
  const layers = { recurrence: null, globalHeads: null, kvSources: [0] }
  const config = { maxPositions: 2 ** 15, vocabSize: 400, ...shape, ...layers }
  const open = new Set<object>()
  const createSequence = (past: readonly number[] = []): object => {
    const sequence = makeSequence([...past])
    open.add(sequence)
    return sequence
  }
  const makeSequence = (tokens: number[]) => ({
    tokens,
    policy: { name: 'zipcache' },
    isUsable: true,
    bytes: kBytes,
    bytesHeld: kBytes,
    get finishReason() {
      return script.next.finishReason ?? 'stop'
    },
    dispose() {
      open.delete(this)
    },
    async prefill(ids: readonly number[]) {
      tokens.push(...ids)
    },
    fork: () => createSequence(tokens),
    async *generate(
      ids: readonly number[] | null,
      options: GenerateOptions,
      { places = [] }: PromptCourse,
    ) {
      const rest = [...(ids ?? [])]
      for (const { nBehind, reached } of places) {
        tokens.push(...rest.splice(0, rest.length - nBehind))
        reached(this as unknown as Sequence)
      }
      tokens.push(...rest)
      prompts.push(tokenizer.decode(tokens))
      asked.push(options)
      said.count = 0
      const { next } = script
      const stream = new TextStream(tokenizer, { skip: tokenizer.specialIds })
      for (const id of tokenizer.encode(next.say, { addSpecialTokens: false })) {
        said.count++
        tokens.push(id)
        yield { id, text: stream.push(id), logprob: -1 }
      }
      if (next.fail) throw next.fail
    },
  })
  const engine = {
    createSequence: () => createSequence(),
    dispose: async () => {},
    kvMemory: { used: 0, capacity: 1 },
  }
  const model = {
    config,
    tokenizer,
    device: { memory: { free: 2 ** 30 } },
    createEngine: () => engine as unknown as Engine,
  }
  const server = new Server({ port: 0, logLevel: 'silent', ...options })
  const url = await server.listen()
  server.serve(model as unknown as Model)
  return { url, server, script, prompts, asked, said, open }
}
