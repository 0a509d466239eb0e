import type { CacheMemory } from '../cache/index.js'
import { ZipCacheError } from '../errors.js'
import {
  addSinks,
  embedRows,
  type ForwardModel,
  logitsOfAll,
  makeStream,
  makeWorkspace,
  runLayer,
  runRecurrentLayer,
  turnsOf,
} from '../model/forward.js'
import { attentionShape, layerPlaces } from '../model/layer-kinds.js'
import { Scratch } from '../model/scratch.js'
import {
  type DType,
  feedTokens,
  mixedAttention,
  type Program,
  packSampleParams,
  ropeAppend,
  SAMPLE_PARAMS,
  type SampleParams,
  sample,
  setTailLengths,
  storeProbes,
  type Tensor,
} from '../ops/index.js'
import type { StepPlace } from './context.js'

/** One token's part of a step. Rows of one sequence follow each other, in the order of its tokens. */
export interface StepRow extends StepPlace {
  /** Row of the step before whose token this one runs; -1: `token` is given. */
  readonly source: number
  readonly token: number
  /** Row of the contexts' seen tokens, -1 for none (`sample`). */
  readonly context: number
  readonly params: SampleParams
}

/** What a step chose, row by row. */
export interface StepResult {
  /** -1 where the logits hold NaN or infinity. */
  readonly ids: Int32Array
  readonly logprobs: Float32Array
}

/** Words of a step of so many rows; see `columnsOf`. */
const stepWords = (nRows: number) => nRows * (9 + SAMPLE_PARAMS) + 1

/** Steps until more rows are tried again, where there was no memory for them: a GPU waits for each try. */
const STEPS_BEFORE_NEXT_TRY = 64

/** A step of so many rows, recorded. */
interface Bucket {
  readonly nRows: number
  readonly program: Program
  readonly input: Tensor<'i32'>
  /** (nRows, vocab_size) f32 */
  readonly logits: Tensor<'f32'>
  readonly scratch: Scratch
}

/**
 * The decode step of a batch: every row runs one token through the model, over its sequence's cache
 * and the rows of it before, and samples the next one. It is recorded once for 1, 2, 4 … rows and replayed with one
 * awaited call; rows beyond the batch are masked. All that changes from step to step is one small
 * array. A row's result does not depend on the others.
 */
export class DecodeStep {
  readonly #model: ForwardModel
  readonly #memory: CacheMemory
  readonly #maxRows: number
  readonly #buckets = new Map<number, Bucket>()
  /** (2, maxRows): what the last step chose, ids and then the bits of log-probabilities. */
  readonly #chosen: Tensor<'i32'>
  readonly #seen: Tensor<'u8'>
  /** Most rows for now, and for how many steps more; null: any. */
  #narrowed: { readonly nRows: number; nSteps: number } | null = null

  /** `seen` (n_contexts, vocab_size) u8: tokens of contexts with a repetition penalty. */
  constructor(model: ForwardModel, memory: CacheMemory, maxRows: number, seen: Tensor<'u8'>) {
    this.#model = model
    this.#memory = memory
    this.#maxRows = maxRows
    this.#seen = seen
    this.#chosen = model.device.tensor('i32', [2, maxRows]).write(new Int32Array(2 * maxRows))
  }

  /** Most rows of a step. */
  get maxRows(): number {
    return this.#maxRows
  }

  /** Bytes of the work space of all steps recorded so far. */
  get bytes(): number {
    let bytes = this.#chosen.sizeBytes
    for (const { scratch } of this.#buckets.values()) bytes += scratch.bytes
    return bytes
  }

  /**
   * How many of so many rows a step can have: fewer where there is no memory for the work space of
   * all of them.
   *
   * Throws `ERR_ZC_OUT_OF_MEMORY` when there is none for one row.
   */
  roomFor(nRows: number): number {
    if (this.#narrowed && this.#narrowed.nSteps-- === 0) this.#narrowed = null
    let room = Math.min(nRows, this.#narrowed?.nRows ?? nRows)
    while (room > 0) {
      try {
        this.#bucket(room)
        break
      } catch (error) {
        if (!isFull(error) || room === 1) throw error
        room = 2 ** (Math.ceil(Math.log2(room)) - 1)
        this.#narrowed = { nRows: room, nSteps: STEPS_BEFORE_NEXT_TRY }
      }
    }
    return room
  }

  /**
   * Enqueues a step. It may be called again before the result is there: rows name their token by its
   * row in the step before.
   *
   * Rejects with the first error of an op. Throws `ERR_ZC_OUT_OF_MEMORY` for more rows than
   * `roomFor` has room for.
   */
  run(rows: readonly StepRow[]): { result: Promise<StepResult>; logits: Tensor<'f32'> } {
    const bucket = this.#bucket(rows.length)
    const words = new Int32Array(stepWords(bucket.nRows))
    const { params: paramWords, ...columns } = columnsOf(bucket.nRows, (first, n) =>
      words.subarray(first, first + n),
    )
    const { given, source, starts, states, lengths, positions, slots, contexts, cuSeqlens } =
      columns
    for (const masked of [source, starts, states, slots, contexts]) masked.fill(-1)
    const params = new Float32Array(words.buffer, paramWords.byteOffset, paramWords.length)
    let nSeqs = 0
    rows.forEach((row, r) => {
      given[r] = row.token
      source[r] = row.source
      positions[r] = row.position
      slots[r] = row.probeSlot
      contexts[r] = row.context
      params.set(packSampleParams(row.params), r * SAMPLE_PARAMS)
      if (row.start !== rows[r - 1]?.start) {
        starts[nSeqs] = row.start
        states[nSeqs] = row.state
        cuSeqlens[nSeqs++] = r
      }
      lengths[nSeqs - 1] = row.tailLength
    })
    // The rows that are left are those of one more sequence, without a table; others have none.
    if (nSeqs < bucket.nRows) cuSeqlens[nSeqs++] = rows.length
    cuSeqlens.fill(bucket.nRows, nSeqs)
    const output = bucket.program.run(bucket.input, words, this.#chosen)
    const result = output.then((chosen) => ({
      ids: chosen.subarray(0, rows.length),
      logprobs: new Float32Array(chosen.buffer, this.#maxRows * 4, rows.length),
    }))
    return { result, logits: bucket.logits }
  }

  dispose(): void {
    for (const { program, scratch } of this.#buckets.values()) {
      program.dispose()
      scratch.dispose()
    }
    this.#buckets.clear()
    this.#chosen.dispose()
  }

  #bucket(nRows: number): Bucket {
    const size = Math.min(this.#maxRows, 2 ** Math.ceil(Math.log2(nRows)))
    let bucket = this.#buckets.get(size)
    if (!bucket) {
      const scratch = new Scratch(this.#model.device)
      try {
        bucket = this.#record(size, scratch)
      } catch (error) {
        scratch.dispose()
        // A larger one that is there does as well, rows masked.
        const larger = [...this.#buckets.values()].find((other) => other.nRows > size)
        if (larger && isFull(error)) return larger
        throw error
      }
      this.#buckets.set(size, bucket)
    }
    return bucket
  }

  #record(nRows: number, scratch: Scratch): Bucket {
    const model = this.#model
    const { config, device } = model
    const { pool, tables, probes } = this.#memory
    const input = scratch.tensor('i32', [stepWords(nRows)])
    const columns = columnsOf(nRows, (first, n) => scratch.keep(input.view([n], first)))
    const { given, source, starts, states, lengths, positions, slots, contexts, cuSeqlens } =
      columns
    const params = scratch.keep(columns.params.reinterpret('f32', [nRows, SAMPLE_PARAMS]))
    const chosen = {
      ids: scratch.keep(this.#chosen.view([nRows])),
      logprobs: scratch.keep(this.#chosen.reinterpret('f32', [nRows], this.#maxRows)),
    }
    const sampled = scratch.keep(this.#chosen.view([this.#maxRows]))
    const ids = scratch.tensor('i32', [nRows])
    const stream = makeStream(model, nRows, nRows, scratch)
    const block = makeWorkspace(model, nRows, scratch)(nRows, stream)
    const { rawHeads } = block
    const { v, out } = block.heads
    // Every attending layer's queries and log-sum-exps stay until the last: one op then keeps those of probes.
    const { nHeads, headDim } = config
    const { nLayers } = attentionShape(config)
    const ofAll = {
      q: scratch.tensor<DType>(model.attentionDtype, [nLayers, nRows, nHeads, headDim]),
      lse: scratch.tensor('f32', [nLayers, nRows, nHeads]),
    }
    const attended = Array.from({ length: nLayers }, (_, layer) => {
      const rows = layer * nRows * nHeads
      return {
        q: scratch.keep(ofAll.q.view([nRows, nHeads, headDim], rows * headDim)),
        lse: scratch.keep(ofAll.lse.view([nRows, nHeads], rows)),
      }
    })
    const paged = { pool: pool.memory, tables: tables.memory, starts }
    const scale = config.softmaxScale
    let logits!: Tensor<'f32'>

    const program = device.record(() => {
      feedTokens({ sampled, source, given, out: ids })
      setTailLengths({ ...paged, lengths })
      embedRows(model, stream, ids, positions)
      for (const [layer, { isRecurrent, index }] of layerPlaces(config).entries()) {
        if (isRecurrent) {
          const places = { pool: pool.memory, tables: tables.memory, states, cuSeqlens }
          runRecurrentLayer(model, layer, index, block, places)
          continue
        }
        const slidingWindow = config.slidingWindow[layer] ?? 0
        const { q, lse } = attended[index] as (typeof attended)[number]
        const turns = turnsOf(model, layer, block)
        runLayer(model, layer, block, () => {
          ropeAppend({ ...rawHeads, v, ...turns, qOut: q, ...paged, cuSeqlens, layer: index })
          const options = { layer: index, positions, scale, slidingWindow }
          mixedAttention({ q, out, lse, ...paged, cuSeqlens, ...options })
          addSinks(model, layer, { out, lse })
        })
      }
      storeProbes({ ...ofAll, slots, probeQ: probes.all.q, probeLse: probes.all.lse })
      logits = logitsOfAll(model, stream.x, scratch)
      sample({ logits, params, seen: this.#seen, contexts, ...chosen })
    })
    return { nRows, program, input, logits, scratch }
  }
}

/** The parts of a step's words, each by its first word and how many it has. */
function columnsOf<T>(nRows: number, part: (first: number, n: number) => T) {
  const column = (index: number) => part(index * nRows, nRows)
  return {
    given: column(0),
    source: column(1),
    starts: column(2),
    lengths: column(3),
    positions: column(4),
    slots: column(5),
    contexts: column(6),
    states: column(7),
    params: part(8 * nRows, SAMPLE_PARAMS * nRows),
    cuSeqlens: part((8 + SAMPLE_PARAMS) * nRows, nRows + 1),
  }
}

function isFull(error: unknown): boolean {
  return error instanceof ZipCacheError && error.code === 'ERR_ZC_OUT_OF_MEMORY'
}
