import { argumentError, show } from '../errors.js'
import type { ProgramHandle } from '../native/addon.js'
import { loadAddon } from '../native/load.js'
import { type DType, TYPED_ARRAYS, type TypedArrays } from './dtype.js'
import { storable, Tensor } from './tensor.js'

/**
 * Ops recorded once by `Device.record` and run again and again: one call and one await for all of
 * them. It keeps its tensors alive until it is disposed of and the last run has ended.
 */
export class Program {
  readonly #handle: ProgramHandle

  /** @internal */
  constructor(handle: ProgramHandle) {
    this.#handle = handle
  }

  /**
   * Stores `values` at the start of `input`, runs the ops, and resolves to what `output` holds then.
   * Runs queue up like ops: none has to be awaited before the next.
   *
   * Rejects with `ERR_ZC_ARGUMENT` for an `input` or `output` that is no tensor, `ERR_ZC_DTYPE` for an array of another type than `input`'s, `ERR_ZC_SHAPE` for
   * values that do not fit, `ERR_ZC_DEVICE` for a tensor of another device, `ERR_ZC_HANDLE` for a
   * disposed program or tensor, and with the first error of an op.
   */
  async run<D extends DType, E extends DType>(
    input: Tensor<D>,
    values: TypedArrays[D],
    output: Tensor<E>,
  ): Promise<TypedArrays[E]> {
    checkTensor('input', input)
    checkTensor('output', output)
    const own = storable(values, input.dtype)
    const buffer = await loadAddon().runProgram(this.#handle, input.handle, own, output.handle)
    return new TYPED_ARRAYS[output.dtype](buffer) as TypedArrays[E]
  }

  /** Lets go of the recorded ops and their tensors. Idempotent. */
  dispose(): void {
    loadAddon().disposeProgram(this.#handle)
  }

  /** `dispose`, for `using`. */
  [Symbol.dispose](): void {
    this.dispose()
  }
}

function checkTensor(argument: string, tensor: Tensor): void {
  if (tensor instanceof Tensor) return
  throw argumentError(argument, `is ${show(tensor)}, expected a tensor`)
}
