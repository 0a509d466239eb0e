import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { loadModel, type Model } from '../../lib/index'
import { byteLevelTokenizer } from '../model/tokenizer-files'
import { kFixtures } from './model-copies'

/** The id of the first of the special tokens that `loadMarked` adds; the others follow. */
export const kFirstMark = 302

/** A model with these special tokens; weights, and so what it says, are any. */
export async function loadMarked(marks: readonly string[]): Promise<Model> {
  const folder = mkdtempSync(join(tmpdir(), 'zipcache-marked-'))
  for (const name of ['config.json', 'model.safetensors']) {
    copyFileSync(join(kFixtures, 'llama', name), join(folder, name))
  }
  const json = byteLevelTokenizer()
  const added = json.added_tokens as Record<string, unknown>[]
  for (const [i, content] of marks.entries()) {
    added.push({ ...added[0], id: kFirstMark + i, content })
  }
  writeFileSync(join(folder, 'tokenizer.json'), JSON.stringify(json))
  try {
    return await loadModel(folder, { threads: 1, kvMemory: 2 ** 26 })
  } finally {
    rmSync(folder, { recursive: true })
  }
}
