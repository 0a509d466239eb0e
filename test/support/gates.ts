import type { GateArgs } from '../../lib/ops/index.js'
import type { FloatDtype } from '../../lib/reference/index.js'
import type { DeviceTensors } from './device-tensors.js'
import { storeAs } from './random-data.js'

/** What a gate op is given. */
export interface Gate {
  gate: ArrayLike<number>
  up: ArrayLike<number>
  width: number
  dtype?: FloatDtype
  out?: FloatDtype
  /** which input the result overwrites */
  into?: 'gate' | 'up'
}

/** An op, and what it is judged by. */
export interface GateOp {
  op: (args: GateArgs) => void
  reference: (rows: { gate: ArrayLike<number>; up: ArrayLike<number> }) => Float64Array
}

/** What a gate op gives of these rows, and what it should. */
export async function runGate({ op, reference }: GateOp, tensors: DeviceTensors, own: Gate) {
  const { width, dtype = 'f32', into } = own
  const shape = [own.gate.length / width, width]
  const gate = storeAs(dtype, own.gate)
  const up = storeAs(dtype, own.up)
  const inputs = {
    gate: tensors.input(dtype, gate.stored as Uint16Array, shape),
    up: tensors.input(dtype, up.stored as Uint16Array, shape),
  }
  const out = into ? inputs[into] : tensors.output(own.out ?? dtype, shape)
  op({ ...inputs, out })
  const expected = reference({ gate: gate.values, up: up.values })
  return { actual: await tensors.values(out), expected, shape }
}
