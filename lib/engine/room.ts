import type { Scratch } from '../model/scratch.js'
import { convert, type DType, gatherRows, type Tensor } from '../ops/index.js'
import type { NewTensors } from './row-store.js'

/** Work space that the layers use one after another. */
export class Room {
  readonly scratch: Scratch
  readonly #tensors = new Map<string, Tensor>()

  constructor(scratch: Scratch) {
    this.scratch = scratch
  }

  /** The tensor of that name: made once, since all layers are alike. */
  tensor<D extends DType>(name: string, dtype: D, shape: number[]): Tensor<D> {
    let tensor = this.#tensors.get(name)
    if (!tensor) {
      tensor = this.scratch.tensor(dtype, shape)
      this.#tensors.set(name, tensor)
    }
    return tensor as Tensor<D>
  }
}

/**
 * Rows of each KV head, its own, in 16 bits and side by side: row r of head h of what is made is row
 * `rowsOfHead[h][r]`, of K and of V, (n, n_kv_heads, head_dim) each.
 *
 * - `k`, `v` (rows, n_kv_heads, head_dim)
 * - `rowsOfHead` (n_kv_heads) n rows each
 */
export function gatherHeads(
  k: Tensor,
  v: Tensor,
  rowsOfHead: readonly Int32Array[],
  tensors: NewTensors,
  room: Room,
): { k: Tensor<'f16'>; v: Tensor<'f16'> } {
  const [, nKvHeads, headDim] = k.shape as [number, number, number]
  const n = rowsOfHead[0]?.length ?? 0
  const places = new Int32Array(nKvHeads * n)
  for (const [head, rows] of rowsOfHead.entries()) {
    rows.forEach((row, r) => {
      places[r * nKvHeads + head] = row * nKvHeads + head
    })
  }
  const rows = room.tensor('places', 'i32', [places.length]).write(places)
  const gathered = (from: Tensor) => {
    const out = tensors.make('f16', [n, nKvHeads, headDim])
    const picked = room.tensor('picked', from.dtype, [places.length, headDim])
    const flat = room.scratch.keep(from.view([from.length / headDim, headDim]))
    gatherRows({ x: flat, rows, out: picked })
    convert({ x: picked, out: room.scratch.keep(out.view([places.length, headDim])) })
    return out
  }
  return { k: gathered(k), v: gathered(v) }
}
