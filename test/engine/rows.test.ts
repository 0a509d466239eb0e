/** Stores of dequantized rows against the reference: what is put in comes out as quantized, or chosen. */
import { CacheMemory } from '../../lib/cache/index'
import { KeptRows } from '../../lib/engine/kept-rows'
import { QuantizedRows } from '../../lib/engine/quantized-rows'
import type { RowStore } from '../../lib/engine/row-store'
import { hadamard } from '../../lib/model/hadamard'
import { Scratch } from '../../lib/model/scratch'
import { Device } from '../../lib/ops/index'
import { type PolicySpec, resolvePolicy } from '../../lib/policy/index'
import type { KeptPlan, QuantizedPlan, RowCodec } from '../../lib/policy/policy'
import { dequantize, f16ToF32, f32ToF16, probeAttention, quantize } from '../../lib/reference/index'
import { expectRefused } from '../support/errors'
import { randomKeys, randomValues } from '../support/random-data'

const shape = { nLayers: 2, nKvHeads: 2, headDim: 32, slidingWindow: [0, 0] }
const nHeads = 4
const width = shape.nKvHeads * shape.headDim

let device: Device
beforeAll(async () => {
  device = await Device.open('cpu')
})
afterAll(() => device.dispose())

function makeMemory(capacity = 2 ** 22): CacheMemory {
  return new CacheMemory(device, [{ ...shape, nHeads, dtype: 'f32' }], capacity)
}

const keysOf = (layer: number, nTokens: number) => randomKeys(10 + layer, { nTokens, ...shape })
const valuesOf = (layer: number, nTokens: number) => randomValues(20 + layer, { nTokens, ...shape })

/** The rows that a store gives back of a layer: (n_rows, n_kv_heads, head_dim). */
async function readRows(store: RowStore, layer: number) {
  const scratch = new Scratch(device)
  const tensors = [0, 1].map(() =>
    device.tensor('f32', [store.nRows, shape.nKvHeads, shape.headDim]),
  )
  store.begin(1, false, scratch).read(layer, tensors[0], tensors[1])
  const [k, v] = await Promise.all(tensors.map((tensor) => tensor.read()))
  for (const tensor of tensors) tensor.dispose()
  scratch.dispose()
  return { k: [...k], v: [...v] }
}

/** Appends the next rows of the random data, in turns; what was there is read first, as in a pass. */
async function append(store: RowStore, turns: number[], all: number): Promise<void> {
  for (const [turn, n] of turns.entries()) {
    const scratch = new Scratch(device)
    const writer = store.begin(n, turn === 0, scratch)
    const [first, nPast] = [store.length, store.nRows]
    for (let layer = 0; layer < shape.nLayers; layer++) {
      const room = [nPast + n, shape.nKvHeads, shape.headDim]
      const k = scratch.tensor('f32', room)
      const v = scratch.tensor('f32', room)
      if (nPast > 0) writer.read(layer, k, v)
      const rows = (x: Float32Array) => x.slice(first * width, (first + n) * width)
      k.write(rows(keysOf(layer, all)), nPast * width)
      v.write(rows(valuesOf(layer, all)), nPast * width)
      await writer.write(layer, k, v, null)
    }
    writer.publish()
    scratch.dispose()
  }
}

/** What quantization makes of all rows, by the reference. */
function expected(codec: RowCodec, x: Float32Array, turns: number[]): number[] {
  const out = [...x].map((value) => f16ToF32(f32ToF16(value)))
  const source = [...x]
  let [total, done] = [0, 0]
  for (const n of turns) {
    const now = codec.nQuantized(total + n, done)
    for (let first = done; first < now; first += codec.tokenGroup || now) {
      const rows = Math.min(codec.tokenGroup || now - done, now - first)
      const own = Array.from({ length: rows * width }, (_, i) => {
        const at = first * width + i
        // Rows of earlier turns waited in 16 bits.
        return first + Math.floor(i / width) < total ? f16ToF32(f32ToF16(source[at])) : source[at]
      })
      const options = {
        rows,
        channels: width,
        bits: codec.bits,
        scheme: codec.scheme,
        groupSize: codec.scheme === 'groupwise' ? codec.groupSize || shape.headDim : undefined,
      }
      const packed = quantize({
        x: codec.rotated ? rotate(own) : own,
        ...options,
        range: codec.range,
      } as never)
      const restored = [...dequantize({ ...packed, ...options } as never)]
      const back = codec.rotated ? rotate(restored) : restored
      back.forEach((value, i) => {
        out[first * width + i] = value
      })
    }
    total += n
    done = now
  }
  return out
}

/** Rows times the matrix, head by head. */
function rotate(x: number[]): number[] {
  const d = shape.headDim
  const matrix = hadamard(d)
  return x.map((_, i) => {
    const head = i - (i % d)
    let sum = 0
    for (let c = 0; c < d; c++) sum += x[head + c] * matrix[c * d + (i % d)]
    return sum
  })
}

const quantizing: [PolicySpec, number[]][] = [
  ['uniform4-token', [150, 1, 1, 97, 1, 3]],
  ['uniform2-group', [90, 20, 1]],
  ['uniform8-channel', [130, 99, 1]],
  ['rotated4', [140, 5, 100]],
  [{ name: 'rotated', bits: 3, groupSize: 16, range: { norm: 3 } }, [101, 1]],
  ['kivi2', [300, 1, 1, 80, 2, 1]],
  ['kivi4', [100, 27, 1, 31, 1, 128]],
  [{ name: 'kivi', groupSize: 16, residual: 32 }, [47, 1, 1, 1, 20]],
]

describe.each(quantizing)('%j', (spec, turns) => {
  const plan = resolvePolicy(spec).rows as QuantizedPlan
  const all = turns.reduce((a, b) => a + b)

  test('gives back what quantize and dequantize make of the rows', async () => {
    const memory = makeMemory()
    const store = new QuantizedRows(memory, plan)
    await append(store, turns, all)
    expect([store.length, store.nRows]).toEqual([all, all])
    for (let layer = 0; layer < shape.nLayers; layer++) {
      const rows = await readRows(store, layer)
      for (const [actual, codec, x] of [
        [rows.k, plan.key, keysOf(layer, all)],
        [rows.v, plan.value, valuesOf(layer, all)],
      ] as const) {
        const wanted = expected(codec, x, turns)
        const worst = Math.max(...wanted.map((value, i) => Math.abs(value - actual[i])))
        const largest = Math.max(...wanted.map(Math.abs))
        // Rotations are sums in float32, where a code may fall to the other side now and then.
        if (codec.rotated) expect(worst / largest).toBeLessThan(0.2)
        // The reference rounds once, to double precision.
        else expect(worst / largest).toBeLessThan(1e-6)
        if (codec.rotated) {
          const off = wanted.filter((value, i) => Math.abs(value - actual[i]) > 1e-5 * largest)
          expect(off.length).toBeLessThan(0.02 * wanted.length)
        }
      }
    }
    store.dispose()
    expect(memory.usedBytes).toBe(0)
    memory.dispose()
  })

  test('bytes are those of its tensors, a fork has its own rows, and giving up leaves nothing', async () => {
    const memory = makeMemory()
    const store = new QuantizedRows(memory, plan)
    await append(store, turns, all)
    const sum = (held: RowStore) => {
      const { rows, params, tail, scores } = held.bytes
      return rows + params + tail + scores
    }
    expect(sum(store)).toBe(memory.usedBytes)
    const before = await readRows(store, 1)
    const fork = store.fork()
    expect(sum(fork)).toBe(sum(store))
    await append(store, [3], all + 3)
    expect(await readRows(fork, 1)).toEqual(before)
    store.dispose()
    expect(sum(fork)).toBe(memory.usedBytes)

    const scratch = new Scratch(device)
    const writer = fork.begin(200, true, scratch)
    const room = [all + 200, shape.nKvHeads, shape.headDim]
    const [k, v] = [scratch.tensor('f32', room), scratch.tensor('f32', room)]
    for (const x of [k, v]) x.write(new Float32Array(room[0] * width))
    writer.read(0, k, v)
    await writer.write(0, k, v, null)
    expect(writer.bytes).toBeGreaterThan(0)
    expect(memory.usedBytes).toBe(sum(fork) + writer.bytes)
    writer.discard()
    scratch.dispose()
    expect(await readRows(fork, 1)).toEqual(before)
    fork.dispose()
    expect(memory.usedBytes).toBe(0)
    memory.dispose()
  })
})

test('a full memory is told, with nothing taken', async () => {
  const memory = makeMemory(2 ** 20)
  const store = new QuantizedRows(memory, resolvePolicy('kivi4').rows as QuantizedPlan)
  await expect(append(store, [20000], 20000)).rejects.toMatchObject({
    code: 'ERR_ZC_OUT_OF_MEMORY',
  })
  expectRefused(() => memory.rowTensor('u8', [2 ** 21]), {
    code: 'ERR_ZC_OUT_OF_MEMORY',
    argument: 'kvMemory',
  })
  memory.dispose()
})

describe('kept rows', () => {
  const plan: KeptPlan = {
    kind: 'kept',
    accumulates: true,
    nKept: ({ nRows }) => Math.min(nRows, 12),
    nObservers: (_, nNew) => nNew,
    select: (resolvePolicy({ name: 'snapkv', capacity: 12, window: 4, kernel: 1 }).rows as KeptPlan)
      .select,
  }

  test('are those with the most attention, added up from pass to pass', async () => {
    const memory = makeMemory()
    const store = new KeptRows(memory, plan)
    const turns = [30, 1, 1]
    const all = 32
    const { nKvHeads, headDim } = shape
    const queries = randomKeys(3, { nTokens: all, nKvHeads: nHeads, headDim })
    // The twin: which tokens each head of layer 1 has, and the attention they received.
    let held = Array.from({ length: nKvHeads }, () => [] as { token: number; score: number }[])
    let first = 0
    for (const [turn, n] of turns.entries()) {
      const scratch = new Scratch(device)
      const writer = store.begin(n, turn === 0, scratch)
      expect(writer.nObservers).toBe(n)
      const nPast = store.nRows
      for (let layer = 0; layer < shape.nLayers; layer++) {
        const room = [nPast + n, nKvHeads, headDim]
        const [k, v] = [scratch.tensor('f32', room), scratch.tensor('f32', room)]
        if (nPast > 0) writer.read(layer, k, v)
        const rows = (x: Float32Array) => x.slice(first * width, (first + n) * width)
        k.write(rows(keysOf(layer, all)), nPast * width)
        v.write(rows(valuesOf(layer, all)), nPast * width)
        const q = queries.slice(first * nHeads * headDim, (first + n) * nHeads * headDim)
        const keys = await k.read()
        const probes = {
          q: scratch.tensor('f32', [n, nHeads, headDim]).write(q),
          // Any normaliser will do: the twin has the same.
          lse: scratch.tensor('f32', [n, nHeads]).write(new Float32Array(n * nHeads).fill(2)),
          rows: scratch.ints(Int32Array.from({ length: n }, (_, i) => i)),
          positions: scratch.ints(Int32Array.from({ length: n }, (_, i) => nPast + i)),
          scale: 1 / Math.sqrt(headDim),
        }
        await writer.write(layer, k, v, probes)
        if (layer === 0) continue
        const sums = probeAttention({
          q,
          lse: new Float32Array(n * nHeads).fill(2),
          k: keys,
          rows: Int32Array.from({ length: n }, (_, i) => i),
          positions: Int32Array.from({ length: n }, (_, i) => nPast + i),
          nHeads,
          nKvHeads,
          headDim,
          kvLen: nPast + n,
          scale: 1 / Math.sqrt(headDim),
          normalization: 'accumulated',
        })
        held = held.map((tokens, head) => {
          const now = [
            ...tokens,
            ...Array.from({ length: n }, (_, i) => ({ token: first + i, score: 0 })),
          ].map(({ token, score }, row) => ({
            token,
            score: score + sums[head * (nPast + n) + row],
          }))
          const scores = Float32Array.from(now, ({ score }) => score)
          const facts = { nRows: now.length, promptLength: 30, isPrompt: turn === 0 }
          return [...plan.select(scores, facts)].map((row) => now[row])
        })
      }
      writer.publish()
      scratch.dispose()
      first += n
    }
    expect([store.length, store.nRows]).toEqual([all, 12])
    const { k, v } = await readRows(store, 1)
    for (const [actual, x] of [
      [k, keysOf(1, all)],
      [v, valuesOf(1, all)],
    ] as const) {
      for (const [head, tokens] of held.entries()) {
        for (const [row, { token }] of tokens.entries()) {
          const at = (row * nKvHeads + head) * headDim
          const from = (token * nKvHeads + head) * headDim
          const stored = [...x.slice(from, from + headDim)].map((y) => f16ToF32(f32ToF16(y)))
          expect([head, row, actual.slice(at, at + headDim)]).toEqual([head, row, stored])
        }
      }
    }
    // Heads choose by themselves.
    expect(held[0].map(({ token }) => token)).not.toEqual(held[1].map(({ token }) => token))
    const { rows, scores } = store.bytes
    expect(rows + scores).toBe(memory.usedBytes)
    const fork = store.fork()
    store.dispose()
    expect((await readRows(fork, 1)).k).toEqual(k)
    fork.dispose()
    expect(memory.usedBytes).toBe(0)
    memory.dispose()
  })
})

describe('the Hadamard matrix', () => {
  test.each([16, 32, 48, 64, 96, 128, 256])('of size %i is orthogonal and its own inverse', (n) => {
    const matrix = hadamard(n)
    for (let row = 0; row < n; row++) {
      for (let column = 0; column < n; column++) {
        let sum = 0
        for (let i = 0; i < n; i++) sum += matrix[row * n + i] * matrix[i * n + column]
        if (Math.abs(sum - (row === column ? 1 : 0)) > 1e-6) throw new Error(`${row}, ${column}`)
      }
    }
  })

  test('of size 4, by hand; of 6, two beside each other thrice', () => {
    const h = 0.5
    expect([...hadamard(4)]).toEqual([h, h, h, h, h, -h, h, -h, h, h, -h, -h, h, -h, -h, h])
    const sparse = hadamard(6)
    expect(sparse.filter((x) => x !== 0)).toHaveLength(12)
  })
})
