import type { Tensor } from './tensor.js'

/** Where an op of recurrent layers finds the states of its sequences, and whose rows are given. */
export interface StateArgs {
  /** (bytes) u8: the pages, in and out. */
  pool: Tensor
  /** (words) i32: state tables as in csrc/ops/state_table.h. */
  tables: Tensor
  /**
   * (n_seqs) i32: the word where a sequence's state table begins, or -1 for rows that are masked: their
   * output is zeros, and nothing else is written.
   */
  states: Tensor
  /** (n_seqs + 1) i32: row at which each sequence starts, then the total. */
  cuSeqlens: Tensor
  /** Of the recurrent layers, from 0. */
  layer: number
  /** The sequences begin with these rows: their pages are written, not read. Default false. */
  fromZero?: boolean | undefined
}
