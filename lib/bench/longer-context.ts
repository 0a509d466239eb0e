import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { readModelConfig } from '../model/config.js'

/**
 * Lends a folder with the model of `dir` that takes at least `positions` positions: `dir` itself
 * where it does, else a copy for the time of `use`, with max_position_embeddings raised.
 *
 * For measuring time alone. What a model writes beyond the positions it was trained on means
 * nothing, but it takes exactly as long.
 */
export async function withLongerContext<T>(
  dir: string,
  positions: number,
  use: (dir: string) => Promise<T>,
): Promise<T> {
  if ((await readModelConfig(dir)).maxPositions >= positions) return use(dir)
  const copy = await mkdtemp(join(tmpdir(), 'zipcache-model-'))
  try {
    await cp(dir, copy, { recursive: true })
    const configFile = join(copy, 'config.json')
    const config = JSON.parse(await readFile(configFile, 'utf8')) as object
    await writeFile(configFile, JSON.stringify({ ...config, max_position_embeddings: positions }))
    return await use(copy)
  } finally {
    await rm(copy, { recursive: true, force: true })
  }
}
