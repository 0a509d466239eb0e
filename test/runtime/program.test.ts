import {
  convert,
  Device,
  embedding,
  linear,
  type Program,
  rmsNorm,
  siluGate,
  type Tensor,
} from '../../lib/ops/index.js'
import { describeDevices, isHost } from '../support/backends.js'
import { expectIdentical } from '../support/compare.js'
import { expectRefused, expectRejected } from '../support/errors.js'
import { normals } from '../support/random-data.js'

const DISPOSED = { code: 'ERR_ZC_HANDLE', argument: 'program' } as const
const OUT_OF_RANGE = {
  code: 'ERR_ZC_ARGUMENT',
  op: 'embedding',
  message: /^ids: token \d+, expected 0 to 3/,
} as const

describeDevices('programs', (name) => {
  let device: Device
  beforeEach(async () => {
    device = await Device.open(name, { threads: 2 })
  })
  afterEach(async () => {
    if (!device.disposed) {
      await device.sync()
      expect(device.memory.current).toBe(0)
    }
    await device.dispose()
  })

  /** A program out = factor input. */
  function scale(factor = 2, width = 4) {
    const weight = device.from(
      new Float32Array(width * width).map((_, i) => (i % (width + 1) === 0 ? factor : 0)),
      [width, width],
    )
    const input = device.tensor('f32', [1, width])
    const out = device.tensor('f32', [1, width])
    const program = device.record(() => linear({ x: input, weight, out }))
    const run = async (values: ArrayLike<number>) =>
      Array.from(await program.run(input, Float32Array.from(values), out))
    return { program, input, out, run, ...disposing(program, weight, input, out) }
  }

  /** A program that looks tokens up, of which there are four: a larger id is a fault. */
  function lookUp() {
    const weight = device.from(Float32Array.of(10, 11, 12, 13), [4, 1])
    const ids = device.tensor('i32', [2])
    const rows = device.tensor('f32', [2, 1])
    const copy = device.from(Float32Array.of(-1, -1), [2, 1])
    const program = device.record(() => {
      embedding({ ids, weight, out: rows })
      convert({ x: rows, out: copy })
    })
    const run = async (values: readonly number[]) =>
      Array.from(await program.run(ids, Int32Array.from(values), copy))
    return { program, copy, run, ...disposing(program, weight, ids, rows, copy) }
  }

  function disposing(...all: readonly (Program | Tensor)[]) {
    return {
      dispose() {
        for (const each of all) each.dispose()
      },
    }
  }

  /** Expects that the device does what it did before a fault. */
  async function expectUsable() {
    const subject = scale(3)
    expect(await subject.run([1, 2, 3, 4])).toEqual([3, 6, 9, 12])
    subject.dispose()
    const x = device.from(Float32Array.of(3), [1, 1])
    linear({ x, weight: x, out: x })
    expect([...(await x.read())]).toEqual([9])
    x.dispose()
  }

  describe('recording', () => {
    test('runs nothing, and a run does', async () => {
      const x = device.from(Float32Array.of(5), [1])
      const out = device.from(Float32Array.of(7), [1])
      const program = device.record(() => convert({ x, out }))
      expect([...(await out.read())]).toEqual([7])
      expect([...(await program.run(x, Float32Array.of(6), out))]).toEqual([6])
      disposing(program, x, out).dispose()
    })

    test('no ops at all is a program too', async () => {
      const x = device.tensor('f32', [2])
      const program = device.record(() => {})
      expect([...(await program.run(x, Float32Array.of(1, 2), x))]).toEqual([1, 2])
      disposing(program, x).dispose()
    })

    test('leaves what other devices do alone', async () => {
      const other = await Device.open(name, { threads: 1 })
      const x = other.from(Float32Array.of(3), [1, 1])
      const program = device.record(() => linear({ x, weight: x, out: x }))
      expect([...(await x.read())]).toEqual([9]) // it ran, over there
      program.dispose()
      await other.dispose()
    })

    const values = Float32Array.of(1)
    const refusals: [string, (x: Tensor<'f32'>, other: Program) => unknown][] = [
      ['a write', (x) => x.write(values)],
      ['a tensor with values', () => device.from(values, [1])],
      ['a read', (x) => x.read()],
      ['a sync', () => device.sync()],
      ['a recording', () => device.record(() => {})],
      ['a run', (x, other) => other.run(x, values, x)],
    ]
    test.each(refusals)('refuses %s, and the device goes on', async (_, call) => {
      const x = device.from<'f32'>(Float32Array.of(3), [1])
      const other = device.record(() => {})
      const fault = { code: 'ERR_ZC_ARGUMENT', message: /^device: is recording a program/ } as const
      let outcome: unknown
      const recorded = () =>
        device.record(() => {
          outcome = call(x, other)
        })
      // Calls that promise something reject; the others end the recording.
      let program: Program | undefined
      try {
        program = recorded()
      } catch (error) {
        expect(error).toMatchObject({ name: 'ZipCacheError', code: fault.code })
        expect((error as Error).message).toMatch(fault.message)
      }
      if (program) await expectRejected(outcome as Promise<unknown>, fault)
      expect([...(await x.read())]).toEqual([3])
      program?.dispose()
      disposing(other, x).dispose()
      await expectUsable()
    })

    test('ends with what the function throws, and keeps nothing', async () => {
      const x = device.from(Float32Array.of(3), [1, 1])
      const mine = new Error('mine')
      const record = () =>
        device.record(() => {
          linear({ x, weight: x, out: x })
          throw mine
        })
      expect(record).toThrow(mine)
      expect([...(await x.read())]).toEqual([3])
      x.dispose()
      await expectUsable()
    })

    test('ends with the fault of an op', async () => {
      const x = device.from(Float32Array.of(3), [1, 1])
      const y = device.tensor('f32', [2, 2])
      const record = () =>
        device.record(() => {
          convert({ x, out: x })
          convert({ x, out: y })
        })
      expectRefused(record, { code: 'ERR_ZC_SHAPE', op: 'convert', argument: 'out' })
      disposing(x, y).dispose()
      await expectUsable()
    })

    test('of a disposed device is refused', async () => {
      await device.dispose()
      expectRefused(() => device.record(() => {}), { code: 'ERR_ZC_HANDLE', argument: 'device' })
    })
  })

  describe('a run', () => {
    test('gives what the same ops give when they are called, time after time', async () => {
      const [n, width, hidden] = [3, 33, 70]
      const constant = (seed: number, shape: number[]) =>
        device.from(normals(seed, shape[0] * (shape[1] ?? 1)), shape)
      const weights = {
        norm: constant(1, [width]),
        gate: constant(2, [hidden, width]),
        up: constant(3, [hidden, width]),
        down: constant(4, [width, hidden]),
      }
      const mlp = () => {
        const x = device.tensor('f32', [n, width])
        const normed = device.tensor('f32', [n, width])
        const gate = device.tensor('f32', [n, hidden])
        const up = device.tensor('f32', [n, hidden])
        const out = device.tensor('f32', [n, width])
        const call = () => {
          rmsNorm({ x, weight: weights.norm, out: normed, eps: 1e-5 })
          linear({ x: normed, weight: weights.gate, out: gate })
          linear({ x: normed, weight: weights.up, out: up })
          siluGate({ gate, up, out: gate })
          linear({ x: gate, weight: weights.down, out })
        }
        return { x, out, call, all: [x, normed, gate, up, out] }
      }
      const recorded = mlp()
      const eager = mlp()
      const program = device.record(recorded.call)
      const results = new Set<string>()
      for (let seed = 10; seed < 20; seed++) {
        const values = normals(seed, n * width)
        const result = await program.run(recorded.x, values, recorded.out)
        eager.x.write(values)
        eager.call()
        expectIdentical(result, await eager.out.read(), { name: 'out', shape: [n, width], seed })
        results.add(result.join())
      }
      expect(results.size).toBe(10)
      disposing(program, ...Object.values(weights), ...recorded.all, ...eager.all).dispose()
    })

    test('may store fewer values than there is room for', async () => {
      const subject = scale(1)
      await subject.run([1, 2, 3, 4])
      expect(await subject.run([9, 8])).toEqual([9, 8, 3, 4])
      expect(await subject.run([])).toEqual([9, 8, 3, 4])
      subject.dispose()
    })

    test('queues up: hundreds of runs give each its own result, in order', async () => {
      const subject = scale(2, 1)
      const order: number[] = []
      const runs = Array.from({ length: 300 }, async (_, i) => {
        const result = await subject.run([i])
        order.push(i)
        return result
      })
      expect(await Promise.all(runs)).toEqual(Array.from({ length: 300 }, (_, i) => [2 * i]))
      expect(order).toEqual([...order.keys()])
      subject.dispose()
    })

    test('keeps its place among ops, writes and reads', async () => {
      const x = device.from(Float32Array.of(1), [1, 1])
      const one = device.from(Float32Array.of(1), [1, 1])
      const input = device.tensor('f32', [1, 1])
      const sum = device.from(Float32Array.of(0), [1, 1])
      const program = device.record(() =>
        linear({ x: input, weight: x, out: sum, accumulate: true }),
      )
      const first = program.run(input, Float32Array.of(5), sum) // 5
      linear({ x: one, weight: one, out: sum, accumulate: true }) // 6
      const read = sum.read()
      x.write(Float32Array.of(10))
      const second = program.run(input, Float32Array.of(3), sum) // 6 + 30
      sum.write(Float32Array.of(0))
      const third = program.run(input, Float32Array.of(7), sum) // 70
      const all = await Promise.all([first, read, second, third])
      expect(all.map(([value]) => value)).toEqual([5, 6, 36, 70])
      disposing(program, x, one, input, sum).dispose()
    })

    test('copies its values: they may change at once', async () => {
      const subject = scale(2, 1)
      const values = Float32Array.of(4)
      const running = subject.program.run(subject.input, values, subject.out)
      values[0] = 5
      expect([...(await running)]).toEqual([8])
      subject.dispose()
    })

    test('takes values in shared memory', async () => {
      const subject = scale(2, 1)
      const values = new Float32Array(new SharedArrayBuffer(4))
      values[0] = 4
      const running = subject.program.run(subject.input, values, subject.out)
      expect([...(await running)]).toEqual([8])
      subject.dispose()
    })

    test('refuses values, tensors and programs that are none of its own', async () => {
      const subject = scale()
      const { program, input, out } = subject
      const four = new Float32Array(4)
      const five = new Float32Array(5)
      const tooMany = { code: 'ERR_ZC_SHAPE', argument: 'values' } as const
      await expectRejected(program.run(input, five, out), tooMany)
      const wrongType = { code: 'ERR_ZC_DTYPE', argument: 'values' } as const
      for (const values of [[1, 2, 3, 4], null, Int32Array.of(1), new Float64Array(1)]) {
        await expectRejected(program.run(input, values as unknown as Float32Array, out), wrongType)
      }
      const other = await Device.open(name, { threads: 1 })
      const foreign = other.tensor('f32', [4])
      const elsewhere = { code: 'ERR_ZC_DEVICE' } as const
      await expectRejected(program.run(foreign, four, out), { ...elsewhere, argument: 'input' })
      await expectRejected(program.run(input, four, foreign), { ...elsewhere, argument: 'output' })
      await other.dispose()
      const gone = device.tensor('f32', [4])
      gone.dispose()
      const handle = { code: 'ERR_ZC_HANDLE' } as const
      await expectRejected(program.run(gone, four, out), { ...handle, argument: 'input' })
      await expectRejected(program.run(input, four, gone), { ...handle, argument: 'output' })
      expect(await subject.run([1, 2, 3, 4])).toEqual([2, 4, 6, 8])
      subject.dispose()
    })
  })

  describe('an op that fails', () => {
    test('rejects that run, and the next run works', async () => {
      const subject = lookUp()
      expect(await subject.run([3, 0])).toEqual([13, 10])
      await expectRejected(subject.run([1, 4]), OUT_OF_RANGE)
      if (isHost(name)) expect([...(await subject.copy.read())]).toEqual([13, 10])
      expect(await subject.run([1, 2])).toEqual([11, 12])
      subject.dispose()
    })

    test('rejects its own of many queued runs alone', async () => {
      const subject = lookUp()
      const outcomes = await Promise.allSettled(
        Array.from({ length: 40 }, (_, i) => subject.run([i % 5, 0])),
      )
      outcomes.forEach((outcome, i) => {
        if (i % 5 < 4) expect(outcome).toMatchObject({ value: [10 + (i % 5), 10] })
        else expect(outcome).toMatchObject({ reason: { code: 'ERR_ZC_ARGUMENT', op: 'embedding' } })
      })
      subject.dispose()
    })

    test('before a run, unreported, rejects the run', async () => {
      const subject = scale(2, 1)
      const ids = device.from(Int32Array.of(7), [1])
      const weight = device.from(new Float32Array(4), [4, 1])
      const out = device.tensor('f32', [1, 1])
      embedding({ ids, weight, out })
      await expectRejected(subject.run([1]), OUT_OF_RANGE)
      expect(await subject.run([1])).toEqual([2])
      disposing(ids, weight, out).dispose()
      subject.dispose()
    })
  })

  describe('what it holds', () => {
    test('tensors that were disposed of after the recording stay until the program goes', async () => {
      const before = device.memory.current
      const weight = device.from(Float32Array.of(2), [1, 1])
      const input = device.tensor('f32', [1, 1])
      const between = device.tensor('f32', [1, 1])
      const out = device.tensor('f32', [1, 1])
      const program = device.record(() => {
        linear({ x: input, weight, out: between })
        linear({ x: between, weight, out })
      })
      disposing(weight, between).dispose()
      // What is freed is given out again: the program's must not be among it.
      const others = Array.from({ length: 20 }, () => device.from(Float32Array.of(7), [1, 1]))
      expect([...(await program.run(input, Float32Array.of(5), out))]).toEqual([20])
      disposing(...others).dispose()
      await device.sync()
      const held = device.memory.current
      expect(held).toBeGreaterThan(before)
      disposing(input, out).dispose()
      await device.sync()
      expect(device.memory.current).toBe(held)
      program.dispose()
      await device.sync()
      expect(device.memory.current).toBe(before)
    })

    test('a disposed program refuses to run; again is nothing', async () => {
      const subject = scale()
      subject.program.dispose()
      subject.program.dispose()
      subject.program[Symbol.dispose]()
      await expectRejected(subject.run([1, 2, 3, 4]), DISPOSED)
      subject.dispose()
      await expectUsable()
    })

    test('runs that were queued before it was disposed of end well', async () => {
      const subject = scale(2, 1)
      const runs = Array.from({ length: 50 }, (_, i) => subject.run([i]))
      subject.dispose()
      expect(await Promise.all(runs)).toEqual(runs.map((_, i) => [2 * i]))
    })
  })

  describe('a device that is disposed of', () => {
    test('with runs in flight rejects them, and does not wait', async () => {
      // What was started on a device has to end, which takes the emulator a thousand times longer.
      const [nProducts, width] = name === 'cuda-emu' ? [5, 8] : [100, 512]
      const x = device.from(normals(1, width * width), [width, width])
      const out = device.tensor('f32', [width, width])
      const input = device.tensor('f32', [1])
      const program = device.record(() => {
        for (let i = 0; i < nProducts; i++) linear({ x, weight: x, out })
      })
      const runs = Array.from({ length: 100 }, () => program.run(input, Float32Array.of(1), input))
      const outcomes = Promise.allSettled(runs)
      const start = performance.now()
      await device.dispose()
      expect(performance.now() - start).toBeLessThan(2000)
      for (const run of runs) await expectRejected(run, { code: 'ERR_ZC_HANDLE' })
      await outcomes
      await expectRejected(program.run(input, Float32Array.of(1), input), DISPOSED)
      program.dispose()
    })

    test('while it records ends the recording', async () => {
      const x = device.from(Float32Array.of(3), [1, 1])
      const record = () =>
        device.record(() => {
          linear({ x, weight: x, out: x })
          void device.dispose()
        })
      expectRefused(record, { code: 'ERR_ZC_HANDLE', argument: 'device' })
      expect(device.disposed).toBe(true)
    })
  })
})
