import { invalid } from './api-error.js'
import { describe, Fields, type JsonObject } from './fields.js'
import type { Item } from './response-items.js'
import { inputItemId, type StoredResponse } from './stored-responses.js'

/** As OpenAI has it. */
const MOST_ITEMS = 100
const USUAL_ITEMS = 20

/**
 * `GET /v1/responses/:id/input_items`: a page of what was said before a response, with `previous_response_id`
 * all of the conversation. The newest first, unless `order` is `asc`.
 *
 * Throws an `ApiError` 400 that names the field of `query`.
 */
export function inputItems(id: string, stored: StoredResponse, query: JsonObject): object {
  const fields = new Fields(query)
  const order = fields.choice('order', ['asc', 'desc']) ?? 'desc'
  const limit = readLimit(fields.raw('limit'))
  const after = fields.raw('after')
  const { conversation, nOutput } = stored
  const input = conversation.slice(0, conversation.length - nOutput)
  const all = input.map((item, i) => itemObject(item, inputItemId(kindOf(item), id, i)))
  if (order === 'desc') all.reverse()
  const before = after === undefined ? -1 : all.findIndex((item) => item.id === after)
  if (after !== undefined && before < 0) {
    throw invalid('after', `is ${describe(after)}, expected the id of an item`)
  }
  const data = all.slice(before + 1, before + 1 + limit)
  return {
    object: 'list',
    data,
    first_id: data[0]?.id ?? null,
    last_id: data.at(-1)?.id ?? null,
    has_more: before + 1 + limit < all.length,
  }
}

function readLimit(value: unknown): number {
  if (value === undefined) return USUAL_ITEMS
  const limit = typeof value === 'string' && /^\d{1,3}$/.test(value) ? Number(value) : 0
  if (limit >= 1 && limit <= MOST_ITEMS) return limit
  throw invalid('limit', `is ${describe(value)}, expected a whole number of 1 to ${MOST_ITEMS}`)
}

function kindOf({ kind }: Item): 'msg' | 'rs' | 'fc' | 'fco' {
  return ({ message: 'msg', reasoning: 'rs', call: 'fc', result: 'fco' } as const)[kind]
}

function itemObject(item: Item, id: string): JsonObject & { id: string } {
  const status = 'completed'
  switch (item.kind) {
    case 'message': {
      const { role, text } = item
      const own = { type: 'output_text', text, annotations: [], logprobs: [] }
      const content = [role === 'assistant' ? own : { type: 'input_text', text }]
      return { id, type: 'message', status, role, content }
    }
    case 'reasoning': {
      const content = [{ type: 'reasoning_text', text: item.text }]
      return { id, type: 'reasoning', status, summary: [], content }
    }
    case 'call': {
      const { id: call_id, name, arguments: args } = item
      return { id, type: 'function_call', status, call_id, name, arguments: JSON.stringify(args) }
    }
    case 'result':
      return { id, type: 'function_call_output', status, call_id: item.id, output: item.text }
  }
}
