/**
 * The whole native surface as one type. Handles are opaque and type-tagged; a wrong or disposed one
 * throws ERR_ZC_HANDLE. Ops check their arguments and enqueue; their order of arguments is that of
 * csrc/napi/ops.cc.
 */

declare const kind: unique symbol
/** A device of this environment. */
export interface DeviceHandle {
  readonly [kind]: 'device'
}
/** Device memory with a dtype and a shape. */
export interface TensorHandle {
  readonly [kind]: 'tensor'
}
/** Ops recorded to be run again and again. */
export interface ProgramHandle {
  readonly [kind]: 'program'
}
/** A file mapped read-only. */
export interface FileHandle {
  readonly [kind]: 'file'
}

type T = TensorHandle
type Optional = TensorHandle | undefined

/** A device, or why there is none. */
export interface ListedDevice {
  name: string
  /** Empty: it can be opened. */
  reason: string
  isa: string
  model: string
  memoryBytes: number
  nMultiprocessors: number
  /** 1000 major + 10 minor, 0: none. */
  driverVersion: number
  runtimeVersion: number
}

/** The functions of build/Release/zipcache.node. */
export interface Addon {
  readonly errorCodes: readonly string[]
  /** That of the package it was built from. */
  readonly version: string
  setErrorClass(errorClass: unknown): void

  /** Of one kind: `cpu`, `cuda`, `cuda-emu`. */
  listDevices(kind: string, pluginFolder: string): Promise<ListedDevice[]>
  /** Does the slow part of `openDevice` off the event loop. */
  prepareDevice(name: string, pluginFolder: string): Promise<void>
  openDevice(name: string, nThreads: number, pluginFolder: string): DeviceHandle
  disposeDevice(device: DeviceHandle): void
  deviceInfo(device: DeviceHandle): {
    name: string
    kind: 'cpu' | 'gpu'
    isa: string
    nThreads: number
  }
  deviceMemory(device: DeviceHandle): {
    current: number
    peak: number
    total: number
    free: number
  }
  unrecordedRuns(device: DeviceHandle): number
  sync(device: DeviceHandle): Promise<void>

  createTensor(device: DeviceHandle, dtype: number, shape: readonly number[]): T
  reserveTensor(device: DeviceHandle, dtype: number, shape: readonly number[]): T
  discardBytes(tensor: T, offset: number, bytes: number): void
  viewTensor(tensor: T, dtype: number, shape: readonly number[], byteOffset: number): T
  disposeTensor(tensor: T): void
  writeTensor(tensor: T, values: ArrayBufferView, byteOffset: number): void
  readTensor(tensor: T): Promise<ArrayBuffer>

  beginRecording(device: DeviceHandle): void
  endRecording(device: DeviceHandle): ProgramHandle
  runProgram(
    program: ProgramHandle,
    input: T,
    values: ArrayBufferView,
    output: T,
  ): Promise<ArrayBuffer>
  disposeProgram(program: ProgramHandle): void

  mapFile(path: string): FileHandle
  tensorFromFile(
    device: DeviceHandle,
    file: FileHandle,
    byteOffset: number,
    dtype: number,
    shape: readonly number[],
  ): T
  /** Of a mapped file: a handle and an offset, both absent where it has none of them. */
  unpackWeight(
    device: DeviceHandle,
    out: T,
    outScales: Optional,
    outZeros: Optional,
    status: T,
    codes: FileHandle | undefined,
    codesOffset: number | undefined,
    scales: FileHandle | undefined,
    scalesOffset: number | undefined,
    zeros: FileHandle | undefined,
    zerosOffset: number | undefined,
    columnGroups: FileHandle | undefined,
    columnGroupsOffset: number | undefined,
    layout: number,
    zeroLayout: number,
    bits: number,
    n: number,
    k: number,
    blockRows: number,
    blockColumns: number,
    scaleDtype: number,
    scaleFactor: number,
    scaleDivisor: number,
    firstRow: number,
    rowStep: number,
  ): void

  flashAttention(
    q: T,
    k: T,
    v: T,
    out: T,
    lse: T,
    cuSeqlensQ: T,
    cuSeqlensK: T,
    scale: number,
    slidingWindow: number,
    causal: boolean,
  ): void
  probeAttention(
    q: T,
    lse: T,
    k: T,
    rows: T,
    positions: T,
    scores: T,
    scale: number,
    slidingWindow: number,
    normalized: boolean,
  ): void
  selectSalient(scores: T, salient: T, regular: T): void
  quantize(
    x: T,
    codes: T,
    scale: T,
    zero: T,
    channel: Optional,
    scheme: number,
    bits: number,
    groupSize: number,
    norm: number,
  ): void
  dequantize(
    codes: T,
    scale: T,
    zero: T,
    channel: Optional,
    out: T,
    scheme: number,
    bits: number,
    groupSize: number,
  ): void
  restoreOutliers(values: T, places: T, out: T, channelwise: boolean): void
  appendKv(k: T, v: T, pool: T, tables: T, starts: T, cuSeqlens: T, layer: number): void
  ropeAppend(
    q: T,
    k: T,
    v: T,
    cos: T,
    sin: T,
    qCos: T,
    qSin: T,
    qOut: T,
    kOut: Optional,
    pool: T,
    tables: T,
    starts: T,
    cuSeqlens: T,
    layer: number,
  ): void
  setTailLengths(tables: T, starts: T, lengths: T): void
  copyPages(pool: T, from: T, to: T, pageBytes: number): void
  packSegment(
    k: T,
    v: T,
    ids: T,
    pool: T,
    table: T,
    layer: number,
    segment: number,
    keyNorm: number,
    valueNorm: number,
  ): void
  /** Of each class: ids, segment, keyNorm, valueNorm. */
  packSegments(
    k: T,
    v: T,
    pool: T,
    table: T,
    layer: number,
    nClasses: number,
    ...classes: (T | number)[]
  ): void
  unpackSegment(pool: T, table: T, k: T, v: T, layer: number, segment: number, base: number): void
  exportSegment(
    pool: T,
    table: T,
    kCodes: T,
    vCodes: T,
    kParams: T,
    vParams: T,
    vChannel: T,
    positions: T,
    layer: number,
    segment: number,
  ): void
  importSegment(
    pool: T,
    table: T,
    kCodes: T,
    vCodes: T,
    kParams: T,
    vParams: T,
    vChannel: T,
    positions: T,
    layer: number,
    segment: number,
  ): void
  mixedAttention(
    q: T,
    out: T,
    lse: T,
    pool: T,
    tables: T,
    starts: T,
    cuSeqlens: T,
    positions: T,
    layer: number,
    scale: number,
    slidingWindow: number,
    tail: boolean,
    causal: boolean,
  ): void
  mergeAttention(outA: T, lseA: T, outB: T, lseB: T, out: T, lse: T): void
  attentionSinks(sinks: T, out: T, lse: T): void
  storeProbes(q: T, lse: T, slots: T, probeQ: T, probeLse: T): void
  causalConv(
    x: T,
    weight: T,
    bias: Optional,
    out: T,
    pool: T,
    tables: T,
    states: T,
    cuSeqlens: T,
    layer: number,
    nHeads: number,
    fromZero: boolean,
  ): void
  gatedDelta(
    qkv: T,
    decay: T,
    beta: T,
    decayLog: T,
    decayBias: T,
    out: T,
    pool: T,
    tables: T,
    states: T,
    cuSeqlens: T,
    layer: number,
    nKeyHeads: number,
    fromZero: boolean,
  ): void
  selectiveScan(
    xbc: T,
    step: T,
    stepBias: T,
    decayLog: T,
    skip: T,
    out: T,
    pool: T,
    tables: T,
    states: T,
    cuSeqlens: T,
    layer: number,
    nGroups: number,
    fromZero: boolean,
  ): void
  embedding(ids: T, weight: T, out: T, scale: number, column: number): void
  rmsNorm(x: T, weight: Optional, out: T, eps: number, accumulate: boolean, scale: number): void
  linear(
    x: T,
    weight: T,
    scales: Optional,
    zeros: Optional,
    bias: Optional,
    out: T,
    accumulate: boolean,
  ): void
  /** Of each product: weight, scales, zeros, bias, out. */
  groupedLinear(x: T, nProducts: number, ...products: Optional[]): void
  quantizeWeight(x: T, out: T, scales: T, zeros: Optional): void
  /** `scores`: whether they are sigmoids. */
  routeExperts(
    logits: T,
    correction: Optional,
    expertScales: Optional,
    weights: T,
    experts: T,
    pairs: T,
    offsets: T,
    scores: boolean,
    normalized: boolean,
    leastSum: number,
    scale: number,
  ): void
  expertLinear(
    x: T,
    weight: T,
    scales: Optional,
    zeros: Optional,
    bias: Optional,
    pairs: T,
    offsets: T,
    out: T,
  ): void
  addExperts(x: T, weights: T, out: T, accumulate: boolean): void
  ropeTable(
    positions: T,
    invFreq: T,
    cos: T,
    sin: T,
    attentionScale: number,
    growth: number,
    period: number,
  ): void
  rope(x: T, cos: T, sin: T, out: T): void
  siluGate(gate: T, up: T, out: T): void
  geluGate(gate: T, up: T, out: T): void
  clampedSwiglu(gate: T, up: T, out: T, alpha: number, limit: number): void
  sigmoidGate(gate: T, x: T, out: T): void
  softCap(x: T, out: T, cap: number): void
  sample(logits: T, params: T, seen: T, contexts: T, ids: T, logprobs: T): void
  feedTokens(sampled: T, source: T, given: T, out: T): void
  convert(x: T, out: T): void
  gatherRows(x: T, rows: T, out: T): void
  countNonFinite(x: T, count: T): void
  readStream(x: T, out: T): void
  multiplyAdd(x: T, out: T, factor: number, summand: number, steps: number): void
}
