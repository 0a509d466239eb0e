import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { OP_CHECKS } from '../../lib/doctor/op-checks'
import { selfTest } from '../../lib/doctor/self-test'
import { describeDevices } from '../support/backends'
import { end, kMain, kRoot, startNode, zipcache, zipcacheJson } from './command-line'

describe('the self-test', () => {
  test('knows every op', () => {
    const list = readFileSync(join(kRoot, 'csrc', 'ops', 'op_list.def'), 'utf8')
    const names = [...list.matchAll(/^ZC_OP\((\w+),/gm)].map(([, name]) =>
      (name as string).replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase()),
    )
    expect(names.length).toBeGreaterThan(20)
    expect(Object.keys(OP_CHECKS).sort()).toEqual(names.sort())
  })
})

describeDevices(
  'the self-test',
  (name) => {
    test('finds every op right', async () => {
      expect(await selfTest(name)).toEqual({
        device: name,
        passed: Object.keys(OP_CHECKS).length,
        failed: [],
        ms: expect.any(Number),
      })
    })
  },
  ['cpu:baseline', 'cpu:avx2', 'cpu:avx512', 'cuda-emu', 'cuda'],
)

describe('zipcache doctor', () => {
  test('--json', async () => {
    const found = await zipcacheJson(['doctor'])
    expect(found).toMatchObject({
      version: expect.any(String),
      healthy: true,
      addon: { failure: null },
      required: { glibc: '2.28', driver: { driver: '580', cuda: '13.0' } },
      exampleModel: { folder: join(kRoot, 'models', 'line-retrieval') },
    })
    expect(found.addon.attempts.at(-1)).toMatchObject({ source: 'local build', failure: null })
    expect(found.devices[0]).toMatchObject({ name: 'cpu', available: true })
    const tested = found.selfTests.map(({ device }: { device: string }) => device)
    expect(tested).toContain('cpu:baseline')
    for (const { name, available } of found.devices.slice(1)) {
      expect(tested.includes(name)).toBe(available)
    }
  })

  test('for people', async () => {
    const { exitCode, stdout, stderr } = await zipcache(['doctor'])
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
    for (const word of ['glibc', 'required 580', 'local build', 'self-test', 'can be used']) {
      expect(stdout).toContain(word)
    }
  })

  test('says what is wrong without an addon, and fails', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'zipcache-doctor-'))
    const missing = join(folder, 'missing.node')
    const child = startNode([kMain, 'doctor', '--json'], { ZIPCACHE_NATIVE_PATH: missing })
    child.stdin.end()
    const { exitCode, stdout } = await end(child)
    rmSync(folder, { recursive: true })
    expect(exitCode).toBe(1)
    const found = JSON.parse(stdout)
    expect(found).toMatchObject({ healthy: false, devices: [], selfTests: [] })
    expect(found.addon.attempts).toEqual([
      { source: 'ZIPCACHE_NATIVE_PATH', place: missing, failure: 'no such file' },
    ])
    expect(found.addon.failure).toContain('unset ZIPCACHE_NATIVE_PATH')
  })

  test('names the ops of a device that computes something wrong', async () => {
    const child = startNode([kMain, 'doctor', '--json'], { ZC_EMU_FAULT: '60' })
    child.stdin.end()
    const { exitCode, stdout } = await end(child)
    expect(exitCode).toBe(1)
    const { healthy, selfTests } = JSON.parse(stdout)
    expect(healthy).toBe(false)
    const faulty = selfTests.find(({ device }: { device: string }) => device === 'cuda-emu:0')
    expect(faulty.passed).toBeGreaterThan(0)
    expect(faulty.failed[0]).toEqual({
      op: expect.any(String),
      reason: expect.stringMatching(/a fault that was asked for/),
    })
  })
})
