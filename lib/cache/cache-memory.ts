import type { Device } from '../ops/index.js'
import type { KvShape } from './kv-cache.js'
import { PagePool } from './page-pool.js'
import { type ProbeShape, ProbeSlots } from './probe-slots.js'
import { TableArena } from './table-arena.js'

/** Probe rows that all running windows together may keep: 409 windows of ten. */
const PROBE_SLOTS = 4096

/**
 * All memory that the caches of one engine live in: pages, their tables, and the probe rows of
 * running windows.
 */
export class CacheMemory {
  readonly device: Device
  readonly shape: KvShape
  readonly pool: PagePool
  readonly tables: TableArena
  readonly probes: ProbeSlots

  /** Throws `ERR_ZC_OUT_OF_MEMORY` when the address space cannot be had. */
  constructor(device: Device, probeShape: ProbeShape & KvShape, capacityBytes: number) {
    const { nLayers, nKvHeads, headDim } = probeShape
    this.device = device
    this.shape = { nLayers, nKvHeads, headDim }
    this.pool = new PagePool(device, capacityBytes)
    try {
      // The smallest page takes 128 bytes and a word of a table, a segment of one page ten words
      // and its parameters: tables never need a quarter of the pool.
      this.tables = new TableArena(device, Math.max(1 << 20, Math.ceil(capacityBytes / 16)))
      this.probes = new ProbeSlots(device, probeShape, PROBE_SLOTS)
    } catch (error) {
      this.pool.dispose()
      throw error
    }
  }

  /** Bytes given out: pages, tables and probe rows. */
  get usedBytes(): number {
    return this.pool.usedBytes + this.tables.usedBytes + this.probes.usedBytes
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
