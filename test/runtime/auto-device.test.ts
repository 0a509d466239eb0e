/** `auto` where a GPU's library is there and cannot be used. */
import childProcess from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { Device } from '../../lib/ops/index.js'
import { expectRejected } from '../support/errors.js'

test('is the CPU, and tried once', async () => {
  const folder = mkdtempSync(path.join(tmpdir(), 'zipcache-auto-'))
  const before = process.env.ZIPCACHE_PLUGIN_PATH
  const spawn = jest.spyOn(childProcess, 'spawn')
  jest.spyOn(process, 'emitWarning').mockImplementation(() => {})
  try {
    writeFileSync(path.join(folder, 'zipcache-cuda.so'), 'no library')
    process.env.ZIPCACHE_PLUGIN_PATH = folder
    for (let n = 0; n < 2; n++) {
      await using device = await Device.open('auto')
      expect(device.info.name).toBe('cpu')
      expect(spawn).toHaveBeenCalledTimes(1)
    }
    // Whoever asks for it by name is told each time.
    for (let n = 2; n < 4; n++) {
      await expectRejected(Device.open('cuda'), { code: 'ERR_ZC_DEVICE', message: /cuda/ })
      expect(spawn).toHaveBeenCalledTimes(n)
    }
  } finally {
    if (before === undefined) delete process.env.ZIPCACHE_PLUGIN_PATH
    else process.env.ZIPCACHE_PLUGIN_PATH = before
    rmSync(folder, { recursive: true })
  }
})
