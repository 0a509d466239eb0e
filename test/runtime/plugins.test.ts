/** Devices besides the CPU: how their libraries are found, checked and refused. */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { Device, siluGate } from '../../lib/ops/index.js'
import { expectRefused, expectRejected } from '../support/errors.js'

describe('listing devices', () => {
  test('the CPU is there, and every other device is, or says why not', async () => {
    const devices = await Device.list()
    expect(devices[0]).toEqual({
      name: 'cpu',
      available: true,
      isa: expect.stringMatching(/^(avx2|avx512|neon|baseline)$/),
      memoryBytes: expect.any(Number),
    })
    const gpus = devices.filter(({ name }) => /^cuda(:\d+)?$/.test(name))
    expect(gpus.length).toBeGreaterThan(0)
    for (const { name, available, reason } of gpus) {
      if (available) await (await Device.open(name)).dispose()
      else await expectRejected(Device.open(name), { code: 'ERR_ZC_DEVICE', message: /./ })
      expect(available).toBe(reason === undefined)
    }
  })

  test('the emulated ones have what a GPU has', async () => {
    const devices = await Device.list()
    expect(devices.filter(({ name }) => name.startsWith('cuda-emu'))).toEqual(
      ['sm_90', 'sm_86'].map((isa, i) => ({
        name: `cuda-emu:${i}`,
        available: true,
        isa,
        memoryBytes: expect.any(Number),
        model: 'emulated GPU',
        nMultiprocessors: 4,
        driver: '13.0',
        runtime: '13.0',
      })),
    )
  })
})

describe('opening a device', () => {
  test.each([
    ['cuda-emu', 'sm_90'],
    ['cuda-emu:0', 'sm_90'],
    ['cuda-emu:1', 'sm_86'],
  ])('%s is one', async (name, isa) => {
    const device = await Device.open(name)
    expect(device.info).toEqual({ name, kind: 'gpu', isa, nThreads: 1 })
    await device.dispose()
  })

  test.each([
    ['cuda-emu:2', /there is no such device: expected less than 2/],
    ['cuda-emu:', /expected a number/],
    ['cuda-emu:-1', /expected a number/],
    ['cuda-emu:1x', /expected a number/],
    ['cuda:99999999999', /expected a number/],
  ])('refuses %j', async (name, message) => {
    await expectRejected(Device.open(name), { code: 'ERR_ZC_DEVICE', message })
  })

  test('tensors of two devices do not meet', async () => {
    const [a, b] = [await Device.open('cuda-emu'), await Device.open('cuda-emu')]
    const [x, y] = [a, b].map((device) => device.from(Float32Array.of(1), [1, 1]))
    const fault = { code: 'ERR_ZC_DEVICE', op: 'siluGate', argument: 'up' } as const
    expectRefused(() => siluGate({ gate: x!, up: y!, out: x! }), fault)
    await a.dispose()
    await b.dispose()
  })
})

describe('a library that is none of ours', () => {
  let folder: string
  const before = process.env.ZIPCACHE_PLUGIN_PATH

  beforeAll(() => {
    folder = mkdtempSync(path.join(tmpdir(), 'zipcache-plugin-'))
  })
  afterAll(() => rmSync(folder, { recursive: true }))
  afterEach(() => {
    if (before === undefined) delete process.env.ZIPCACHE_PLUGIN_PATH
    else process.env.ZIPCACHE_PLUGIN_PATH = before
  })

  /** A folder whose zipcache-cuda.so is compiled from these lines. */
  function library(name: string, ...lines: string[]): string {
    const own = path.join(folder, name)
    const file = `${own}.cc`
    writeFileSync(file, lines.join('\n'))
    const output = path.join(own, 'zipcache-cuda.so')
    spawnSync('mkdir', [own])
    const compiler = process.env.CXX ?? 'c++'
    const flags = ['-shared', '-fPIC', '-std=c++20', `-I${path.join(__dirname, '..', '..')}`]
    const { status, stderr } = spawnSync(compiler, [...flags, '-o', output, file])
    expect([status, stderr.toString()]).toEqual([0, ''])
    return own
  }

  async function expectRefusal(at: string, message: RegExp) {
    process.env.ZIPCACHE_PLUGIN_PATH = at
    await expectRejected(Device.open('cuda'), { code: 'ERR_ZC_DEVICE', message })
    const [, cuda, ...rest] = await Device.list()
    expect(cuda).toEqual({
      name: 'cuda',
      available: false,
      reason: expect.stringMatching(message),
    })
    expect(rest).toEqual([])
  }

  test('is missing', async () => {
    await expectRefusal(folder, /the library of 'cuda' cannot be loaded: .*No such file/)
  })

  test('is no library', async () => {
    const own = path.join(folder, 'text')
    spawnSync('mkdir', [own])
    writeFileSync(path.join(own, 'zipcache-cuda.so'), 'text')
    await expectRefusal(own, /the library of 'cuda' cannot be loaded: .*/)
  })

  test('has no entry', async () => {
    await expectRefusal(library('other', 'int other;'), /is no plugin of zipcache/)
  })

  test('is of another version: nothing of it is used but the number', async () => {
    const own = library(
      'version',
      'extern "C" unsigned* zipcache_plugin() {',
      '  static unsigned version = 999;',
      '  return &version;',
      '}',
    )
    await expectRefusal(own, /has version 999, expected \d+: build it again/)
  })

  test('has ops of another version', async () => {
    const own = library(
      'ops',
      '#include "csrc/ops/plugin.h"',
      'extern "C" const zc::Plugin* zipcache_plugin() {',
      '  static zc::Backend backend{999};',
      '  static zc::Plugin plugin{zc::kPluginVersion, "cuda", &backend};',
      '  return &plugin;',
      '}',
    )
    await expectRefusal(own, /the ops of .* have version 999, expected \d+: build it again/)
  })

  test('finds no device', async () => {
    const own = library(
      'none',
      '#include <cstring>',
      '#include "csrc/ops/plugin.h"',
      'int32_t count(zc::OpStatus* status) {',
      '  status->code = 1 + 3;', // kDevice
      '  std::strcpy(status->message, "device: there is no NVIDIA driver on this machine");',
      '  return 0;',
      '}',
      'extern "C" const zc::Plugin* zipcache_plugin() {',
      '  static zc::Backend backend{zc::kBackendVersion};',
      '  static zc::Plugin plugin{zc::kPluginVersion, "cuda", &backend, count};',
      '  return &plugin;',
      '}',
    )
    await expectRefusal(own, /there is no NVIDIA driver/)
  })
})

describe('a machine', () => {
  interface Fault {
    code: string
    message: string
  }
  interface Listed {
    devices: { name: string; available: boolean; reason?: string }[]
    opening: Fault | null
  }

  function run(scenario: string, env: NodeJS.ProcessEnv): unknown {
    const program = path.join(__dirname, 'programs', 'gpu.cjs')
    const options = { env: { ...process.env, ...env }, timeout: 20_000 }
    const { status, signal, stdout } = spawnSync(process.execPath, [program, scenario], options)
    expect({ status, signal }).toEqual({ status: 0, signal: null })
    return JSON.parse(stdout.toString())
  }

  test.each([
    ['has no driver', { ZC_EMU_DRIVER: '0' }, /there is no NVIDIA driver on this machine/],
    [
      'has a driver that is too old',
      { ZC_EMU_DRIVER: '12040' },
      /driver is for CUDA 12\.4, expected 13\.0 or newer/,
    ],
  ])('that %s has no device', (_, env, message) => {
    const { devices, opening } = run('list', env) as Listed
    expect(devices).toEqual([
      { name: 'cuda-emu', available: false, reason: expect.stringMatching(message) },
    ])
    expect(opening).toEqual({ code: 'ERR_ZC_DEVICE', message: expect.stringMatching(message) })
  })

  test.each([
    [75, false],
    [80, true],
    [86, true],
    [90, true],
    [100, true], // by PTX
    [121, true],
  ])('whose GPU is an sm_%i can use it: %p', (architecture, available) => {
    const { devices, opening } = run('list', { ZC_EMU_ARCHITECTURE: `${architecture}` }) as Listed
    const message = /emulated GPU is an sm_75, and this build has code for 80,90a-real alone/
    const reason = available ? undefined : expect.stringMatching(message)
    expect(devices.map((device) => [device.available, device.reason])).toEqual([
      [available, reason],
      [available, reason],
    ])
    expect(opening).toEqual(available ? null : { code: 'ERR_ZC_DEVICE', message: reason })
  })

  test.each([
    ['pools of memory', {}],
    ['none', { ZC_EMU_POOLS: '0' }],
  ])('with little memory and %s refuses what does not fit, and goes on', (_, env) => {
    const outcome = run('memory', { ...env, ZC_EMU_MEMORY: `${64 << 20}` })
    const refused = (bytes: number) => ({
      code: 'ERR_ZC_OUT_OF_MEMORY',
      message: expect.stringMatching(`^${bytes} bytes do not fit: the device has 67108864 bytes, `),
    })
    expect(outcome).toEqual({
      total: 64 << 20,
      tooMuch: refused(65 << 20),
      second: refused(40 << 20),
      reservation: refused(40 << 20),
      sum: 0,
      current: 0,
      lent: expect.any(Number),
    })
    // What the device itself keeps: where kernels report faults.
    expect((outcome as { lent: number }).lent).toBeLessThan(4096)
  })

  test('that cannot be opened for want of memory leaves nothing behind', () => {
    const { refusals, lost } = run('opening', { ZC_EMU_MEMORY: `${64 << 20}` }) as {
      refusals: Fault[]
      lost: number
    }
    expect(refusals).toHaveLength(3)
    for (const { code } of refusals) expect(code).toBe('ERR_ZC_OUT_OF_MEMORY')
    expect(lost).toBe(0)
  })

  test('with little memory frees what ops need for themselves before it takes more', () => {
    expect(run('scratch', { ZC_EMU_MEMORY: `${1 << 20}` })).toEqual({ sums: [512] })
  })

  test('with little memory gives a model half of it, and refuses an engine that wants more', () => {
    const outcome = run('engine', { ZC_EMU_MEMORY: `${64 << 20}` }) as { capacity: number }
    expect(outcome).toEqual({
      capacity: expect.any(Number),
      tooMuch: { code: 'ERR_ZC_OUT_OF_MEMORY', message: expect.stringMatching(/do not fit/) },
      lost: 0,
      counts: [3, 3],
    })
    expect(outcome.capacity / 2 ** 20).toBeGreaterThan(28)
    expect(outcome.capacity / 2 ** 20).toBeLessThan(32)
  })

  test('without memory for a graph runs a program op by op, and tries again', () => {
    // The second run finds none, and the one that tries next; then it is recorded.
    const outcome = run('graphs', { ZC_EMU_NO_GRAPHS: '2' })
    expect(outcome).toEqual({ right: true, unrecordedRuns: 2 * 64, current: 0 })
    expect(run('graphs', {})).toEqual({ right: true, unrecordedRuns: 0, current: 0 })
  })

  test('whose device is lost says so from then on, and lives', () => {
    const { alive, ...outcomes } = run('lost', { ZC_EMU_FAULT: '50' }) as Record<string, Fault>
    expect(alive).toEqual([5])
    const message = /^device: it was lost, start the process again: a fault that was asked for/
    for (const outcome of Object.values(outcomes)) {
      expect(outcome).toEqual({
        code: 'ERR_ZC_DEVICE_LOST',
        message: expect.stringMatching(message),
      })
    }
    expect(Object.keys(outcomes)).toHaveLength(5)
  })
})
