import type { CacheMemory, KvShape, ProbeRows } from '../cache/index.js'
import { ZipCacheError } from '../errors.js'
import {
  addSinks,
  embedRows,
  type ForwardModel,
  logitsOfAll,
  makeStream,
  makeWorkspace,
  rotateQueries,
  runLayer,
  runRecurrentLayer,
  turnsOf,
} from '../model/forward.js'
import { layerPlaces } from '../model/layer-kinds.js'
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

/** Words of a step of so many rows over caches of so many shapes; see `columnsOf`. */
const stepWords = (nRows: number, nShapes: number) => nRows * (8 + nShapes + SAMPLE_PARAMS) + 1

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
    const nShapes = this.#memory.shapes.length
    const words = new Int32Array(stepWords(bucket.nRows, nShapes))
    const { params: paramWords, ...columns } = columnsOf(bucket.nRows, nShapes, (first, n) =>
      words.subarray(first, first + n),
    )
    const { given, source, starts, states, lengths, positions, slots, contexts, cuSeqlens } =
      columns
    for (const masked of [source, ...starts, states, slots, contexts]) masked.fill(-1)
    const params = new Float32Array(words.buffer, paramWords.byteOffset, paramWords.length)
    let nSeqs = 0
    rows.forEach((row, r) => {
      given[r] = row.token
      source[r] = row.source
      positions[r] = row.position
      slots[r] = row.probeSlot
      contexts[r] = row.context
      params.set(packSampleParams(row.params), r * SAMPLE_PARAMS)
      if (row.starts[0] !== rows[r - 1]?.starts[0]) {
        starts.forEach((column, shape) => {
          column[nSeqs] = row.starts[shape] as number
        })
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
    const { pool, tables, probes, shapes } = this.#memory
    const input = scratch.tensor('i32', [stepWords(nRows, shapes.length)])
    const columns = columnsOf(nRows, shapes.length, (first, n) =>
      scratch.keep(input.view([n], first)),
    )
    const { given, source, starts, states, lengths, positions, slots, contexts, cuSeqlens } =
      columns
    const params = scratch.keep(columns.params.reinterpret('f32', [nRows, SAMPLE_PARAMS]))
    const chosen = {
      ids: scratch.keep(this.#chosen.view([nRows])),
      logprobs: scratch.keep(this.#chosen.reinterpret('f32', [nRows], this.#maxRows)),
    }
    const sampled = scratch.keep(this.#chosen.view([this.#maxRows]))
    const stream = makeStream(model, nRows, nRows, scratch)
    const block = makeWorkspace(model, nRows, scratch)(nRows, stream)
    const ofShapes = shapes.map((shape, i) => ({
      ...attendedRows(model, shape, nRows, scratch),
      paged: { pool: pool.memory, tables: tables.memory, starts: starts[i] as Tensor<'i32'> },
    }))
    const scale = config.softmaxScale
    let logits!: Tensor<'f32'>

    const program = device.record(() => {
      feedTokens({ sampled, source, given, out: stream.ids })
      for (const { paged } of ofShapes) setTailLengths({ ...paged, lengths })
      embedRows(model, stream, positions)
      for (const [layer, { isRecurrent, shape, index, borrows }] of layerPlaces(config).entries()) {
        if (isRecurrent) {
          const places = { pool: pool.memory, tables: tables.memory, states, cuSeqlens }
          runRecurrentLayer(model, layer, index, block, places)
          continue
        }
        const slidingWindow = config.slidingWindow[layer] ?? 0
        const { layers, paged } = ofShapes[shape] as (typeof ofShapes)[number]
        runLayer(model, layer, shape, block, ({ rawHeads, heads }) => {
          const { v, out } = heads
          const own = borrows ? heads : (layers[index] as (typeof layers)[number])
          const { q, lse } = own
          if (borrows) rotateQueries(model, layer, block, { rawHeads, heads })
          else {
            const turns = turnsOf(model, layer, block)
            ropeAppend({ ...rawHeads, v, ...turns, qOut: q, ...paged, cuSeqlens, layer: index })
          }
          const options = { layer: index, positions, scale, slidingWindow }
          mixedAttention({ q, out, lse, ...paged, cuSeqlens, ...options })
          addSinks(model, layer, { out, lse })
        })
      }
      for (const [shape, { all }] of ofShapes.entries()) {
        const { q, lse } = (probes.ofShapes[shape] as ProbeRows).all
        storeProbes({ ...all, slots, probeQ: q, probeLse: lse })
      }
      logits = logitsOfAll(model, stream.x, scratch)
      sample({ logits, params, seen: this.#seen, contexts, ...chosen })
    })
    return { nRows, program, input, logits, scratch }
  }
}

/**
 * Queries and log-sum-exps of the layers that keep keys of one shape. They stay until the last layer: one op then keeps
 * those of probes.
 */
function attendedRows(
  { config, attentionDtype }: ForwardModel,
  { nLayers, headDim }: KvShape,
  nRows: number,
  scratch: Scratch,
) {
  const { nHeads } = config
  const all = {
    q: scratch.tensor<DType>(attentionDtype, [nLayers, nRows, nHeads, headDim]),
    lse: scratch.tensor('f32', [nLayers, nRows, nHeads]),
  }
  const layers = Array.from({ length: nLayers }, (_, layer) => {
    const rows = layer * nRows * nHeads
    return {
      q: scratch.keep(all.q.view([nRows, nHeads, headDim], rows * headDim)),
      lse: scratch.keep(all.lse.view([nRows, nHeads], rows)),
    }
  })
  return { all, layers }
}

/** The parts of a step's words, each by its first word and how many it has. */
function columnsOf<T>(nRows: number, nShapes: number, part: (first: number, n: number) => T) {
  const column = (index: number) => part(index * nRows, nRows)
  const nColumns = 7 + nShapes
  return {
    given: column(0),
    source: column(1),
    lengths: column(2),
    positions: column(3),
    slots: column(4),
    contexts: column(5),
    states: column(6),
    /** (n_shapes) */
    starts: Array.from({ length: nShapes }, (_, shape) => column(7 + shape)),
    params: part(nColumns * nRows, SAMPLE_PARAMS * nRows),
    cuSeqlens: part((nColumns + SAMPLE_PARAMS) * nRows, nRows + 1),
  }
}

function isFull(error: unknown): boolean {
  return error instanceof ZipCacheError && error.code === 'ERR_ZC_OUT_OF_MEMORY'
}
