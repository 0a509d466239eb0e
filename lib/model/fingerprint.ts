import { createHash } from 'node:crypto'
import type { Tensor } from '../ops/index.js'
import type { ForwardModel } from './forward.js'

/** Elements of a weight that are looked at, from its beginning and from its end. */
const SAMPLE = 512

/**
 * What tells models apart: a SHA-256 over the configuration, the compute type, and each weight's
 * type, shape, first and last elements. Models that were trained differently differ everywhere.
 */
export async function fingerprintOf(model: ForwardModel): Promise<string> {
  const { config, dtype, weights } = model
  const hash = createHash('sha256').update(JSON.stringify({ config, dtype }))
  const all: [string, Tensor][] = [
    ['embedding', weights.embedding],
    ['norm', weights.norm],
    ['lmHead', weights.lmHead],
  ]
  weights.layers.forEach((layer, index) => {
    for (const [role, tensor] of Object.entries(layer)) all.push([`${index}.${role}`, tensor])
  })
  for (const [name, tensor] of all) {
    hash.update(`\n${name} ${tensor.dtype} ${tensor.shape.join('x')}\n`)
    const n = Math.min(SAMPLE, tensor.length)
    for (const offset of [0, tensor.length - n]) {
      const view = tensor.view([n], offset)
      try {
        const { buffer, byteOffset, byteLength } = await view.read()
        hash.update(new Uint8Array(buffer, byteOffset, byteLength))
      } finally {
        view.dispose()
      }
    }
  }
  return hash.digest('hex')
}
