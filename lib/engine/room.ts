import type { Scratch } from '../model/scratch.js'
import { convert, type DType, gatherRows, type Tensor } from '../ops/index.js'

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
 * Copies rows of each KV head, its own, to lie side by side: row r of head h of `out` is row
 * `rowsOfHead[h][r]` of `from`.
 *
 * - `from` (rows, n_kv_heads, head_dim)
 * - `out` (n, n_kv_heads, head_dim), the same for all
 */
export function gatherHeads(
  copies: readonly { readonly from: Tensor; readonly out: Tensor<'f16'> }[],
  rowsOfHead: readonly Int32Array[],
  room: Room,
): void {
  const nKvHeads = rowsOfHead.length
  const places = new Int32Array(nKvHeads * (rowsOfHead[0]?.length ?? 0))
  for (const [head, rows] of rowsOfHead.entries()) {
    rows.forEach((row, r) => {
      places[r * nKvHeads + head] = row * nKvHeads + head
    })
  }
  const rows = room.tensor('places', 'i32', [places.length]).write(places)
  for (const { from, out } of copies) {
    const headDim = out.shape[2] as number
    const picked = room.tensor('picked', from.dtype, [places.length, headDim])
    const flat = room.scratch.keep(from.view([from.length / headDim, headDim]))
    gatherRows({ x: flat, rows, out: picked })
    convert({ x: picked, out: room.scratch.keep(out.view([places.length, headDim])) })
  }
}
