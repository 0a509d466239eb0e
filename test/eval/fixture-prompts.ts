import { readFileSync } from 'node:fs'
import { join } from 'node:path'

const kRoot = join(__dirname, '..', '..')

/** A line of test/fixtures/prompts.jsonl, made by the generator the models were trained with. */
export interface FixturePrompt {
  lines: number
  ids: number[]
  answer_ids: number[]
  number: string
  target_line: number
}

export function readFixturePrompts(): FixturePrompt[] {
  return readFileSync(join(kRoot, 'test', 'fixtures', 'prompts.jsonl'), 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line))
}

/** Words of the trained models' vocabulary, by id. */
export function readVocabulary(): string[] {
  const path = join(kRoot, 'models', 'line-retrieval', 'tokenizer.json')
  const vocab: Record<string, number> = JSON.parse(readFileSync(path, 'utf8')).model.vocab
  return Object.entries(vocab)
    .sort(([, a], [, b]) => a - b)
    .map(([word]) => word)
}
