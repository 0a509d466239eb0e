import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { ErrorCode } from '../../lib/errors.js'
import type { Tensor } from '../../lib/ops/index.js'
import {
  type CODE_LAYOUTS,
  type StoredWeight,
  UNPACKED,
  unpackWeight,
  type ZERO_LAYOUTS,
} from '../../lib/ops/unpack-weight.js'
import { convert, f32ToBf16, f32ToF16, packInt4Codes } from '../../lib/reference/index.js'
import { type Backend, describeBackends } from '../support/backends.js'
import { expectIdentical } from '../support/compare.js'
import { expectRefused } from '../support/errors.js'
import { integers, normals } from '../support/random-data.js'

/** MXFP4 has its own tests: its scales are no floats of ours. */
type Layout = Exclude<(typeof CODE_LAYOUTS)[number], 'mxfp4' | 'nvfp4'>
type ZeroLayout = (typeof ZERO_LAYOUTS)[number]

const root = mkdtempSync(join(tmpdir(), 'zipcache-unpack-'))
afterAll(() => rmSync(root, { recursive: true, force: true }))
let nFiles = 0

/** Where the eight codes of AWQ's words stand. */
const kAwqOrder = [0, 2, 4, 6, 1, 3, 5, 7]

interface Case {
  layout: Layout
  zeroLayout: ZeroLayout
  bits: 4 | 8
  n: number
  k: number
  blockRows: number
  blockColumns: number
  scaleDtype: 'f32' | 'f16' | 'bf16'
  columnGroups?: Int32Array
  seed?: number
}

/** A weight by its definition, and the bytes of a file that stores it. */
function makeWeight(own: Case) {
  const { layout, zeroLayout, bits, n, k, blockRows, blockColumns, scaleDtype, seed = 1 } = own
  const levels = 2 ** bits
  const rows = Math.ceil(n / blockRows)
  const groups = Math.ceil(k / blockColumns)
  const codes = integers(seed, n * k, levels)
  if (layout === 'f8')
    for (const [i, code] of codes.entries()) codes[i] = code % 128 === 127 ? 1 : code
  const zeros = integers(seed + 1, rows * groups, levels)
  if (zeroLayout === 'none') zeros.fill(layout === 'f8' ? 0 : levels / 2)
  const scales = convert({ x: normals(seed + 2, rows * groups), dtype: scaleDtype })
  const values = new Float64Array(n * k)
  for (let r = 0; r < n; r++) {
    for (let c = 0; c < k; c++) {
      const group = own.columnGroups ? own.columnGroups[c]! : Math.floor(c / blockColumns)
      const at = Math.floor(r / blockRows) * groups + group
      const code = layout === 'f8' ? float8(codes[r * k + c]!) : codes[r * k + c]!
      values[r * k + c] = Math.fround((code - zeros[at]!) * scales[at]!)
    }
  }
  return { codes, zeros, scales, values, groups, bytes: bytesOf(own, codes, zeros, scales) }
}

function float8(code: number): number {
  const sign = code < 128 ? 1 : -1
  const exponent = Math.floor(code / 8) % 16
  const fraction = (code % 8) / 8
  return sign * (exponent === 0 ? fraction * 2 ** -6 : (1 + fraction) * 2 ** (exponent - 7))
}

const words = (length: number, bits: number) => Math.ceil((length * bits) / 32)

/** Sets the code that begins at a bit of a file. */
function put(bytes: Uint8Array, bit: number, code: number): void {
  const at = Math.floor(bit / 8)
  bytes[at] = bytes[at]! | (code << (bit % 8))
}

function bytesOf(own: Case, codes: Int32Array, zeros: Int32Array, scales: Float64Array) {
  const { layout, zeroLayout, bits, n, k, blockRows, blockColumns, scaleDtype } = own
  const rows = Math.ceil(n / blockRows)
  const groups = Math.ceil(k / blockColumns)
  const places = (row: number) => 4 * kAwqOrder.indexOf(row % 8)
  const below = (r: number, c: number) => 32 * (Math.floor((r * bits) / 32) * c) + ((r * bits) % 32)
  const packed = {
    f8: { size: n * k, bit: (r: number, c: number) => 8 * (r * k + c) },
    i8: { size: n * k, bit: (r: number, c: number) => 8 * (r * k + c) },
    packed: {
      size: 4 * n * words(k, bits),
      bit: (r: number, c: number) => 32 * r * words(k, bits) + c * bits,
    },
    gptq: { size: 4 * words(k, bits) * n, bit: (r: number, c: number) => below(c, n) + 32 * r },
    awq: {
      size: 4 * k * words(n, 4),
      bit: (r: number, c: number) => 32 * (c * words(n, 4) + Math.floor(r / 8)) + places(r),
    },
  }[layout]
  const codeBytes = new Uint8Array(packed.size)
  for (let r = 0; r < n; r++) {
    for (let c = 0; c < k; c++) {
      const code = codes[r * k + c]!
      put(codeBytes, packed.bit(r, c), layout === 'i8' ? (code + 128) % 256 : code)
    }
  }
  const isTransposed = layout === 'gptq' || layout === 'awq'
  const order = Int32Array.from(scales, (_, i) =>
    isTransposed ? (i % n) * groups + Math.floor(i / n) : i,
  )
  const stored = Array.from(order, (i) => scales[i]!)
  const toBits = { f16: f32ToF16, bf16: f32ToBf16 }
  const scaleBytes = new Uint8Array(
    scaleDtype === 'f32'
      ? Float32Array.from(stored).buffer
      : Uint16Array.from(stored, toBits[scaleDtype]).buffer,
  )
  const wide = words(n, bits)
  const zeroPlaces = {
    none: { size: 0, bit: () => 0 },
    i8: { size: rows * groups, bit: (r: number, g: number) => 8 * (r * groups + g) },
    packed: {
      size: 4 * words(rows, bits) * groups,
      bit: (r: number, g: number) => below(r, groups) + 32 * g,
    },
    gptq: { size: 4 * groups * wide, bit: (r: number, g: number) => 32 * g * wide + r * bits },
    'gptq - 1': {
      size: 4 * groups * wide,
      bit: (r: number, g: number) => 32 * g * wide + r * bits,
    },
    awq: {
      size: 4 * groups * wide,
      bit: (r: number, g: number) => 32 * (g * wide + Math.floor(r / 8)) + places(r),
    },
  }[zeroLayout]
  const zeroBytes = new Uint8Array(zeroPlaces.size)
  if (zeroLayout !== 'none') {
    for (let r = 0; r < rows; r++) {
      for (let g = 0; g < groups; g++) {
        const zero = zeros[r * groups + g]!
        const byte = (256 + zero - 2 ** (bits - 1)) % 256
        put(zeroBytes, zeroPlaces.bit(r, g), zeroLayout === 'i8' ? byte : zero)
      }
    }
  }
  if (zeroLayout === 'gptq - 1') {
    // As GPTQModel does: from whole words, with what that borrows.
    const view = new DataView(zeroBytes.buffer)
    const ones = bits === 4 ? 0x11111111 : 0x01010101
    for (let at = 0; at < zeroBytes.length; at += 4) {
      view.setUint32(at, view.getUint32(at, true) - ones, true)
    }
  }
  return { codeBytes, scaleBytes, zeroBytes }
}

/** Puts the bytes into a file, at odd offsets, and says where they are. */
function store(
  backend: Backend,
  own: Case,
  { bytes }: ReturnType<typeof makeWeight>,
): StoredWeight {
  const groupBytes = new Uint8Array(own.columnGroups?.slice().buffer ?? new ArrayBuffer(0))
  const parts = [bytes.codeBytes, bytes.scaleBytes, bytes.zeroBytes, groupBytes]
  const chunks: Uint8Array[] = []
  const offsets: number[] = []
  let end = 0
  for (const part of parts) {
    chunks.push(new Uint8Array(1), part)
    offsets.push(end + 1)
    end += 1 + part.length
  }
  const path = join(root, `${nFiles++}`)
  writeFileSync(path, Buffer.concat(chunks))
  const file = backend.device.mapFile(path)
  const at = (index: number) => ({ file, offset: offsets[index]! })
  const { layout, zeroLayout, bits, n, k, blockRows, blockColumns, scaleDtype } = own
  return {
    ...{ layout, zeroLayout, bits, n, k, blockRows, blockColumns, scaleDtype },
    codes: at(0),
    scales: at(1),
    zeros: zeroLayout === 'none' ? null : at(2),
    columnGroups: own.columnGroups ? at(3) : null,
  }
}

const kCases: Case[] = [
  {
    layout: 'f8',
    zeroLayout: 'none',
    bits: 8,
    blockRows: 128,
    blockColumns: 128,
    scaleDtype: 'f32',
    n: 200,
    k: 300,
  },
  {
    layout: 'f8',
    zeroLayout: 'none',
    bits: 8,
    blockRows: 1,
    blockColumns: 17,
    scaleDtype: 'bf16',
    n: 5,
    k: 17,
  },
  {
    layout: 'f8',
    zeroLayout: 'none',
    bits: 8,
    blockRows: 3,
    blockColumns: 700,
    scaleDtype: 'f16',
    n: 3,
    k: 700,
  },
  {
    layout: 'i8',
    zeroLayout: 'none',
    bits: 8,
    blockRows: 1,
    blockColumns: 33,
    scaleDtype: 'f32',
    n: 130,
    k: 33,
  },
  {
    layout: 'i8',
    zeroLayout: 'i8',
    bits: 8,
    blockRows: 1,
    blockColumns: 16,
    scaleDtype: 'f16',
    n: 7,
    k: 40,
  },
  {
    layout: 'packed',
    zeroLayout: 'none',
    bits: 4,
    blockRows: 1,
    blockColumns: 32,
    scaleDtype: 'bf16',
    n: 129,
    k: 1088,
  },
  {
    layout: 'packed',
    zeroLayout: 'packed',
    bits: 4,
    blockRows: 1,
    blockColumns: 10,
    scaleDtype: 'f32',
    n: 13,
    k: 43,
  },
  {
    layout: 'packed',
    zeroLayout: 'i8',
    bits: 4,
    blockRows: 1,
    blockColumns: 64,
    scaleDtype: 'f16',
    n: 9,
    k: 128,
  },
  {
    layout: 'packed',
    zeroLayout: 'packed',
    bits: 8,
    blockRows: 1,
    blockColumns: 21,
    scaleDtype: 'bf16',
    n: 5,
    k: 21,
  },
  {
    layout: 'gptq',
    zeroLayout: 'gptq',
    bits: 4,
    blockRows: 1,
    blockColumns: 64,
    scaleDtype: 'f16',
    n: 136,
    k: 576,
  },
  {
    layout: 'gptq',
    zeroLayout: 'gptq - 1',
    bits: 4,
    blockRows: 1,
    blockColumns: 24,
    scaleDtype: 'f16',
    n: 24,
    k: 64,
  },
  {
    layout: 'gptq',
    zeroLayout: 'gptq - 1',
    bits: 8,
    blockRows: 1,
    blockColumns: 32,
    scaleDtype: 'f16',
    n: 12,
    k: 64,
  },
  {
    layout: 'awq',
    zeroLayout: 'awq',
    bits: 4,
    blockRows: 1,
    blockColumns: 128,
    scaleDtype: 'f16',
    n: 264,
    k: 640,
  },
  {
    layout: 'awq',
    zeroLayout: 'awq',
    bits: 4,
    blockRows: 1,
    blockColumns: 32,
    scaleDtype: 'f32',
    n: 8,
    k: 96,
  },
]

const title =
  '$layout, zeros $zeroLayout, $bits bits, $scaleDtype, blocks $blockRows x $blockColumns, of $n x $k'

describeBackends('unpackWeight', (backend) => {
  async function unpack(
    from: StoredWeight,
    firstRow: number,
    to: { out: Tensor; scales?: Tensor; zeros?: Tensor<'u8'> },
  ) {
    const status = backend.tensors.output('i32', [1])
    unpackWeight(backend.device, { from, firstRow, ...to, status })
    const [result] = await status.read()
    return UNPACKED[result!]
  }

  test.each(kCases)(`${title}: values of all rows, and of some`, async (own) => {
    const { n, k } = own
    const weight = makeWeight(own)
    const from = store(backend, own, weight)
    for (const dtype of ['f32', 'bf16'] as const) {
      for (const [first, end] of [
        [0, n],
        [Math.floor(n / 3), n - 1],
      ] as const) {
        const out = backend.tensors.output(dtype, [end - first, k])
        expect(await unpack(from, first, { out })).toBe('done')
        const expected = convert({ x: weight.values.slice(first * k, end * k), dtype })
        expectIdentical(await backend.tensors.values(out), expected, {
          name: 'out',
          shape: out.shape,
        })
      }
    }
  })

  const kValues = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
  type Float4Parts = [n: number, k: number, codes: Uint8Array, scales: Uint8Array]

  /** Codes and scales of float4 (n, blocks), at odd offsets of a file. */
  const storeFloat4 = (layout: 'mxfp4' | 'nvfp4', ...[n, k, codes, scales]: Float4Parts) => {
    const path = join(root, `${nFiles++}`)
    writeFileSync(path, Buffer.concat([Buffer.of(7), codes, scales]))
    const file = backend.device.mapFile(path)
    return {
      ...({ layout, zeroLayout: 'none', bits: 4, scaleDtype: 'u8' } as const),
      ...{ n, k, blockRows: 1, blockColumns: layout === 'nvfp4' ? 16 : 32 },
      ...{ zeros: null, columnGroups: null },
      ...{ codes: { file, offset: 1 }, scales: { file, offset: 1 + codes.length } },
    }
  }

  describe('NVFP4', () => {
    const float8 = (code: number) => {
      const [exponent, mantissa] = [(code >> 3) & 15, code & 7]
      const size = exponent === 0 ? mantissa / 512 : (8 + mantissa) * 2 ** (exponent - 10)
      return code < 128 ? size : -size
    }

    const storeNvfp4 = (...parts: Float4Parts) => storeFloat4('nvfp4', ...parts)

    test.each([
      [1, 16, { scaleFactor: 0.75 }],
      [5, 48, { scaleDivisor: 3 }],
      [262, 1040, { scaleFactor: 2 ** -9, scaleDivisor: 1 }],
      [33, 576, {}],
    ])('%i rows of %i, scales besides %j', async (n, k, ofAll) => {
      const codes = Uint8Array.from(integers(n, (n * k) / 2, 256))
      const scales = Uint8Array.from(integers(k, (n * k) / 16, 256), (scale) => scale & 0xfe)
      const { scaleFactor = 1, scaleDivisor = 1 } = ofAll as Record<string, number>
      const from = { ...storeNvfp4(n, k, codes, scales), ...ofAll }
      const element = (i: number) => {
        const code = i % 2 === 0 ? codes[i >> 1]! % 16 : codes[i >> 1]! >> 4
        const scale = Math.fround((float8(scales[i >> 4]!) * scaleFactor) / scaleDivisor)
        return (code < 8 ? 1 : -1) * kValues[code % 8]! * scale
      }
      for (const [firstRow, rowStep] of [
        [0, 1],
        [0, 2],
      ] as const) {
        const rows = Math.ceil((n - firstRow) / rowStep)
        for (const dtype of ['f32', 'bf16'] as const) {
          const out = backend.tensors.output(dtype, [rows, k])
          expect(await unpack(from, firstRow, { out, rowStep } as never)).toBe('done')
          const x = Float64Array.from({ length: rows * k }, (_, i) =>
            element((firstRow + rowStep * Math.floor(i / k)) * k + (i % k)),
          )
          expectIdentical(await backend.tensors.values(out), convert({ x, dtype }), {
            ...{ name: 'out', shape: out.shape },
          })
        }
      }
    })

    test('a scale that is NaN is refused, and codes are not kept', async () => {
      const codes = new Uint8Array(2 * 32)
      const [good, bad] = [new Uint8Array(8).fill(0x38), new Uint8Array(8).fill(0x38)]
      bad[5] = 0x7f
      const out = backend.tensors.output('f32', [2, 64])
      expect(await unpack(storeNvfp4(2, 64, codes, bad), 0, { out })).toBe('bad scale')
      const kept = { out: backend.tensors.output('u8', [2, 32]) }
      const scales = backend.tensors.output('u8', [2, 4])
      await expect(unpack(storeNvfp4(2, 64, codes, good), 0, { ...kept, scales })).rejects.toThrow(
        expect.objectContaining({
          code: 'ERR_ZC_ARGUMENT',
          message: expect.stringMatching(/codes of 4 bits/),
        }),
      )
    })
  })

  describe('MXFP4', () => {
    const storeMxfp4 = (...parts: Float4Parts) => storeFloat4('mxfp4', ...parts)

    test.each([
      [1, 32],
      [5, 40],
      [33, 1088],
      [262, 576],
    ])('%i rows of %i: all, and every other one', async (n, k) => {
      const blocks = Math.ceil(k / 32)
      const codes = Uint8Array.from(integers(n, n * blocks * 16, 256))
      const scales = Uint8Array.from(integers(k, n * blocks, 60), (scale) => 97 + scale)
      const from = storeMxfp4(n, k, codes, scales)
      const element = (row: number, column: number) => {
        const byte = codes[row * blocks * 16 + Math.floor(column / 2)]!
        const code = column % 2 === 0 ? byte % 16 : Math.floor(byte / 16)
        const scale = 2 ** (scales[row * blocks + Math.floor(column / 32)]! - 127)
        return (code < 8 ? 1 : -1) * kValues[code % 8]! * scale
      }
      for (const [firstRow, rowStep] of [
        [0, 1],
        [0, 2],
        [1, 2],
      ] as const) {
        const rows = Math.ceil((n - firstRow) / rowStep)
        for (const dtype of ['f32', 'bf16'] as const) {
          const out = backend.tensors.output(dtype, [rows, k])
          const status = backend.tensors.output('i32', [1])
          unpackWeight(backend.device, { from, firstRow, rowStep, out, status })
          expect(await status.read()).toEqual(Int32Array.of(0))
          const expected = Float64Array.from({ length: rows * k }, (_, i) =>
            element(firstRow + rowStep * Math.floor(i / k), i % k),
          )
          expectIdentical(await backend.tensors.values(out), expected, {
            ...{ name: 'out', shape: out.shape },
          })
        }
      }
    })

    test('scales of every size; that of NaN is refused', async () => {
      const codes = Uint8Array.from({ length: 3 * 16 }, (_, i) => (i % 16 === 0 ? 0x97 : 0))
      const scales = Uint8Array.of(0, 1, 252)
      const out = backend.tensors.output('f32', [3, 32])
      expect(await unpack(storeMxfp4(3, 32, codes, scales), 0, { out })).toBe('done')
      const values = await out.read()
      expect([0, 32, 64].map((i) => values[i])).toEqual(
        [6, 6, 6].map((x, i) => x * 2 ** (scales[i]! - 127)),
      )
      expect(values[33]).toBe(-0.5 * 2 ** -126)
      scales[1] = 255
      expect(await unpack(storeMxfp4(3, 32, codes, scales), 0, { out })).toBe('bad scale')
    })

    test.each([
      [1, 64],
      [35, 1088],
      [262, 576],
    ])('%i rows of %i: codes and scales as they are', async (n, k) => {
      const codes = integers(n, n * k, 16)
      const bytes = Uint8Array.from({ length: (n * k) / 2 }, (_, i) => {
        return codes[2 * i]! | (codes[2 * i + 1]! << 4)
      })
      const exponents = Uint8Array.from(integers(k, (n * k) / 32, 255))
      const from = storeMxfp4(n, k, bytes, exponents)
      for (const [firstRow, rowStep] of [
        [0, 1],
        [0, 2],
        [1, 2],
      ] as const) {
        const rows = Array.from({ length: n }, (_, row) => row).filter(
          (row) => row >= firstRow && (row - firstRow) % rowStep === 0,
        )
        const out = backend.tensors.output('u8', [rows.length, k / 2])
        const scales = backend.tensors.output('u8', [rows.length, k / 32])
        const status = backend.tensors.output('i32', [1])
        unpackWeight(backend.device, { from, firstRow, rowStep, out, scales, status })
        expect(await status.read()).toEqual(Int32Array.of(0))
        const rowsOf = (all: ArrayLike<number>, width: number) =>
          rows.flatMap((row) => Array.from(all).slice(row * width, (row + 1) * width))
        const packed = Float64Array.from(packInt4Codes(rowsOf(codes, k)))
        expectIdentical(await backend.tensors.values(out), packed, {
          ...{ name: 'out', shape: out.shape },
        })
        expectIdentical(
          await backend.tensors.values(scales),
          Float64Array.from(rowsOf(exponents, k / 32)),
          { name: 'scales', shape: scales.shape },
        )
      }
    })

    test('what it has no room for, and nothing behind its last row', () => {
      const from = storeMxfp4(4, 64, new Uint8Array(4 * 32), new Uint8Array(8))
      const status = backend.tensors.output('i32', [1])
      const call = (args: Partial<Parameters<typeof unpackWeight>[1]>) => () =>
        unpackWeight(backend.device, { from, firstRow: 0, ...four(4, 64, 32), status, ...args })
      const own = { op: 'unpackWeight' }
      expectRefused(call({}), { ...own, code: 'ERR_ZC_ARGUMENT' }) // zeros
      expectRefused(call({ zeros: undefined }), { ...own, code: 'ERR_ZC_DTYPE' }) // scales of f16
      const inGroups = (group: number) => ({
        scales: backend.tensors.output('u8', [4, 64 / group]),
        zeros: undefined,
      })
      expectRefused(call(inGroups(64)), { ...own, code: 'ERR_ZC_ARGUMENT' })
      const inLarger = { from: { ...from, blockColumns: 64 }, ...inGroups(64) }
      expectRefused(call(inLarger), { ...own, code: 'ERR_ZC_ARGUMENT' })
      const out = backend.tensors.output('f32', [2, 64])
      expectRefused(call({ out, firstRow: 2, rowStep: 2 }), { ...own, code: 'ERR_ZC_SHAPE' })
      expectRefused(call({ out, rowStep: 0 }), { ...own, code: 'ERR_ZC_ARGUMENT' })
      const others = { ...from, scaleDtype: 'f32' } as const
      expectRefused(call({ from: others, out }), { ...own, code: 'ERR_ZC_ARGUMENT' })
    })
  })

  test('all numbers of float8', async () => {
    const own = { ...kCases[1]!, n: 1, k: 256, blockColumns: 256, scaleDtype: 'f32' as const }
    const weight = makeWeight(own)
    weight.bytes.codeBytes.set(Uint8Array.from({ length: 256 }, (_, i) => i))
    new Float32Array(weight.bytes.scaleBytes.buffer)[0] = 1
    const out = backend.tensors.output('f32', [1, 256])
    expect(await unpack(store(backend, own, weight), 0, { out })).toBe('done')
    const values = await out.read()
    // The largest, the least, and what is none.
    expect([values[0x7e], values[1], values[8], values[0x38]]).toEqual([448, 2 ** -9, 2 ** -6, 1])
    expect([values[0x7f], values[0xff]]).toEqual([Number.NaN, Number.NaN])
    for (let i = 0; i < 127; i++) expect(values[i + 128]).toBe(-values[i]!)
  })

  test.each([
    { ...kCases[3]! },
    { ...kCases[3]!, blockRows: 130 },
    { ...kCases[8]!, zeroLayout: 'none' as const },
  ])(`${title}: codes of 8 bits as they are, -128 among them`, async (own) => {
    const { n, k } = own
    const weight = makeWeight(own)
    const out = backend.tensors.output('i8', [n - 1, k])
    const scales = backend.tensors.output('f32', [n - 1])
    expect(await unpack(store(backend, own, weight), 1, { out, scales })).toBe('done')
    const codes = weight.codes.slice(k)
    expect(Math.min(...codes)).toBe(own.n > 5 ? 0 : Math.min(...codes))
    expect(await out.read()).toEqual(Int8Array.from(codes, (code) => code - 128))
    const rowScale = (r: number) => weight.scales[Math.floor(r / own.blockRows)]!
    expect(await scales.read()).toEqual(
      Float32Array.from({ length: n - 1 }, (_, r) => rowScale(r + 1)),
    )
  })

  const kFour = kCases.filter(({ bits, k, blockColumns, scaleDtype }) => {
    return bits === 4 && k % 64 === 0 && blockColumns % 32 === 0 && scaleDtype !== 'bf16'
  })

  test.each(kFour)(`${title}: codes of 4 bits, in units of 64`, async (own) => {
    const { n, k, blockColumns } = own
    const weight = makeWeight(own)
    for (const group of [32, blockColumns]) {
      const rows = [n - 2, k / group]
      const out = backend.tensors.output('u8', [n - 2, k / 2])
      const scales = backend.tensors.output('f16', rows)
      const zeros = backend.tensors.output('u8', rows) as Tensor<'u8'>
      expect(await unpack(store(backend, own, weight), 2, { out, scales, zeros })).toBe('done')
      const [codes, s, z] = [await out.read(), await scales.read(), await zeros.read()]
      const words = new Uint16Array(codes.buffer)
      const unpacked = weight.codes.slice(2 * k).map((_, i) => {
        const [r, c] = [Math.floor(i / k), i % k]
        const word = words[(r * k + c - (c % 64)) / 4 + (c % 16)]!
        return (word >> (4 * Math.floor((c % 64) / 16))) & 15
      })
      expectIdentical(unpacked, weight.codes.slice(2 * k), { name: 'codes', shape: [n - 2, k] })
      const of = (at: number) => {
        const [r, g] = [Math.floor(at / (k / group)), at % (k / group)]
        return (r + 2) * weight.groups + Math.floor((g * group) / blockColumns)
      }
      expect(s).toEqual(s.map((_, at) => f32ToF16(weight.scales[of(at)]!)))
      expect(z).toEqual(z.map((_, at) => weight.zeros[of(at)]!))
    }
  })

  const [sym, awq] = [kCases[5]!, kCases[13]!]
  const four = (n: number, k: number, group: number) => ({
    out: backend.tensors.output('u8', [n, k / 2]),
    scales: backend.tensors.output('f16', [n, k / group]),
    zeros: backend.tensors.output('u8', [n, k / group]) as Tensor<'u8'>,
  })

  test('columns in the order of an activation have values, and no groups of codes', async () => {
    const k = 128
    const columnGroups = Int32Array.from({ length: k }, (_, c) => (c * 37) % 4)
    const own: Case = { ...kCases[9]!, n: 16, k, blockColumns: 32, columnGroups }
    const weight = makeWeight(own)
    const from = store(backend, own, weight)
    const out = backend.tensors.output('f32', [16, k])
    expect(await unpack(from, 0, { out })).toBe('done')
    expect(await backend.tensors.values(out)).toEqual(weight.values)
    expect(await unpack(from, 0, four(16, k, 32))).toBe('does not fit')
    for (let c = 0; c < k; c++) columnGroups[c] = 3 - Math.floor(c / 32)
    expect(await unpack(store(backend, own, weight), 0, four(16, k, 32))).toBe('done')
    for (const bad of [4, -1]) {
      columnGroups[100] = bad
      expect(await unpack(store(backend, own, weight), 0, { out })).toBe('bad group')
    }
  })

  test('-1 says of compressed-tensors that columns are in order', async () => {
    const own: Case = { ...sym, n: 4, k: 64, columnGroups: new Int32Array(64).fill(-1) }
    const weight = makeWeight({ ...own, columnGroups: undefined })
    const out = backend.tensors.output('f32', [4, 64])
    expect(await unpack(store(backend, own, weight), 0, { out })).toBe('done')
    expect(await backend.tensors.values(out)).toEqual(weight.values)
  })

  test.each([
    ['too large for float16', 70_000, 'does not fit'],
    ['too small beside its row', 2 ** -13, 'done'],
    ['infinite', Number.POSITIVE_INFINITY, 'bad scale'],
    ['not a number', Number.NaN, 'bad scale'],
  ])('a scale that is %s', async (_, scale, expected) => {
    const own = { ...awq, k: 128 }
    const other = makeWeight(own)
    new Float32Array(other.bytes.scaleBytes.buffer)[11] = scale
    expect(await unpack(store(backend, own, other), 0, four(8, 128, 32))).toBe(expected)
  })

  test('a row of scales that float16 would round away does not fit', async () => {
    const own = { ...awq, k: 128 }
    const weight = makeWeight(own)
    const scales = new Float32Array(weight.bytes.scaleBytes.buffer)
    for (let g = 0; g < 4; g++) scales[g * 8 + 5] = 1.3e-7 * (g + 1)
    expect(await unpack(store(backend, own, weight), 0, four(8, 128, 32))).toBe('does not fit')
  })

  test('a zero point that is no code of 4 bits', async () => {
    const weight = makeWeight(kCases[7]!)
    weight.bytes.zeroBytes[3] = 9 // from -8 to 7
    const out = backend.tensors.output('f32', [9, 128])
    expect(await unpack(store(backend, kCases[7]!, weight), 0, { out })).toBe('bad zero')
  })

  test('zero points of 8 bits other than 128 do not fit', async () => {
    const own = kCases[8]!
    const out = backend.tensors.output('i8', [5, 21])
    const scales = backend.tensors.output('f32', [5])
    expect(await unpack(store(backend, own, makeWeight(own)), 0, { out, scales })).toBe(
      'does not fit',
    )
  })

  test('what cannot be is refused', () => {
    const own = kCases[3]!
    const from = store(backend, own, makeWeight(own))
    const { tensors, device } = backend
    const status = tensors.output('i32', [1])
    const out = tensors.output('f32', [130, 33])
    const refused = (change: object, code: ErrorCode) =>
      expectRefused(() => unpackWeight(device, { from, firstRow: 0, out, status, ...change }), {
        code,
      })
    refused({ firstRow: 1 }, 'ERR_ZC_SHAPE')
    refused({ firstRow: -1 }, 'ERR_ZC_ARGUMENT')
    refused({ out: tensors.output('f32', [130, 32]) }, 'ERR_ZC_SHAPE')
    refused({ out: tensors.output('f16', [130, 33]) }, 'ERR_ZC_DTYPE')
    refused({ out: tensors.output('i8', [130, 33]) }, 'ERR_ZC_DTYPE')
    refused({ status: tensors.output('f32', [1]) }, 'ERR_ZC_DTYPE')
    refused({ status: tensors.output('i32', [2]) }, 'ERR_ZC_SHAPE')
    refused({ from: { ...from, bits: 5 } }, 'ERR_ZC_ARGUMENT')
    refused({ from: { ...from, n: 0 } }, 'ERR_ZC_ARGUMENT')
    refused({ from: { ...from, layout: 'none' } }, 'ERR_ZC_ARGUMENT')
    refused({ from: { ...from, zeroLayout: 'i8' } }, 'ERR_ZC_ARGUMENT')
    const scales = { ...from.scales, offset: from.scales.offset + 3 }
    refused({ from: { ...from, scales } }, 'ERR_ZC_CHECKPOINT')
    const gone = { ...from.codes, file: out as never }
    refused({ from: { ...from, codes: gone } }, 'ERR_ZC_HANDLE')
  })
})
