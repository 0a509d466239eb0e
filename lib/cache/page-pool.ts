import { ZipCacheError } from '../errors.js'
import type { Device, Tensor } from '../ops/index.js'
import { PAGE_UNIT_BYTES } from './format.js'

/**
 * The most bytes that pages of one size claim at a time. Any size can claim any superblock, so no
 * memory is lost to sizes that are no longer used.
 */
export const SUPERBLOCK_BYTES = 256 * 1024

/** Least bytes of the same: a page of 16 tokens of 256 channels in f32. */
const MIN_SUPERBLOCK_BYTES = 2 * 16 * 256 * 4

/** A 64th of a small pool, so that all sizes of page find room in it, the largest at any rate. */
export function superblockBytesOf(capacityBytes: number, largestPage = 0): number {
  const bytes = 2 ** Math.floor(Math.log2(capacityBytes / 64))
  const usual = Math.min(SUPERBLOCK_BYTES, Math.max(MIN_SUPERBLOCK_BYTES, bytes))
  return Math.max(usual, 2 ** Math.ceil(Math.log2(Math.max(1, largestPage))))
}

/**
 * Unclaimed superblocks that keep their memory, 16 MiB in all: each closed window frees some, and to
 * take memory from the system anew costs more than to pack the window.
 */
const MAX_WARM = 64

/** Page addresses are int32 in page tables: 128 GiB of pages. */
const MAX_POOL_BYTES = 2 ** 31 * PAGE_UNIT_BYTES

interface Superblock {
  readonly pageBytes: number
  /** Free slots, the last of them taken first. */
  readonly free: number[]
  readonly nSlots: number
  /** How many caches hold each slot; 0: free. */
  readonly holders: Uint32Array
  /** Where it stands in its size's list of superblocks with free slots; -1 when full. */
  place: number
}

/**
 * Pages of any size out of one stretch of device memory. Freed pages are given out again at once:
 * ops run in the order they were enqueued, so whoever gets a page writes it after the last reader.
 * Sequences that share a past share its pages: a page is free when its last holder frees it.
 * Addresses count units of 64 bytes.
 */
export class PagePool {
  readonly device: Device
  /** (capacity) u8; on the CPU memory stands behind claimed superblocks, and 16 MiB of others at most. */
  readonly memory: Tensor<'u8'>
  readonly capacityBytes: number
  readonly #superblockBytes: number
  #usedBytes = 0
  readonly #superblocks: (Superblock | null)[] = []
  /** The last of them is claimed first. Those from `#coldEnd` on may have memory behind them. */
  readonly #unclaimed: number[] = []
  #coldEnd = 0
  readonly #withFreeSlots = new Map<number, number[]>()

  /** Throws `ERR_ZC_OUT_OF_MEMORY` when the memory cannot be had. */
  constructor(
    device: Device,
    capacityBytes: number,
    superblockBytes = superblockBytesOf(capacityBytes),
  ) {
    this.device = device
    this.#superblockBytes = superblockBytes
    const nSuperblocks = Math.floor(Math.min(capacityBytes, MAX_POOL_BYTES) / superblockBytes)
    this.capacityBytes = nSuperblocks * superblockBytes
    this.memory = device.reserve('u8', [this.capacityBytes])
  }

  /** Bytes of pages that are given out. */
  get usedBytes(): number {
    return this.#usedBytes
  }

  /** Bytes of superblocks that are claimed. */
  get claimedBytes(): number {
    return (this.#superblocks.length - this.#unclaimed.length) * this.#superblockBytes
  }

  /**
   * The address of a free page of so many bytes, a multiple of 64.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY` when the pool is full.
   */
  allocate(bytes: number): number {
    const page = this.#take(bytes)
    if (page < 0) throw this.#fullError(bytes)
    return page
  }

  /** A page; -1 when the pool is full. */
  #take(bytes: number): number {
    const open = this.#openList(bytes)
    const index = open.at(-1) ?? this.#claim(bytes, open)
    if (index < 0) return -1
    const block = this.#superblocks[index] as Superblock
    const slot = block.free.pop() as number
    block.holders[slot] = 1
    if (block.free.length === 0) this.#close(block, open)
    this.#usedBytes += bytes
    return (index * this.#superblockBytes + slot * bytes) / PAGE_UNIT_BYTES
  }

  /**
   * Addresses of `n` free pages of so many bytes each.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY`, with nothing taken.
   */
  allocateMany(n: number, bytes: number): Int32Array {
    const pages = new Int32Array(n)
    for (let taken = 0; taken < n; taken++) {
      const page = this.#take(bytes)
      if (page < 0) {
        this.freeMany(pages.subarray(0, taken), bytes)
        throw this.#fullError(n * bytes)
      }
      pages[taken] = page
    }
    return pages
  }

  #fullError(wanted: number): ZipCacheError {
    return new ZipCacheError(
      'ERR_ZC_OUT_OF_MEMORY',
      `kvMemory: ${wanted} bytes are wanted; of ${this.capacityBytes}, ${this.#usedBytes} are given out and ${this.capacityBytes - this.claimedBytes} left for pages of any size`,
      { argument: 'kvMemory' },
    )
  }

  /**
   * Whether so many more pages of each size, by its bytes, can be given out: bytes that are free in
   * another size's superblocks are of no use.
   */
  hasRoomFor(pages: ReadonlyMap<number, number>): boolean {
    let nSuperblocks = this.claimedBytes / this.#superblockBytes
    for (const [bytes, count] of pages) {
      let missing = count
      for (const index of this.#withFreeSlots.get(bytes) ?? []) {
        missing -= (this.#superblocks[index] as Superblock).free.length
      }
      nSuperblocks += Math.max(0, Math.ceil(missing / Math.floor(this.#superblockBytes / bytes)))
    }
    return nSuperblocks * this.#superblockBytes <= this.capacityBytes
  }

  /** The same for a pool of which nothing is given out. */
  canHold(pages: ReadonlyMap<number, number>): boolean {
    let nSuperblocks = 0
    for (const [bytes, count] of pages) {
      nSuperblocks += Math.ceil(count / Math.floor(this.#superblockBytes / bytes))
    }
    return nSuperblocks * this.#superblockBytes <= this.capacityBytes
  }

  /** One more holder of a page that was given out; each has to free it. */
  retain(address: number, bytes: number): void {
    const { block, slot } = this.#find(address, bytes)
    block.holders[slot] = (block.holders[slot] as number) + 1
  }

  /** Whether a page has more than one holder, and so must not be written. */
  isShared(address: number, bytes: number): boolean {
    const { block, slot } = this.#find(address, bytes)
    return (block.holders[slot] as number) > 1
  }

  /**
   * Lets go of a page that `allocate` gave for so many bytes, or `retain`.
   *
   * Throws `ERR_ZC_INTERNAL` for any other address, one that was freed before among them.
   */
  free(address: number, bytes: number): void {
    const { block, slot, index } = this.#find(address, bytes)
    const holders = (block.holders[slot] as number) - 1
    block.holders[slot] = holders
    if (holders > 0) return
    const open = this.#openList(bytes)
    block.free.push(slot)
    if (block.place < 0) block.place = open.push(index) - 1
    if (block.free.length === block.nSlots) this.#release(index, block, open)
    this.#usedBytes -= bytes
  }

  /** `free` for each. */
  freeMany(addresses: Int32Array, bytes: number): void {
    for (let i = 0; i < addresses.length; i++) this.free(addresses[i] as number, bytes)
  }

  dispose(): void {
    this.memory.dispose()
  }

  #find(address: number, bytes: number): { block: Superblock; slot: number; index: number } {
    const index = Math.floor((address * PAGE_UNIT_BYTES) / this.#superblockBytes)
    const block = this.#superblocks[index]
    const slot = (address * PAGE_UNIT_BYTES - index * this.#superblockBytes) / bytes
    if (block?.pageBytes === bytes && (block.holders[slot] ?? 0) > 0) return { block, slot, index }
    throw new ZipCacheError('ERR_ZC_INTERNAL', `page ${address} is not given out as ${bytes} bytes`)
  }

  #openList(bytes: number): number[] {
    let open = this.#withFreeSlots.get(bytes)
    if (!open) {
      open = []
      this.#withFreeSlots.set(bytes, open)
    }
    return open
  }

  /** The number of a superblock that was unclaimed; -1 when there is none. */
  #claim(bytes: number, open: number[]): number {
    if (bytes > this.#superblockBytes) {
      throw new ZipCacheError(
        'ERR_ZC_UNSUPPORTED',
        `a page of ${bytes} bytes, expected at most ${this.#superblockBytes}`,
      )
    }
    let index = this.#unclaimed.pop()
    this.#coldEnd = Math.min(this.#coldEnd, this.#unclaimed.length)
    if (index === undefined) {
      index = this.#superblocks.length
      if ((index + 1) * this.#superblockBytes > this.capacityBytes) return -1
    }
    const nSlots = Math.floor(this.#superblockBytes / bytes)
    const free: number[] = []
    for (let slot = nSlots - 1; slot >= 0; slot--) free.push(slot)
    const holders = new Uint32Array(nSlots)
    this.#superblocks[index] = {
      pageBytes: bytes,
      free,
      nSlots,
      holders,
      place: open.push(index) - 1,
    }
    return index
  }

  /** Takes a superblock out of its size's list. */
  #close(block: Superblock, open: number[]): void {
    const last = open.pop() as number
    if (open.length > block.place) {
      open[block.place] = last
      ;(this.#superblocks[last] as Superblock).place = block.place
    }
    block.place = -1
  }

  #release(index: number, block: Superblock, open: number[]): void {
    this.#close(block, open)
    this.#superblocks[index] = null
    this.#unclaimed.push(index)
    if (this.#unclaimed.length - this.#coldEnd <= MAX_WARM) return
    const coldest = this.#unclaimed[this.#coldEnd++] as number
    this.device.discard(this.memory, coldest * this.#superblockBytes, this.#superblockBytes)
  }
}
