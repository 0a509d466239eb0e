import { ZipCacheError } from '../errors.js'
import { copyPages, type Device, type DType, type Tensor, tensorBytes } from '../ops/index.js'
import type { CacheDemand } from './cache-demand.js'
import { type KvShape, pageBytes, paramsBytes } from './format.js'
import { PagePool, superblockBytesOf } from './page-pool.js'
import { type ProbeShape, ProbeSlots, probeSlotBytes } from './probe-slots.js'
import type { StateShape } from './recurrent-state.js'
import { TableArena } from './table-arena.js'

/**
 * Probe rows that all running windows together may keep: 409 windows of ten, or what fits into a
 * sixteenth of the pool, since a GPU gives the memory at once; 64 windows, a full batch, at least.
 */
const MAX_PROBE_SLOTS = 4096
const MIN_PROBE_SLOTS = 640

/**
 * All memory that the caches of one engine live in: pages, their tables, and the probe rows of
 * running windows.
 */
export class CacheMemory {
  readonly device: Device
  /** The heads that are cached, of layers whose heads are alike. */
  readonly shapes: readonly KvShape[]
  /** Null: the model has no recurrent layers. */
  readonly stateShape: StateShape | null
  readonly pool: PagePool
  readonly tables: TableArena
  readonly probes: ProbeSlots
  #rowBytes = 0

  /** Throws `ERR_ZC_OUT_OF_MEMORY` when the memory cannot be had. */
  constructor(
    device: Device,
    shapes: readonly (ProbeShape & KvShape)[],
    capacityBytes: number,
    stateShape: StateShape | null = null,
  ) {
    this.device = device
    this.shapes = shapes.map(({ nLayers, nKvHeads, headDim, slidingWindow }) => ({
      ...{ nLayers, nKvHeads, headDim, slidingWindow },
    }))
    this.stateShape = stateShape
    const largestPage = Math.max(
      stateShape?.convBytes ?? 0,
      stateShape?.headBytes ?? 0,
      ...shapes.map(({ headDim }) => pageBytes('f32', 'f32', headDim)),
    )
    this.pool = new PagePool(device, capacityBytes, superblockBytesOf(capacityBytes, largestPage))
    let tables: TableArena | undefined
    try {
      const least = Math.min(...shapes.map(({ headDim }) => headDim))
      tables = new TableArena(device, tableWordsOf(capacityBytes, least))
      this.tables = tables
      const fitting = Math.floor(capacityBytes / 16 / probeSlotBytes(shapes))
      const nSlots = Math.max(MIN_PROBE_SLOTS, Math.min(MAX_PROBE_SLOTS, fitting))
      this.probes = new ProbeSlots(device, shapes, nSlots)
    } catch (error) {
      this.pool.dispose()
      tables?.dispose()
      throw error
    }
  }

  /** Bytes given out: pages, tables, probe rows, and tensors of `rowTensor`. */
  get usedBytes(): number {
    return this.pool.usedBytes + this.tables.usedBytes + this.probes.usedBytes + this.#rowBytes
  }

  /** Whether all that is wanted can be given out beside what is. */
  hasRoomFor({ bytes, pages, probeSlots }: CacheDemand): boolean {
    const wanted = bytes + probeSlots * this.probes.slotBytes
    return (
      this.usedBytes + wanted <= this.capacityBytes &&
      this.pool.hasRoomFor(pages) &&
      probeSlots <= this.probes.nFree
    )
  }

  /** Whether the bytes and pages that are wanted could be given out if nothing else were. */
  canHold({ bytes, pages }: CacheDemand): boolean {
    return bytes <= this.capacityBytes && this.pool.canHold(pages)
  }

  /**
   * A tensor for rows that lie in no page. It is not the pool's memory, but counts against its
   * capacity.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY`.
   */
  rowTensor<D extends DType>(dtype: D, shape: readonly number[]): Tensor<D> {
    const bytes = tensorBytes(dtype, shape)
    if (this.usedBytes + bytes > this.capacityBytes) {
      throw new ZipCacheError(
        'ERR_ZC_OUT_OF_MEMORY',
        `kvMemory: ${this.usedBytes} of ${this.capacityBytes} bytes of the cache are in use, and ${bytes} more are needed`,
        { argument: 'kvMemory' },
      )
    }
    const tensor = this.device.tensor(dtype, shape)
    this.#rowBytes += bytes
    return tensor
  }

  /**
   * Copies pages of one size.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY`.
   */
  copyPages(from: Int32Array, to: Int32Array, pageBytes: number): void {
    const tensors: Tensor[] = []
    try {
      for (const pages of [from, to]) tensors.push(this.device.from(pages, [pages.length], 'i32'))
      const [fromTensor, toTensor] = tensors as [Tensor, Tensor]
      copyPages({ pool: this.pool.memory, from: fromTensor, to: toTensor, pageBytes })
    } finally {
      for (const tensor of tensors) tensor.dispose()
    }
  }

  /** Takes back what `rowTensor` gave. */
  freeRows(tensor: Tensor): void {
    this.#rowBytes -= tensor.sizeBytes
    tensor.dispose()
  }

  get capacityBytes(): number {
    return this.pool.capacityBytes
  }

  dispose(): void {
    this.pool.dispose()
    this.tables.dispose()
    this.probes.dispose()
  }
}

/**
 * Words of tables that a full pool can need: at worst it is full of segments of one page, of the
 * fewest bits, each of which takes ten words and one for the page. Twice that, since tables grow in
 * steps and leave gaps, and 4 MiB for sequences that hold nothing yet.
 */
function tableWordsOf(capacityBytes: number, headDim: number): number {
  const segmentBytes = pageBytes('u2', 'u2', headDim) + paramsBytes(headDim)
  return (1 << 20) + Math.ceil((2 * 11 * capacityBytes) / segmentBytes)
}
