import { ERROR_CODES } from '../lib/errors'
import { loadAddon } from '../lib/native/load'
import { Device } from '../lib/ops/index'
import { expectRejected } from './support/errors'

describe('error codes', () => {
  test("are the native side's, in its order", () => {
    expect([...loadAddon().errorCodes]).toEqual([...ERROR_CODES])
  })

  test('are distinct and have one form', () => {
    expect(new Set(ERROR_CODES).size).toBe(ERROR_CODES.length)
    for (const code of ERROR_CODES) expect(code).toMatch(/^ERR_ZC_[A-Z]+(_[A-Z]+)*$/)
  })

  test('native errors are ZipCacheErrors', async () => {
    await expectRejected(Device.open('abacus'), { code: 'ERR_ZC_DEVICE' })
  })
})
