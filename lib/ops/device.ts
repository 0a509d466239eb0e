import { argumentError, show, ZipCacheError } from '../errors.js'
import type { DeviceHandle, FileHandle } from '../native/addon.js'
import { mayHaveGpu } from '../native/driver.js'
import { warnOfUnusedGpu } from '../native/driver-advice.js'
import { loadAddon } from '../native/load.js'
import { listPlugin, pluginFolder, requirePlugin } from '../native/plugin.js'
import { checkArguments } from './arguments.js'
import { DTYPE_BYTES, DTYPES, type DType, TYPED_ARRAYS, type TypedArrays } from './dtype.js'
import { Program } from './program.js'
import { handleOf, Tensor } from './tensor.js'

/** Settings of `Device.open`. */
export interface DeviceOptions {
  /**
   * Threads of the CPU that compute, the stream's own included; default: one a core that the process
   * may use, its container's share of time being counted, or `ZIPCACHE_THREADS`. Of no effect on
   * other devices.
   */
  threads?: number | undefined
}

/** A device as `Device.list` finds it. */
export interface DeviceFacts {
  /** What `Device.open` takes. */
  readonly name: string
  /** Whether it can be opened. */
  readonly available: boolean
  /** Why it is not available. */
  readonly reason?: string
  /** Instruction set of the CPU, or architecture of the GPU, `sm_90`. */
  readonly isa?: string
  /** Memory of its own, or of the machine. */
  readonly memoryBytes?: number
  /** A GPU's name. */
  readonly model?: string
  /** Multiprocessors of a GPU. */
  readonly nMultiprocessors?: number
  /** Of a GPU: the newest CUDA that its driver is for, `13.1`. */
  readonly driver?: string
  /** Of a GPU: the CUDA that this build is of, `13.0`. */
  readonly runtime?: string
}

/** What an open device is. */
export interface DeviceInfo {
  /** As it was opened; what `auto` chose. */
  name: string
  /** Whose kernels compute: of `cuda-emu` those of a GPU. */
  kind: 'cpu' | 'gpu'
  /** Instruction set of the kernels, `sm_90` of a GPU. */
  isa: string
  /** Threads that compute, where they are the CPU's. */
  nThreads: number
}

/** Memory of a device, in bytes. */
export interface DeviceMemory {
  /** Tensors that are alive; pages of a reservation are counted by who hands them out. */
  current: number
  /** The most they ever were. */
  peak: number
  /** All that the device has. */
  total: number
  /** What could still be had. */
  free: number
}

/** A file whose bytes can be looked at as tensors without copying them. */
export interface MappedFile {
  /** As it was given. */
  readonly path: string
  /** @internal */
  readonly handle: FileHandle
}

/**
 * A processor with its memory and a queue, the stream. Ops only enqueue; a native thread of the
 * device's own runs them in order, so nothing blocks the event loop. `sync()` and `Tensor.read()`
 * are the only waits.
 */
export class Device {
  /** @internal */
  readonly handle: DeviceHandle
  #disposed = false

  private constructor(handle: DeviceHandle) {
    this.handle = handle
  }

  /**
   * Opens a device; default what the environment variable `ZIPCACHE_DEVICE` names, else `auto`:
   * - `auto`: the first GPU that can be used, else the CPU; `info.name` says which it is. Where there was
   *   none it is the CPU for the rest of the process.
   * - `cuda`, an NVIDIA GPU; `cuda:1` is the second one.
   * - `cpu`, or `cpu:baseline`, `cpu:avx2`, `cpu:avx512` or `cpu:neon` to pin the instruction set.
   *   `cpu` chooses AVX-512 by itself where the units are 512 bits wide.
   * - `cuda-emu`: the kernels of `cuda`, run on the CPU. For tests of them, slow.
   *
   * Rejects with `ERR_ZC_DEVICE` when this machine has no such device, with the reason;
   * `ERR_ZC_ARGUMENT` for a bad option, `ERR_ZC_NATIVE` when the addon cannot be loaded.
   */
  static async open(name = usualDevice(), options: DeviceOptions = {}): Promise<Device> {
    checkArguments(options, 'options')
    const fromEnvironment = process.env.ZIPCACHE_THREADS
    const threads = options.threads ?? (fromEnvironment ? Number(fromEnvironment) : 0)
    if (!Number.isInteger(threads) || threads < 0 || threads > 1024) {
      throw argumentError('threads', `is ${show(threads)}, expected a whole number of 0 to 1024`)
    }
    // A caller without types may give anything.
    if (typeof name !== 'string') {
      throw argumentError('device', `is ${show(name)}, expected the name of one, as cpu`)
    }
    const addon = loadAddon()
    const chosen = name === 'auto' ? await chooseDevice() : name
    const folder = await requirePlugin(chosen)
    await addon.prepareDevice(chosen, folder)
    return new Device(addon.openDevice(chosen, threads, folder))
  }

  /**
   * Every device of this machine, the CPU first, those that cannot be used with the reason: no
   * driver, one that is too old, a GPU that the build has no code for, no CUDA backend installed.
   * GPUs are tried in a process of their own first; `fresh` forgets what was found before.
   *
   * Rejects with `ERR_ZC_NATIVE` when the addon cannot be loaded.
   */
  static async list(options: { fresh?: boolean } = {}): Promise<DeviceFacts[]> {
    checkArguments(options, 'options')
    const { fresh = false } = options
    const devices = await loadAddon().listDevices('cpu', '')
    devices.push(...(await listPlugin('cuda', fresh)))
    // For tests: nobody misses it.
    if (pluginFolder('cuda-emu') !== null) devices.push(...(await listPlugin('cuda-emu')))
    return devices.map(({ name, reason, isa, model, memoryBytes, ...more }) => ({
      name,
      ...(reason ? { available: false, reason } : { available: true }),
      ...(isa && { isa }),
      ...(memoryBytes && { memoryBytes }),
      ...(model && {
        model,
        nMultiprocessors: more.nMultiprocessors,
        driver: versionText(more.driverVersion),
        runtime: versionText(more.runtimeVersion),
      }),
    }))
  }

  /** What was opened. */
  get info(): DeviceInfo {
    return loadAddon().deviceInfo(this.handle)
  }

  /** What its tensors take, and what there is. */
  get memory(): DeviceMemory {
    return loadAddon().deviceMemory(this.handle)
  }

  /**
   * How often a GPU has run a `Program` op by op, since there was no memory for a graph of it; 0 once
   * it was disposed of.
   */
  get unrecordedRuns(): number {
    return this.#disposed ? 0 : loadAddon().unrecordedRuns(this.handle)
  }

  /** Whether `dispose` was called. */
  get disposed(): boolean {
    return this.#disposed
  }

  /**
   * An uninitialised tensor.
   *
   * Throws `ERR_ZC_SHAPE` for a shape that is none, `ERR_ZC_OUT_OF_MEMORY` when it does not fit.
   */
  tensor<D extends DType>(dtype: D, shape: readonly number[]): Tensor<D> {
    const index = DTYPES.indexOf(dtype)
    const handle = loadAddon().createTensor(this.handle, index, shape)
    return new Tensor(this, handle, dtype, [...shape])
  }

  /**
   * A tensor that holds a copy of `values`; `dtype` is needed for the raw bits of 16-bit floats.
   */
  from<D extends DType>(values: TypedArrays[D], shape: readonly number[], dtype?: D): Tensor<D> {
    checkArguments(values, 'values')
    const type = dtype ?? (DTYPES.find((name) => values instanceof TYPED_ARRAYS[name]) as D)
    const tensor = this.tensor(type, shape)
    try {
      if (tensor.length === values.length) return tensor.write(values)
      throw new ZipCacheError(
        'ERR_ZC_SHAPE',
        `values: has ${values.length} elements, expected ${tensor.length}`,
        { argument: 'values' },
      )
    } catch (error) {
      tensor.dispose()
      throw error
    }
  }

  /**
   * A tensor that reads as zeros where it was not written. On the CPU it is address space, which
   * costs memory only where it was written, see `discard`; a GPU gives the memory at once.
   *
   * Throws `ERR_ZC_SHAPE` for a shape that is none or empty, `ERR_ZC_OUT_OF_MEMORY`.
   */
  reserve<D extends DType>(dtype: D, shape: readonly number[]): Tensor<D> {
    const handle = loadAddon().reserveTensor(this.handle, DTYPES.indexOf(dtype), shape)
    return new Tensor(this, handle, dtype, [...shape])
  }

  /**
   * Enqueues giving [offset, offset + bytes) of a reservation back to the system: it reads as zeros
   * again.
   *
   * Throws `ERR_ZC_ARGUMENT` for bytes that are not whole pages of a reservation.
   */
  discard(reservation: Tensor<'u8'>, offset: number, bytes: number): void {
    loadAddon().discardBytes(handleOf(reservation), offset, bytes)
  }

  /**
   * Maps a file; throws `ERR_ZC_IO` when it cannot be opened. The mapping lives as long as
   * its tensors.
   */
  mapFile(path: string): MappedFile {
    return { path, handle: loadAddon().mapFile(path) }
  }

  /**
   * Bytes of a mapped file as a read-only tensor. On the CPU it is no copy, unless the offset is not
   * a multiple of the element's size, and the file must not be truncated while the tensor lives.
   * Other devices get a copy, enqueued.
   *
   * Throws `ERR_ZC_CHECKPOINT` when the bytes are not in the file.
   */
  fromFile<D extends DType>(
    file: MappedFile,
    offset: number,
    dtype: D,
    shape: readonly number[],
  ): Tensor<D> {
    checkArguments(file, 'file')
    const index = DTYPES.indexOf(dtype)
    const handle = loadAddon().tensorFromFile(this.handle, file.handle, offset, index, shape)
    return new Tensor(this, handle, dtype, [...shape])
  }

  /**
   * Records the ops that `enqueue` calls, instead of running them, as a program of this device.
   * Nothing but ops can be recorded: what changes from run to run is data in their tensors.
   *
   * Throws `ERR_ZC_ARGUMENT` when a recording is under way, and for writes within one; what `enqueue`
   * throws. Within one reads and `sync` reject with `ERR_ZC_ARGUMENT`.
   */
  record(enqueue: () => void): Program {
    if (typeof enqueue !== 'function') {
      throw argumentError('enqueue', `is ${show(enqueue)}, expected a function that calls ops`)
    }
    const addon = loadAddon()
    addon.beginRecording(this.handle)
    try {
      enqueue()
    } catch (error) {
      addon.disposeProgram(addon.endRecording(this.handle))
      throw error
    }
    return new Program(addon.endRecording(this.handle))
  }

  /**
   * Resolves when everything enqueued so far has run.
   *
   * Rejects with the first error among it, and with `ERR_ZC_HANDLE` when the device was disposed of.
   */
  async sync(): Promise<void> {
    return loadAddon().sync(this.handle)
  }

  /**
   * Ends the device: what is queued is dropped and awaited promises reject with `ERR_ZC_HANDLE`.
   * Idempotent.
   */
  async dispose(): Promise<void> {
    if (this.#disposed) return
    this.#disposed = true
    loadAddon().disposeDevice(this.handle)
  }

  /** `dispose`, for `await using`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }
}

/** What is opened where no name is given. */
function usualDevice(): string {
  return process.env.ZIPCACHE_DEVICE || 'auto'
}

/** `auto` has found no GPU before: to try a broken driver takes up to a minute, and each model asks. */
let hasNoGpu = false

/** What `auto` means here. */
async function chooseDevice(): Promise<string> {
  if (hasNoGpu) return 'cpu'
  // The library is on machines without a GPU, too: what cannot be there is not looked for each time.
  if (!process.env.ZIPCACHE_PLUGIN_PATH && !mayHaveGpu()) return 'cpu'
  const listed = await listPlugin('cuda')
  const usable = listed.find(({ reason }) => reason === '')
  if (usable) return usable.name
  warnOfUnusedGpu(listed[0]?.reason ?? '')
  hasNoGpu = true
  return 'cpu'
}

/** 13.1 of 13010, as CUDA counts. */
function versionText(version: number): string {
  return `${Math.floor(version / 1000)}.${Math.floor((version % 1000) / 10)}`
}

/**
 * Bytes of a tensor of this dtype and shape.
 *
 * Throws `ERR_ZC_ARGUMENT` for a dtype that is none, `ERR_ZC_SHAPE` for a shape that is none.
 */
export function tensorBytes(dtype: DType, shape: readonly number[]): number {
  if (!DTYPES.includes(dtype)) {
    throw argumentError('dtype', `is ${show(dtype)}, expected one of ${DTYPES.join(', ')}`)
  }
  const isShape = Array.isArray(shape) && shape.every((size) => Number.isInteger(size) && size >= 0)
  if (!isShape) {
    const message = `shape: is ${show(shape)}, expected a list of whole numbers`
    throw new ZipCacheError('ERR_ZC_SHAPE', message, { argument: 'shape' })
  }
  return shape.reduce((product, size) => product * size, DTYPE_BYTES[dtype])
}
