import { thoughtMarks } from '../chat/thoughts.js'
import type { Engine } from '../engine/engine.js'
import { checkModel, createEngine, type Model } from '../engine/model.js'
import { isHarmonyTemplate } from '../model/harmony.js'
import { type ServerOptions, type ServerSettings, samplingOf, settingsOf } from './options.js'
import { OpenAiService, type ServiceObserver } from './service.js'
import { Sessions } from './sessions.js'
import { StoredResponses } from './stored-responses.js'

/** A service with the engine, the conversations and the responses that it answers from. */
export interface Backend {
  readonly service: OpenAiService
  readonly engine: Engine
  readonly sessions: Sessions
  readonly responses: StoredResponses
}

/** Makes a service over an engine of its own. Throws as `createService`. */
export function createBackend(
  model: Model,
  settings: ServerSettings,
  observer: ServiceObserver,
): Backend {
  checkModel(model)
  const { maxPositions } = model.config
  const sessions = new Sessions(settings)
  const responses = new StoredResponses(settings)
  const engine = createEngine({
    model,
    kvMemory: settings.kvMemory ?? model.device.memory.free / 2,
    maxBatch: settings.maxBatch,
    maxQueue: settings.maxQueue,
    prefixMemory: settings.prefixMemory,
    reclaim: () => sessions.evict(),
  })
  const service = new OpenAiService({
    model,
    engine,
    sessions,
    responses,
    chatTemplate: settings.chatTemplate,
    keepsPrefixes: settings.prefixMemory > 0,
    matchesSessions: settings.matchSessions,
    maxPromptTokens: Math.min(settings.maxPromptTokens ?? maxPositions, maxPositions - 1),
    observer,
    rules: {
      policies: { default: settings.policy, allowed: settings.allowedPolicies },
      sampling: samplingOf(settings, model.generationConfig),
      maxTokens: settings.maxTokens ?? maxPositions,
      defaultMaxTokens: settings.defaultMaxTokens ?? answerLength(model, settings),
      promptLookup: settings.promptLookup,
      maxChoices: settings.maxChoices,
      modelNames: settings.modelNames,
    },
  })
  return { service, engine, sessions, responses }
}

/** Tokens of an answer that nobody said the length of: what is promised to it others cannot have. */
function answerLength({ tokenizer }: Model, { chatTemplate }: ServerSettings): number {
  const template = chatTemplate ?? tokenizer?.chatTemplateSource() ?? ''
  return isHarmonyTemplate(template) || thoughtMarks(template) ? 16_384 : 4096
}

const SERVICE_OPTIONS = [
  'allowedPolicies',
  'chatTemplate',
  'defaultMaxTokens',
  'kvMemory',
  'matchSessions',
  'maxBatch',
  'maxChoices',
  'maxPromptTokens',
  'maxQueue',
  'maxSessions',
  'maxTokens',
  'modelNames',
  'policy',
  'prefixMemory',
  'promptLookup',
  'sampling',
  'sessionTtlMs',
] as const satisfies readonly (keyof ServerOptions)[]

/** Settings of `createService`: those of a server that do not concern HTTP. */
export type ServiceOptions = Pick<ServerOptions, (typeof SERVICE_OPTIONS)[number]>

const SILENT: ServiceObserver = {
  begin: () => ({ prompt() {}, token() {}, end() {}, done() {} }),
}

/**
 * OpenAI's API over a model, for a server of one's own: it takes the bodies of requests and gives
 * what is to be sent. It has an engine of its own, which its `dispose` ends; the model stays.
 *
 * Throws as `createEngine`, and `ERR_ZC_ARGUMENT` for an option that is unknown or out of range.
 */
export function createService(model: Model, options: ServiceOptions = {}): OpenAiService {
  return createBackend(model, settingsOf(options, SERVICE_OPTIONS), SILENT).service
}
