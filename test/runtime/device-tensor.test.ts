import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import type { ErrorCode } from '../../lib/errors.js'
import * as ops from '../../lib/ops/index.js'
import { countNonFinite, Device, linear, type Tensor } from '../../lib/ops/index.js'
import { describeDevices, isHost } from '../support/backends.js'
import { expectRefused, expectRejected } from '../support/errors.js'

const PAGE = 4096

function square(of: Device, width = 2): Tensor<'f32'> {
  return of.from(new Float32Array(width * width), [width, width])
}

test('every op names what is missing', () => {
  const others = [
    'codeBytesPerRow',
    'packSampleParams',
    'tensorBytes',
    'Device',
    'Program',
    'Tensor',
  ]
  const isOp = ([name, value]: [string, unknown]) =>
    typeof value === 'function' && !others.includes(name)
  const all = Object.entries(ops).filter(isOp) as [string, (args: object) => void][]
  expect(all.length).toBeGreaterThan(20)
  for (const [, op] of all) {
    expect(() => op({})).toThrow(
      expect.objectContaining({ name: 'ZipCacheError', argument: expect.any(String) }),
    )
  }
})

describe('opening a device', () => {
  test.each(['gpu', '', 'cpu:', 'cpu:avx9'])('refuses the name %p', async (name) => {
    const message = /expected auto, cpu/
    await expectRejected(Device.open(name), { code: 'ERR_ZC_DEVICE', message })
  })

  test.each([5 as unknown as string, null as unknown as string, 'cpu\0'])(
    'refuses %j, which is no name',
    async (name) => {
      await expectRejected(Device.open(name), { code: 'ERR_ZC_ARGUMENT', argument: 'device' })
    },
  )

  test('says what was given', async () => {
    const message = /^device: is 5, expected the name/
    await expectRejected(Device.open(5 as never), { code: 'ERR_ZC_ARGUMENT', message })
    await expectRejected(Device.open('cpu', { threads: '2' as never }), {
      code: 'ERR_ZC_ARGUMENT',
      message: /^threads: is "2", expected a whole number/,
    })
  })

  test.each([-1, 0.5, NaN, Infinity, 1025, '2' as unknown as number])(
    'refuses %p threads',
    async (threads) => {
      const fault = { code: 'ERR_ZC_ARGUMENT', argument: 'threads' } as const
      await expectRejected(Device.open('cpu', { threads }), fault)
    },
  )

  describe('without a name', () => {
    const before = process.env.ZIPCACHE_DEVICE
    afterEach(() => {
      if (before === undefined) delete process.env.ZIPCACHE_DEVICE
      else process.env.ZIPCACHE_DEVICE = before
    })

    test.each(['cpu:baseline', 'cpu'])('takes %s, that of the environment', async (name) => {
      process.env.ZIPCACHE_DEVICE = name
      await using device = await Device.open()
      expect(device.info.name).toBe(name)
    })

    test.each(['', undefined])('takes auto where that is %j', async (name) => {
      if (name === undefined) delete process.env.ZIPCACHE_DEVICE
      else process.env.ZIPCACHE_DEVICE = name
      await using device = await Device.open()
      await using other = await Device.open('auto')
      expect(device.info).toEqual(other.info)
    })

    test('refuses what that misspells', async () => {
      process.env.ZIPCACHE_DEVICE = 'gpu'
      await expectRejected(Device.open(), { code: 'ERR_ZC_DEVICE', message: /expected auto, cpu/ })
    })
  })

  test('says what it became', async () => {
    const other = await Device.open('cpu:baseline', { threads: 3 })
    const expected = { name: 'cpu:baseline', kind: 'cpu', isa: 'baseline', nThreads: 3 }
    expect(other.info).toEqual(expected)
    await other.dispose()
  })
})

describeDevices('tensors', (name) => {
  let device: Device

  beforeAll(async () => {
    device = await Device.open(name, { threads: 2 })
  })
  // A queued write holds its tensor: what one test leaves behind must not show in the next.
  afterEach(() => device.sync())
  afterAll(() => device.dispose())

  describe('handles', () => {
    test('a disposed device refuses everything, and disposing again is nothing', async () => {
      const other = await Device.open(name, { threads: 1 })
      const tensor = square(other)
      await other.dispose()
      await other.dispose()
      expect(other.disposed).toBe(true)
      const ofDevice = { code: 'ERR_ZC_HANDLE', argument: 'device' } as const
      expectRefused(() => other.tensor('f32', [1]), ofDevice)
      expectRefused(() => other.memory, ofDevice)
      await expectRejected(other.sync(), ofDevice)
      expectRefused(() => other.reserve('u8', [PAGE]), ofDevice)
      const ofTensor = { code: 'ERR_ZC_HANDLE', message: /its device was disposed/ } as const
      expectRefused(() => tensor.write(new Float32Array(4)), ofTensor)
      expectRefused(() => tensor.view([4]), ofTensor)
      expectRefused(() => linear({ x: tensor, weight: tensor, out: tensor }), ofTensor)
      await expectRejected(tensor.read(), ofTensor)
      tensor.dispose()
    })

    test('a disposed tensor refuses everything, and disposing again is nothing', async () => {
      const tensor = square(device)
      const other = square(device)
      tensor.dispose()
      tensor[Symbol.dispose]()
      expect(tensor.disposed).toBe(true)
      const fault = { code: 'ERR_ZC_HANDLE', message: /it was disposed/ } as const
      expectRefused(() => tensor.write(new Float32Array(4)), { ...fault, argument: 'tensor' })
      expectRefused(() => tensor.view([4]), { ...fault, argument: 'tensor' })
      await expectRejected(tensor.read(), { ...fault, argument: 'tensor' })
      const named = { ...fault, op: 'linear', argument: 'weight' }
      expectRefused(() => linear({ x: other, weight: tensor, out: other }), named)
      other.dispose()
    })

    test.each([{}, undefined, 5, 'x', []])('%p is no tensor', (handle) => {
      const x = square(device)
      const weight = { handle } as unknown as Tensor
      const fault = { code: 'ERR_ZC_HANDLE', op: 'linear', argument: 'weight' } as const
      expectRefused(() => linear({ x, weight, out: x }), fault)
      x.dispose()
    })

    test('a device is no tensor', () => {
      const x = square(device)
      const weight = device as unknown as Tensor
      const fault = { code: 'ERR_ZC_HANDLE', op: 'linear', argument: 'weight' } as const
      expectRefused(() => linear({ x, weight, out: x }), fault)
      x.dispose()
    })

    test('tensors of two devices do not meet', async () => {
      const other = await Device.open(name, { threads: 1 })
      const [x, out, weight] = [square(device), square(device), square(other)]
      const fault = { code: 'ERR_ZC_DEVICE', op: 'linear', argument: 'weight' } as const
      expectRefused(() => linear({ x, weight, out }), fault)
      for (const tensor of [x, out, weight]) tensor.dispose()
      await other.dispose()
    })

    test('an op names the argument that is wrong', () => {
      const [x, long] = [square(device), device.tensor('f32', [2, 3])]
      const ids = device.tensor('i32', [2, 2])
      const shape = { code: 'ERR_ZC_SHAPE', op: 'linear', argument: 'weight' } as const
      expectRefused(() => linear({ x, weight: long, out: x }), shape)
      const dtype = { code: 'ERR_ZC_DTYPE', op: 'linear', argument: 'weight' } as const
      expectRefused(() => linear({ x, weight: ids, out: x }), dtype)
      for (const tensor of [x, long, ids]) tensor.dispose()
    })
  })

  describe('shapes', () => {
    const wrong: [string, unknown][] = [
      ['a negative size', [-1]],
      ['a fraction', [2, 0.5]],
      ['NaN', [NaN]],
      ['a string', ['2']],
      ['no axis', []],
      ['five axes', [1, 1, 1, 1, 1]],
      ['a number', 5],
      ['nothing', undefined],
    ]
    test.each(wrong)('%s is no shape', (_, shape) => {
      const fault = { code: 'ERR_ZC_SHAPE', argument: 'shape' } as const
      expectRefused(() => device.tensor('f32', shape as number[]), fault)
      const tensor = square(device)
      expectRefused(() => tensor.view(shape as number[]), fault)
      tensor.dispose()
    })

    test.each([[2 ** 60], [2 ** 40], [2 ** 31, 2 ** 31], [2 ** 53, 2 ** 53], [Infinity]])(
      '%p does not fit',
      (...shape) => {
        const before = device.memory.current
        expectRefused(() => device.tensor('f32', shape), { code: 'ERR_ZC_OUT_OF_MEMORY' })
        expect(device.memory.current).toBe(before)
      },
    )

    test('an unknown dtype', () => {
      const fault = { code: 'ERR_ZC_DTYPE', argument: 'dtype' } as const
      expectRefused(() => device.tensor('f64' as 'f32', [1]), fault)
    })

    test('an empty tensor is one', async () => {
      const tensor = device.from(new Float32Array(0), [3, 0])
      expect(tensor.length).toBe(0)
      expect(await tensor.read()).toEqual(new Float32Array(0))
      tensor.dispose()
    })
  })

  describe('writing and reading', () => {
    test('what was written comes back, in every dtype and at an offset', async () => {
      const arrays = [
        ['f32', Float32Array.of(1, -2.5, NaN)],
        ['f16', Uint16Array.of(1, 2, 65535)],
        ['bf16', Uint16Array.of(3, 4, 5)],
        ['i32', Int32Array.of(-1, 2 ** 31 - 1, 0)],
        ['u8', Uint8Array.of(0, 255, 7)],
        ['i8', Int8Array.of(0, -127, 7)],
      ] as const
      for (const [dtype, values] of arrays) {
        const tensor = device.from(values, [3], dtype)
        expect(await tensor.read()).toEqual(values)
        tensor.write(values.slice(0, 1), 2)
        expect((await tensor.read())[2]).toBe(values[0])
        tensor.dispose()
      }
    })

    test('a value that changes after the write was not written', async () => {
      const values = Float32Array.of(1, 2)
      const tensor = device.from(values, [2])
      values.fill(9)
      expect([...(await tensor.read())]).toEqual([1, 2])
      tensor.dispose()
    })

    const writes: [string, object, number, ErrorCode, string][] = [
      ['another typed array', new Int32Array(4), 0, 'ERR_ZC_DTYPE', 'values'],
      ['a plain array', [1, 2], 0, 'ERR_ZC_DTYPE', 'values'],
      ['one element too many', new Float32Array(5), 0, 'ERR_ZC_SHAPE', 'values'],
      ['beyond the end', new Float32Array(1), 4, 'ERR_ZC_SHAPE', 'values'],
      ['before the start', new Float32Array(1), -1, 'ERR_ZC_SHAPE', 'offset'],
      ['between two elements', new Float32Array(1), 0.5, 'ERR_ZC_SHAPE', 'offset'],
      ['at NaN', new Float32Array(1), NaN, 'ERR_ZC_SHAPE', 'offset'],
      ['at an offset whose end overflows', new Float32Array(4), 2 ** 61, 'ERR_ZC_SHAPE', 'offset'],
    ]
    test.each(writes)('refuses to write %s', async (_, values, offset, code, argument) => {
      const tensor = square(device)
      const write = () => tensor.write(values as Float32Array, offset)
      expectRefused(write, { code, argument })
      expect([...(await tensor.read())]).toEqual([0, 0, 0, 0])
      tensor.dispose()
    })

    test('from: as many values as the shape has elements', () => {
      const before = device.memory.current
      const fault = { code: 'ERR_ZC_SHAPE', argument: 'values' } as const
      expectRefused(() => device.from(new Float32Array(3), [2, 2]), fault)
      expect(device.memory.current).toBe(before)
    })

    test('shared memory is written like any other', async () => {
      const values = new Float32Array(new SharedArrayBuffer(8))
      values.set([3, 4])
      const tensor = device.from(values, [2])
      expect([...(await tensor.read())]).toEqual([3, 4])
      tensor.dispose()
    })

    // Address space costs nothing on the CPU; another device would have to have the memory.
    if (isHost(name)) {
      test.each([2 ** 36, 2 ** 41])('%i bytes are more than can be read', async (bytes) => {
        const reserved = device.reserve('u8', [bytes])
        const fault = { code: 'ERR_ZC_OUT_OF_MEMORY', argument: 'tensor' } as const
        await expectRejected(reserved.read(), fault)
        reserved.dispose()
      })
    }

    // In pieces, on a device: of a megabyte, and reads of up to four at once.
    test.each([2 ** 16 + 1, 2 ** 20 - 1, 2 ** 20 + 1, 2 ** 22 - 1, 2 ** 22 + 1, 9 * 2 ** 20 + 3])(
      '%i bytes come back as they were written, at odd addresses',
      async (bytes) => {
        const values = Uint8Array.from({ length: bytes }, (_, i) => (i * 31 + (i >> 8)) & 255)
        const tensor = device.reserve('u8', [bytes + 6])
        const view = tensor.view([bytes], 5)
        view.write(values)
        view.write(values.subarray(7, 8), 3)
        values[3] = values[7]
        const whole = tensor.read()
        const inner = await view.read()
        expect(Buffer.compare(inner, values)).toBe(0)
        const outer = await whole
        expect([...outer.subarray(0, 5), outer[bytes + 5]]).toEqual([0, 0, 0, 0, 0, 0])
        expect(Buffer.compare(outer.subarray(5, bytes + 5), values)).toBe(0)
        tensor.dispose()
        view.dispose()
      },
    )

    test('a read that is queued outlives its tensor', async () => {
      const tensor = device.from(Float32Array.of(1, 2, 3), [3])
      const promise = tensor.read()
      tensor.dispose()
      expect([...(await promise)]).toEqual([1, 2, 3])
    })
  })

  describe('views', () => {
    test('share the memory and keep it alive', async () => {
      const before = device.memory.current
      const whole = device.from(Float32Array.of(1, 2, 3, 4, 5, 6), [6])
      const view = whole.view([2, 2], 1)
      whole.dispose()
      expect(device.memory.current).toBe(before + 24)
      expect([...(await view.read())]).toEqual([2, 3, 4, 5])
      const last = view.view([1], 3).write(Float32Array.of(9))
      last.dispose()
      expect([...(await view.read())]).toEqual([2, 3, 4, 9])
      view.dispose()
    })

    const beyond: [string, number[], number, string][] = [
      ['longer', [5], 0, 'shape'],
      ['shifted beyond the end', [4], 1, 'shape'],
      ['before the start', [1], -1, 'offset'],
      ['between two elements', [1], 0.5, 'offset'],
      ['at NaN', [1], NaN, 'offset'],
      ['far away', [1], 2 ** 61, 'offset'],
    ]
    test.each(beyond)('refuses one that is %s', (_, shape, offset, argument) => {
      const tensor = square(device)
      expectRefused(() => tensor.view(shape, offset), { code: 'ERR_ZC_SHAPE', argument })
      tensor.dispose()
    })

    test('reach no further than the view they are of', () => {
      const tensor = device.tensor('f32', [8])
      const view = tensor.view([4], 2)
      expectRefused(() => view.view([4], 1), { code: 'ERR_ZC_SHAPE', argument: 'shape' })
      tensor.dispose()
      view.dispose()
    })
  })

  describe('memory', () => {
    test('returns to its start after many rounds, and knows its peak', async () => {
      const other = await Device.open(name, { threads: 2 })
      const weight = square(other, 16)
      await other.sync()
      const start = other.memory.current
      for (let round = 0; round < 1000; ++round) {
        const [x, out] = [square(other, 16), square(other, 16)]
        linear({ x, weight, out })
        const promise = round % 100 === 0 ? out.read() : undefined
        x.dispose()
        out.dispose()
        await promise
      }
      await other.sync()
      expect(other.memory.current).toBe(start)
      expect(other.memory.peak).toBeGreaterThanOrEqual(start + 1024)
      await other.dispose()
    })

    test('counts tensors, not views or reservations', async () => {
      const before = device.memory.current
      const tensor = device.tensor('f32', [10])
      const view = tensor.view([5])
      const reserved = device.reserve('u8', [1 << 30])
      expect(device.memory.current).toBe(before + 40)
      for (const each of [tensor, view, reserved]) each.dispose()
      expect(device.memory.current).toBe(before)
    })

    test('a queued op holds its tensors until it has run', async () => {
      const before = device.memory.current
      const x = square(device, 256)
      const out = square(device, 256)
      for (let i = 0; i < 20; ++i) linear({ x, weight: x, out })
      x.dispose()
      out.dispose()
      await device.sync()
      expect(device.memory.current).toBe(before)
    })
  })

  describe('reservations', () => {
    test('read zero at first and after a discard', async () => {
      const reserved = device.reserve('u8', [4 * PAGE])
      const ones = new Uint8Array(4 * PAGE).fill(1)
      expect((await reserved.read()).every((byte) => byte === 0)).toBe(true)
      reserved.write(ones)
      device.discard(reserved, PAGE, 2 * PAGE)
      const expected = ones.slice().fill(0, PAGE, 3 * PAGE)
      expect(Buffer.compare(await reserved.read(), expected)).toBe(0)
      reserved.dispose()
    })

    test('a last page that is not whole can be discarded', async () => {
      const reserved = device.reserve('u8', [PAGE + 10])
      reserved.write(new Uint8Array(PAGE + 10).fill(1))
      device.discard(reserved, PAGE, 10)
      expect([...(await reserved.read()).subarray(PAGE - 1)]).toEqual([1, ...Array(10).fill(0)])
      reserved.dispose()
    })

    test.each([0, -1, 0.5, NaN])('refuses a reservation of %p bytes', (bytes) => {
      expectRefused(() => device.reserve('u8', [bytes]), {
        code: 'ERR_ZC_SHAPE',
        argument: 'shape',
      })
    })

    test('refuses a reservation of more than can be addressed', () => {
      expectRefused(() => device.reserve('u8', [2 ** 60]), { code: 'ERR_ZC_OUT_OF_MEMORY' })
    })

    const outside: [string, number, number][] = [
      ['beyond the end', PAGE, 2 * PAGE],
      ['before the start', -PAGE, PAGE],
      ['parts of a page', 1, PAGE],
      ['less than a page', 0, 100],
      ['a range whose end overflows', 2 ** 63, 2 ** 63],
      ['NaN', NaN, PAGE],
    ]
    test.each(outside)('refuses to discard %s', (_, offset, bytes) => {
      const reserved = device.reserve('u8', [2 * PAGE])
      const fault = { code: 'ERR_ZC_ARGUMENT', message: /discard: bytes/ } as const
      expectRefused(() => device.discard(reserved, offset, bytes), fault)
      reserved.dispose()
    })

    test('refuses to discard what is no reservation', () => {
      const tensor = device.tensor('u8', [PAGE])
      expectRefused(() => device.discard(tensor, 0, PAGE), { code: 'ERR_ZC_ARGUMENT' })
      tensor.dispose()
    })
  })

  describe('mapped files', () => {
    let folder: string
    let file: string
    const bytes = Uint8Array.from({ length: 1000 }, (_, i) => (i * 7) & 255)

    beforeAll(() => {
      folder = mkdtempSync(path.join(tmpdir(), 'zipcache-map-'))
      file = path.join(folder, 'data')
      writeFileSync(file, bytes)
      writeFileSync(path.join(folder, 'empty'), '')
    })
    afterAll(() => rmSync(folder, { recursive: true }))

    test.each([
      [0, 0],
      [4, 0],
      [1, 40],
      [2, 40],
      [3, 40],
      [960, 0],
    ])('40 bytes from %i on, of which %i are copied', async (offset, copied) => {
      const before = device.memory.current
      const tensor = device.fromFile(device.mapFile(file), offset, 'f32', [2, 5])
      // Another device has to get all of it.
      expect(device.memory.current).toBe(before + (isHost(name) ? copied : 40))
      const read = new Uint8Array((await tensor.read()).buffer)
      expect(read).toEqual(bytes.slice(offset, offset + 40))
      tensor.dispose()
      await device.sync() // the copy holds its tensor until it is over
      expect(device.memory.current).toBe(before)
    })

    const onLinux = process.platform === 'linux' ? test : test.skip
    onLinux('are held no longer than somebody looks at them', async () => {
      const size = 2 ** 25
      const large = path.join(folder, 'large')
      writeFileSync(large, new Uint8Array(size + 1).fill(1))
      /** Bytes of files that this process holds. */
      const held = () => {
        const lines = readFileSync('/proc/self/status', 'utf8').matchAll(
          /Rss(?:File|Shmem):\s+(\d+)/g,
        )
        return [...lines].reduce((sum, [, kilobytes]) => sum + 1024 * Number(kilobytes), 0)
      }
      const mapped = device.mapFile(large)
      const before = held()
      const count = device.tensor('i32', [1])
      for (const offset of [0, 1]) {
        const x = device.fromFile(mapped, offset, 'f32', [size / 4])
        countNonFinite({ x, count })
        expect(await count.read()).toEqual(Int32Array.of(0))
        const isBorrowed = isHost(name) && offset === 0
        expect(held() - before > size / 2).toBe(isBorrowed)
        x.dispose()
        await device.sync()
        expect(held() - before).toBeLessThan(size / 2)
      }
      count.dispose()
    })

    test('are deleted and still read', async () => {
      const gone = path.join(folder, 'gone')
      writeFileSync(gone, bytes)
      const tensor = device.fromFile(device.mapFile(gone), 0, 'u8', [10])
      rmSync(gone)
      expect(await tensor.read()).toEqual(bytes.slice(0, 10))
      tensor.dispose()
    })

    test.each([
      ['beyond the end', 996, [2]],
      ['after the end', 1004, [1]],
      ['before the start', -4, [1]],
      ['far away', 2 ** 60, [1]],
      ['NaN', NaN, [1]],
      ['of all memory', 0, [2 ** 40]],
    ])('refuses bytes %s', (_, offset, shape) => {
      const mapped = device.mapFile(file)
      const fromFile = () => device.fromFile(mapped, offset, 'f32', shape)
      expectRefused(fromFile, { code: 'ERR_ZC_CHECKPOINT' })
    })

    test.each([
      ['is missing', 'nowhere', /nowhere: cannot be opened: No such file/],
      ['is a folder', '.', /not a regular file/],
      ['is empty', 'empty', /empty: the file is empty/],
    ])('refuses a file that %s', (_, name, message) => {
      const map = () => device.mapFile(path.join(folder, name))
      expectRefused(map, { code: 'ERR_ZC_IO', message })
    })

    test.each([`data\0`, undefined, 5])('refuses %j, which is no path', (name) => {
      const map = () => device.mapFile(name as string)
      expectRefused(map, { code: 'ERR_ZC_ARGUMENT', argument: 'path' })
    })

    test('are not written, by nobody', async () => {
      const mapped = device.mapFile(file)
      const weight = device.fromFile(mapped, 0, 'f32', [2, 2])
      const view = weight.view([4])
      const x = square(device)
      const message = /cannot be written/
      const write = () => view.write(new Float32Array(4))
      expectRefused(write, { code: 'ERR_ZC_ARGUMENT', argument: 'tensor', message })
      const op = () => linear({ x, weight: x, out: weight })
      expectRefused(op, { code: 'ERR_ZC_ARGUMENT', op: 'linear', argument: 'out', message })
      const out = square(device)
      linear({ x, weight, out })
      await device.sync()
      for (const tensor of [weight, view, x, out]) tensor.dispose()
    })

    test('another handle is no file', () => {
      const other = device.tensor('u8', [8])
      const fromFile = () =>
        device.fromFile({ path: '', handle: other.handle as never }, 0, 'u8', [1])
      expectRefused(fromFile, { code: 'ERR_ZC_HANDLE', argument: 'file' })
      other.dispose()
    })
  })
})
