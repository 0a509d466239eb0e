// How many steps JSON by a schema takes, since names and signs are drafted: for answers that are spelled as the
// tokenizer of a model spells them. Nothing is computed, the folder's tokenizer.json is all that is read.
//   npm run bench:json-drafts -- --model DIR
import { createRequire } from 'node:module'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { root, setup } from '../scripts/setup.mjs'

const text = { type: 'string' }
const whole = { type: 'integer' }
const number = { type: 'number' }
const list = (items) => ({ type: 'array', items })
const object = (properties, required = Object.keys(properties)) => ({
  type: 'object',
  properties,
  required,
  additionalProperties: false,
})

/** [what it is, schema, answer] */
const kAnswers = [
  [
    'a person',
    object({ name: text, age: whole, email: text, city: text }),
    { name: 'Ada Lovelace', age: 36, email: 'ada@example.org', city: 'London' },
  ],
  [
    'a call',
    object({
      name: { const: 'get_current_weather' },
      arguments: object({ location: text, unit: { enum: ['celsius', 'fahrenheit'] } }),
    }),
    { name: 'get_current_weather', arguments: { location: 'Boston, MA', unit: 'fahrenheit' } },
  ],
  [
    'a judgement',
    object({
      sentiment: { enum: ['positive', 'negative', 'neutral'] },
      confidence: number,
      reason: text,
    }),
    {
      sentiment: 'negative',
      confidence: 0.83,
      reason: 'The customer waited three weeks for a refund and was not answered.',
    },
  ],
  [
    'an invoice',
    object({
      invoice_number: text,
      issued_on: text,
      currency: { enum: ['EUR', 'USD'] },
      items: list(object({ description: text, quantity: whole, unit_price: number })),
      total_amount: number,
      is_paid: { type: 'boolean' },
    }),
    {
      invoice_number: '2024-118',
      issued_on: '2024-05-02',
      currency: 'EUR',
      items: [
        { description: 'Paper, A4', quantity: 20, unit_price: 3.5 },
        { description: 'Toner, black', quantity: 2, unit_price: 59.9 },
      ],
      total_amount: 189.8,
      is_paid: false,
    },
  ],
  [
    'a proof',
    object({ steps: list(object({ explanation: text, output: text })), final_answer: text }),
    {
      steps: [
        { explanation: 'Subtract 7 from both sides.', output: '8x = -30' },
        { explanation: 'Divide both sides by 8.', output: 'x = -15/4' },
      ],
      final_answer: 'x = -15/4',
    },
  ],
  [
    'names that may be missing',
    object({ title: text, subtitle: text, year: whole, publisher: text }, []),
    { title: 'Faust', year: 1808, publisher: 'Cotta' },
  ],
]

/** How an answer may be laid out. */
const kLayouts = {
  'in a line': inOneLine,
  compact: (value) => JSON.stringify(value),
  'in lines': (value) => JSON.stringify(value, null, 2),
}

const { values } = parseArgs({ options: { model: { type: 'string' } } })
if (!values.model) throw new Error('--model DIR is missing: a folder with a tokenizer.json')

await setup()
const require = createRequire(import.meta.url)
const fromDist = (name) => require(path.join(root, 'dist', name))
const { loadTokenizer } = fromDist('model/tokenizer.js')
const { sharedGrammar, TokenMasker, TokenTrie } = fromDist('grammar')
const { DraftLength, MOST_DRAFTED } = fromDist('engine/drafts.js')

const tokenizer = await loadTokenizer(values.model)
if (!tokenizer) throw new Error(`${values.model} has no tokenizer.json`)
const kMostTokens = 1 << 19
const vocabulary = {
  trie: new TokenTrie(kMostTokens, (id) => tokenizer.bytesOf(id)),
  encode: (text) => tokenizer.encode(text, { addSpecialTokens: false }),
}

const say = (...cells) => process.stdout.write(`| ${cells.join(' | ')} |\n`)
say('answer', ...Object.keys(kLayouts).map((name) => `${name}: tokens a step`))
say('---', ...Object.keys(kLayouts).map(() => '---:'))
for (const [name, schema, answer] of kAnswers) {
  const cells = Object.values(kLayouts).map((layout) => {
    const ids = vocabulary.encode(layout(answer))
    const { nSteps, nDrafted } = stepsOf(schema, ids)
    const nAfter = ids.length - 1
    const perStep = (nAfter / nSteps).toFixed(2)
    return `${perStep} (${nAfter} in ${nSteps}; ${nAfter - nSteps} of ${nDrafted} drafted were right)`
  })
  say(name, ...cells)
}

/** Steps of an answer behind its first token, which comes from the prompt. */
function stepsOf(schema, ids) {
  const masker = new TokenMasker(sharedGrammar(schema), vocabulary, new Set())
  for (const _ of masker.prepare()); // makes the trie
  masker.accept(ids[0])
  const length = new DraftLength(MOST_DRAFTED)
  let nSteps = 0
  let nDrafted = 0
  for (let at = 1; at < ids.length; nSteps++) {
    const drafted = masker.likely().slice(0, length.value)
    let nRight = 0
    while (nRight < drafted.length && drafted[nRight] === ids[at + nRight]) nRight++
    if (drafted.length > 0) length.judge(drafted.length, nRight)
    nDrafted += drafted.length
    const end = Math.min(at + nRight + 1, ids.length)
    while (at < end) masker.accept(ids[at++])
  }
  return { nSteps, nDrafted }
}

/** As Python's json.dumps writes it. */
function inOneLine(value) {
  if (Array.isArray(value)) return `[${value.map(inOneLine).join(', ')}]`
  if (typeof value !== 'object') return JSON.stringify(value)
  const pairs = Object.entries(value).map(([name, one]) => `"${name}": ${inOneLine(one)}`)
  return `{${pairs.join(', ')}}`
}
