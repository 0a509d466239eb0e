import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { ZipCacheError } from '../../lib/errors'
import { readSafetensorsHeader } from '../../lib/model/safetensors'
import {
  expectRefusal,
  kFixtures,
  ModelFolders,
  safetensors,
  type TensorSpec,
} from './model-folder'

const folders = new ModelFolders()
afterAll(() => folders.remove())

const kName = 'model.safetensors'
const put = (bytes: Uint8Array) => join(folders.write({ [kName]: bytes }), kName)
const read = (bytes: Uint8Array) => readSafetensorsHeader(put(bytes))
const a: TensorSpec = { dtype: 'F32', shape: [2, 3], sizeBytes: 24 }
const b: TensorSpec = { dtype: 'BF16', shape: [5], sizeBytes: 10 }

describe('readSafetensorsHeader', () => {
  test('says where each tensor lies in the file', async () => {
    const bytes = safetensors({ a, b, scalar: { dtype: 'I64', shape: [], sizeBytes: 8 } })
    const { tensors, metadata, fileSizeBytes } = await read(bytes)
    const data = bytes.length - 42
    expect(fileSizeBytes).toBe(bytes.length)
    expect(metadata.size).toBe(0)
    expect(Object.fromEntries(tensors)).toEqual({
      a: { dtype: 'F32', shape: [2, 3], offset: data, sizeBytes: 24 },
      b: { dtype: 'BF16', shape: [5], offset: data + 24, sizeBytes: 10 },
      scalar: { dtype: 'I64', shape: [], offset: data + 34, sizeBytes: 8 },
    })
  })

  test('takes tensors in any order, empty ones, padding and metadata', async () => {
    const header = JSON.stringify({
      __metadata__: { format: 'pt' },
      late: { dtype: 'U8', shape: [4], data_offsets: [4, 8] },
      none: { dtype: 'F32', shape: [0, 7], data_offsets: [4, 4] },
      'naïve "name"': { dtype: 'F16', shape: [2], data_offsets: [0, 4] },
    })
    const { tensors, metadata } = await read(
      Buffer.concat([safetensors({}, { header: `${header}     ` }), Buffer.alloc(8)]),
    )
    expect([...metadata]).toEqual([['format', 'pt']])
    const sizes = [...tensors].map(([name, tensor]) => [name, tensor.sizeBytes])
    expect(sizes).toEqual([
      ['late', 4],
      ['none', 0],
      ['naïve "name"', 4],
    ])
  })

  test('takes half bytes that make whole ones', async () => {
    const { tensors } = await read(safetensors({ x: { dtype: 'F4', shape: [3, 2], sizeBytes: 3 } }))
    expect(tensors.get('x')?.sizeBytes).toBe(3)
  })

  test('takes a file without tensors', async () => {
    expect((await read(safetensors({}))).tensors.size).toBe(0)
  })

  test.each(['llama', 'llama3-rope', 'mistral', 'qwen2', 'qwen3'])('takes %s', async (name) => {
    const { tensors } = await readSafetensorsHeader(join(kFixtures, 'hf', name, kName))
    expect(tensors.get('model.embed_tokens.weight')).toMatchObject({
      dtype: 'BF16',
      shape: [320, 128],
      sizeBytes: 320 * 128 * 2,
    })
  })
})

describe('refusals name file, tensor and value', () => {
  const entry = (change: Record<string, unknown>) =>
    JSON.stringify({ x: { dtype: 'U8', shape: [4], data_offsets: [0, 4], ...change } })
  const withHeader = (header: string | Uint8Array, dataBytes = 4) =>
    safetensors({}, { header, extraBytes: dataBytes })

  const cases: [string, Uint8Array, string][] = [
    ['an empty file', Buffer.alloc(0), 'is 0 bytes long, too short'],
    ['seven bytes', Buffer.alloc(7), 'is 7 bytes long, too short'],
    ['a header of 0', Buffer.alloc(64), 'header length is 0'],
    [
      'a pointer',
      Buffer.from('version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n'),
      'is a pointer of Git LFS',
    ],
    [
      'a header of 2^63',
      safetensors({ a }, { declaredBytes: 1n << 63n }),
      'header length is 9223372036854775808, expected at most 100000000',
    ],
    [
      'a header past the end',
      safetensors({ a }, { declaredBytes: 5000n }),
      'header length is 5000, but the file has',
    ],
    ['a truncated file', safetensors({ a, b }).subarray(0, -5), '"b": data_offsets is [24, 34]'],
    ['a truncated header', safetensors({ a }).subarray(0, 30), 'but the file has 30 bytes'],
    ['no JSON', withHeader('{"a": '), 'is not valid JSON'],
    ['an array', withHeader('[]'), 'header begins with "[", expected "{"'],
    ['white space first', withHeader(' {}'), 'header begins with " ", expected "{"'],
    ['a byte order mark', withHeader('\uFEFF{}'), 'header begins with'],
    ['no UTF-8', withHeader(Buffer.from([0x7b, 0xc3, 0x28, 0x7d])), 'header is not UTF-8'],
    ['a tensor that is a number', withHeader('{"x": 5}'), '"x": is 5, expected an object'],
    [
      'a nested tensor',
      withHeader(`{"x": ${'['.repeat(1e5)}${']'.repeat(1e5)}}`),
      '"x": is a deeply',
    ],
    [
      'an unknown dtype',
      withHeader(entry({ dtype: 'F128' })),
      '"x": dtype is "F128", expected one of',
    ],
    ['no dtype', withHeader(entry({ dtype: undefined })), '"x": dtype is missing'],
    ['an inherited dtype', withHeader(entry({ dtype: 'toString' })), 'dtype is "toString"'],
    ['no shape', withHeader(entry({ shape: undefined })), '"x": shape is missing'],
    ['a shape of text', withHeader(entry({ shape: ['4'] })), '"x": shape is ["4"]'],
    ['a negative shape', withHeader(entry({ shape: [-4] })), '"x": shape is [-4]'],
    ['a fractional shape', withHeader(entry({ shape: [1.5] })), '"x": shape is [1.5]'],
    [
      'a shape that overflows',
      withHeader(entry({ shape: [2 ** 31, 2 ** 31, 4] })),
      '"x": shape [2147483648,2147483648,4] of U8 is no whole number of bytes',
    ],
    ['half a byte', withHeader(entry({ dtype: 'F4', shape: [3] })), 'is no whole number of bytes'],
    ['no offsets', withHeader(entry({ data_offsets: undefined })), '"x": data_offsets is missing'],
    ['three offsets', withHeader(entry({ data_offsets: [0, 4, 4] })), 'expected [begin, end]'],
    ['a negative offset', withHeader(entry({ data_offsets: [-4, 0] })), 'data_offsets is [-4,0]'],
    [
      'an unsafe offset',
      withHeader(entry({ data_offsets: [0, 2 ** 60] })),
      'expected [begin, end]',
    ],
    ['offsets reversed', withHeader(entry({ data_offsets: [4, 0] })), 'expected begin <= end <= 4'],
    ['offsets past the end', withHeader(entry({ data_offsets: [4, 8] })), '[4, 8], expected begin'],
    [
      'a span that is not the size',
      withHeader(entry({ shape: [3] })),
      '"x": data_offsets span 4 bytes, expected 3 for shape [3] of U8',
    ],
    ['an unknown key', withHeader(entry({ strides: [1] })), '"x": has the unknown key "strides"'],
    ['an overlap', safetensors({ a, b: { ...b, begin: 20 } }), '"b": overlaps "a" by 4 bytes'],
    ['one place for two', safetensors({ a, b: { ...a, begin: 0 } }), '"b": overlaps "a" by 24'],
    ['a hole', safetensors({ a, b: { ...b, begin: 28 } }), '"b": begins after a hole of 4 bytes'],
    [
      'a hole at the front',
      safetensors({ b: { ...b, begin: 2 } }),
      '"b": begins after a hole of 2',
    ],
    ['trailing bytes', safetensors({ a }, { extraBytes: 3 }), 'has 3 bytes after the last tensor'],
    ['bytes without tensors', withHeader('{}'), 'has 4 bytes after the last tensor'],
    ['metadata of numbers', withHeader('{"__metadata__": {"a": 1}}'), '__metadata__.a is 1'],
    ['metadata of text', withHeader('{"__metadata__": "a"}'), '__metadata__ is "a"'],
    [
      'a tensor given twice',
      withHeader(`{"x":${entry({}).slice(5, -1)},"\\u0078":${entry({}).slice(5, -1)}}`),
      'header has the key "x" twice',
    ],
    [
      'a key given twice in a tensor',
      withHeader('{"x":{"dtype":"F64","shape":[4],"data_offsets":[0,4],"dtype":"U8"}}'),
      'header has the key "dtype" twice',
    ],
  ]
  test.each(cases)('%s', async (_, bytes, message) => {
    await expectRefusal(read(bytes), 'ERR_ZC_CHECKPOINT', `${kName}: `, message)
  })

  test('a file that is not there, or a folder', async () => {
    const dir = folders.write({})
    await expectRefusal(
      readSafetensorsHeader(join(dir, 'x')),
      'ERR_ZC_CHECKPOINT',
      'does not exist',
    )
    await expectRefusal(readSafetensorsHeader(dir), 'ERR_ZC_CHECKPOINT', 'is not a regular file')
  })
})

describe('random damage', () => {
  const path = put(Buffer.alloc(0))

  /**
   * Resolves to true when the header is taken, false when it is refused by name; rejects with
   * anything else.
   */
  async function isTaken(bytes: Uint8Array): Promise<boolean> {
    writeFileSync(path, bytes)
    try {
      await readSafetensorsHeader(path)
      return true
    } catch (error) {
      if (!(error instanceof ZipCacheError) || error.code !== 'ERR_ZC_CHECKPOINT') throw error
      return false
    }
  }

  const whole = safetensors({ a, b, 'c.weight': { dtype: 'F16', shape: [2, 2], sizeBytes: 8 } })

  test('bytes changed, cut off, added', async () => {
    const change = fc.record({
      position: fc.nat(whole.length - 1),
      value: fc.oneof(fc.nat(255), fc.constantFrom(...Buffer.from('0123456789-[]{}",:\\ eE.'))),
    })
    await fc.assert(
      fc.asyncProperty(
        fc.array(change, { maxLength: 4 }),
        fc.option(fc.nat(whole.length)),
        fc.uint8Array({ maxLength: 4 }),
        async (changes, cut, added) => {
          const bytes = Buffer.from(whole)
          for (const { position, value } of changes) bytes[position] = value
          await isTaken(Buffer.concat([bytes.subarray(0, cut ?? bytes.length), added]))
        },
      ),
      { numRuns: 500 },
    )
  })

  test('headers of any JSON', async () => {
    const tensor = fc.record(
      {
        dtype: fc.oneof(fc.constantFrom('F32', 'F16', 'U8', 'F4'), fc.jsonValue()),
        shape: fc.oneof(fc.array(fc.nat(4), { maxLength: 3 }), fc.jsonValue()),
        data_offsets: fc.oneof(fc.tuple(fc.nat(16), fc.nat(16)), fc.jsonValue()),
      },
      { requiredKeys: [] },
    )
    await fc.assert(
      fc.asyncProperty(
        fc.oneof(fc.dictionary(fc.string(), fc.oneof(tensor, fc.jsonValue())), fc.jsonValue()),
        fc.nat(32),
        async (header, extraBytes) => {
          await isTaken(safetensors({}, { header: JSON.stringify(header), extraBytes }))
        },
      ),
      { numRuns: 300 },
    )
  })

  test('whatever is taken fills the file exactly', async () => {
    const tensors = fc.array(fc.nat(6), { maxLength: 6 })
    await fc.assert(
      fc.asyncProperty(tensors, fc.nat(3), async (sizes, extraBytes) => {
        const specs = sizes.map((n, i) => [`t${i}`, { dtype: 'U8', shape: [n], sizeBytes: n }])
        const bytes = safetensors(Object.fromEntries(specs), { extraBytes })
        expect(await isTaken(bytes)).toBe(extraBytes === 0)
      }),
    )
  })

  test('a real header, one byte at a time', async () => {
    const fixture = readFileSync(join(kFixtures, 'hf', 'qwen2', kName))
    const headerBytes = Number(fixture.readBigUInt64LE())
    await fc.assert(
      fc.asyncProperty(
        fc.nat(7 + headerBytes),
        fc.integer({ min: 1, max: 255 }),
        async (i, xor) => {
          const bytes = Buffer.from(fixture)
          bytes[i] = (bytes[i] as number) ^ xor
          await isTaken(bytes)
        },
      ),
      { numRuns: 60 },
    )
  })
})
