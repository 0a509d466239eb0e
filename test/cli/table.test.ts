import {
  formatBytes,
  formatMs,
  formatPairs,
  formatPercent,
  formatRatio,
  formatTable,
} from '../../lib/cli/table'

test('formatTable aligns words left and numbers right', () => {
  const table = formatTable(
    [
      { title: 'policy', align: 'left' },
      { title: 'bytes', align: 'right' },
      { title: 'note', align: 'left' },
    ],
    [
      ['fp16', '1234567', 'x'],
      ['zipcache-long', '5', ''],
    ],
  )
  expect(table).toBe(
    [
      'policy           bytes  note',
      '-------------  -------  ----',
      'fp16           1234567  x',
      'zipcache-long        5',
      '',
    ].join('\n'),
  )
})

test('formatTable without rows shows its titles', () => {
  expect(formatTable([{ title: 'a', align: 'right' }], [])).toBe('a\n-\n')
})

test('formatPairs', () => {
  expect(
    formatPairs([
      ['a', 'x'],
      ['long', 'y'],
    ]),
  ).toBe('a     x\nlong  y\n')
})

test.each([
  [0, '0 B'],
  [1023, '1023 B'],
  [1024, '1.00 KiB'],
  [15 * 1024, '15.0 KiB'],
  [200 * 1024, '200 KiB'],
  [1.5 * 1024 ** 2, '1.50 MiB'],
  [2 ** 50, '1024 TiB'],
])('%d bytes', (bytes, text) => {
  expect(formatBytes(bytes)).toBe(text)
})

test.each([
  [0.1234, '0.123'],
  [1.234, '1.23'],
  [12.34, '12.3'],
  [1234.5, '1235'],
])('%d ms', (milliseconds, text) => {
  expect(formatMs(milliseconds)).toBe(text)
})

test('formatRatio, formatPercent', () => {
  expect(formatRatio(4.849)).toBe('4.85x')
  expect(formatPercent(99)).toBe('99.0%')
})
