import { ApiError } from './api-error.js'

/** No request nests deeper, and code that walks through it would run out of stack. */
const MAX_DEPTH = 64

/**
 * The JSON of a request's body.
 *
 * Throws an `ApiError` 400 for bytes that are no UTF-8 or no JSON, or that nest too deeply.
 */
export function parseJsonBody(bytes: Buffer): unknown {
  let text: string
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch (cause) {
    throw refuse('the body is no UTF-8', cause)
  }
  // Before it is parsed: how deep its brackets go, those in texts aside.
  if (depthOf(text) > MAX_DEPTH) throw refuse(`the body nests deeper than ${MAX_DEPTH}`)
  try {
    return JSON.parse(text)
  } catch (cause) {
    throw refuse('the body is no JSON', cause)
  }
}

function refuse(message: string, cause?: unknown): ApiError {
  return new ApiError(400, message, { code: 'invalid_body', cause })
}

function depthOf(text: string): number {
  let depth = 0
  let deepest = 0
  let inText = false
  for (let i = 0; i < text.length; i++) {
    const character = text[i]
    if (inText) {
      if (character === '\\') i++
      else if (character === '"') inText = false
    } else if (character === '"') inText = true
    else if (character === '{' || character === '[') deepest = Math.max(deepest, ++depth)
    else if (character === '}' || character === ']') depth--
  }
  return deepest
}
