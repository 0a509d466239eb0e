/**
 * zipcache/server: OpenAI's API over a compressed cache, as a server of its own (`Server`), or inside
 * of another one (`createService`).
 */
export { ApiError, type ApiErrorFields, type ErrorBody, toApiError } from './api-error.js'
export { createService, type ServiceOptions } from './backend.js'
export type { Usage } from './generation.js'
export { LOG_LEVELS, type LogLevel, type ServerOptions } from './options.js'
export type { PageExample } from './page.js'
export type { ResponseEvent } from './response-answer.js'
export { Server, type ServerState } from './server.js'
export {
  type Answer,
  type Call,
  type EventsAnswer,
  OpenAiService,
  type ResponsesAnswer,
  type StreamedAnswer,
  type WholeAnswer,
} from './service.js'
export type { SessionName } from './sessions.js'
