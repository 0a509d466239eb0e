/** CUDA is tried in a process of its own: what that process may do, and what is remembered of it. */
import { spawnSync } from 'node:child_process'
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'

const ROOT = path.join(__dirname, '..', '..')
let folder: string

beforeAll(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'zipcache-trial-'))
})
afterAll(() => rmSync(folder, { recursive: true }))

interface Outcome {
  devices: { name: string; available: boolean; reason?: string; model?: string }[]
  opening: { code?: string; message?: string; opened?: string }
}

/** Runs test/runtime/programs/devices.cjs, which must end well whatever the plugin does. */
function run(plugins: string, env: NodeJS.ProcessEnv = {}, device = 'cuda'): Outcome {
  const program = path.join(__dirname, 'programs', 'devices.cjs')
  const cache = path.join(plugins, 'cache')
  // A machine with a GPU is warned that it is not used.
  const own = {
    ZIPCACHE_PLUGIN_PATH: plugins,
    ZIPCACHE_CACHE_DIR: cache,
    NODE_NO_WARNINGS: '1',
    ...env,
  }
  const options = { env: { ...process.env, ...own }, timeout: 50_000, encoding: 'utf8' as const }
  const { status, signal, stdout, stderr } = spawnSync(process.execPath, [program, device], options)
  expect({ status, signal, stderr }).toEqual({ status: 0, signal: null, stderr: '' })
  return JSON.parse(stdout)
}

function ownFolder(name: string): string {
  const own = path.join(folder, name)
  mkdirSync(own)
  return own
}

describe('a plugin that takes its process down', () => {
  /** Compiles a plugin whose device_count does this. */
  function plugin(name: string, body: string, before = ''): string {
    const own = ownFolder(name)
    const source = path.join(own, 'plugin.cc')
    writeFileSync(
      source,
      `#include <csignal>
       #include <cstdio>
       #include <cstdlib>
       #include <unistd.h>
       #include "csrc/ops/plugin.h"
       ${before}
       int32_t count(zc::OpStatus*) { ${body} return 0; }
       extern "C" const zc::Plugin* zipcache_plugin() {
         static zc::Backend backend{zc::kBackendVersion};
         static zc::Plugin plugin{zc::kPluginVersion, "cuda", &backend, count};
         return &plugin;
       }`,
    )
    const flags = ['-shared', '-fPIC', '-std=c++20', `-I${ROOT}`, '-o']
    const output = path.join(own, 'zipcache-cuda.so')
    const { status, stderr } = spawnSync(process.env.CXX ?? 'c++', [...flags, output, source])
    expect([status, stderr.toString()]).toEqual([0, ''])
    return own
  }

  test.each([
    ['by a crash', 'std::raise(SIGSEGV);', '', /which ended by SIGSEGV; .*nvidia-smi/],
    ['by abort', 'std::abort();', '', /which ended by SIGABRT; .*nvidia-smi/],
    [
      'while it is loaded',
      '',
      'struct Crash { Crash() { std::raise(SIGBUS); } } crash;',
      /which ended by SIGBUS; .*nvidia-smi/,
    ],
    [
      'with a last word',
      'std::fputs("no GPU today\\n", stderr); _exit(3);',
      '',
      /code 3: no GPU today$/,
    ],
    ['without a word', '_exit(0);', '', /which ended without an answer$/],
    ['never', 'for (;;) pause();', '', /which did not answer within 1 s; .*nvidia-smi/],
  ])('%s is refused, and the process lives', (name, body, before, message) => {
    const env = { ZIPCACHE_CUDA_TRIAL: name === 'never' ? '1' : '30' }
    const { devices, opening } = run(plugin(name, body, before), env)
    const reason = expect.stringMatching(message)
    expect(devices.slice(1)).toEqual([{ name: 'cuda', available: false, reason }])
    expect(opening).toEqual({ code: 'ERR_ZC_DEVICE', message: reason })
  })

  test('is not asked where the CPU will do', () => {
    const { opening } = run(plugin('unused', 'std::raise(SIGSEGV);'), {}, 'cpu')
    expect(opening).toEqual({ opened: 'cpu', zero: 0 })
  })

  test('leaves auto with the CPU', () => {
    const { opening } = run(plugin('auto', 'std::raise(SIGSEGV);'), {}, 'auto')
    expect(opening).toEqual({ opened: 'cpu', zero: 0 })
  })
})

describe('a plugin that works', () => {
  /** The emulator in CUDA's place. */
  function emulated(name: string): string {
    const own = ownFolder(name)
    const built = path.join(ROOT, 'build', 'Release', 'zipcache-cuda-emu.so')
    copyFileSync(built, path.join(own, 'zipcache-cuda.so'))
    return own
  }
  const works = { opening: { opened: 'cuda', zero: 0 } }

  /** The one file of what is remembered. */
  function memory(plugins: string): string {
    const files = readdirSync(path.join(plugins, 'cache'))
    expect(files).toHaveLength(1)
    return path.join(plugins, 'cache', files[0] as string)
  }

  /** Puts a word into it, to be known again. */
  function mark(file: string): void {
    writeFileSync(file, readFileSync(file, 'utf8').replaceAll('emulated GPU', 'remembered GPU'))
  }
  const models = ({ devices }: Outcome) => devices.slice(1).map(({ model }) => model)

  test('is opened, by auto too', () => {
    const own = emulated('opened')
    expect(run(own)).toMatchObject(works)
    expect(run(own, {}, 'auto')).toMatchObject({ opening: { opened: 'cuda:0', zero: 0 } })
  })

  test('is remembered until the library changes', () => {
    const own = emulated('remembered')
    expect(models(run(own))).toEqual(['emulated GPU', 'emulated GPU'])
    mark(memory(own))
    expect(models(run(own))).toEqual(['remembered GPU', 'remembered GPU'])
    utimesSync(path.join(own, 'zipcache-cuda.so'), 1, 1)
    expect(models(run(own))).toEqual(['emulated GPU', 'emulated GPU'])
  })

  test('is remembered for its environment', () => {
    const own = emulated('environment')
    run(own)
    mark(memory(own))
    expect(models(run(own, { CUDA_VISIBLE_DEVICES: '1' }))[0]).toBe('emulated GPU')
  })

  test.each(['', '{"devices":', '{"devices":[]}', '{"devices":[{"name":5}]}', 'null'])(
    'is tried again when the memory holds %j',
    (text) => {
      const own = emulated(`damaged ${text.replaceAll('/', '')}`)
      run(own)
      writeFileSync(memory(own), text)
      expect(models(run(own))).toEqual(['emulated GPU', 'emulated GPU'])
    },
  )

  test('needs no memory: its folder cannot be made', () => {
    const own = emulated('unwritable')
    const file = path.join(own, 'file')
    writeFileSync(file, '')
    expect(run(own, { ZIPCACHE_CACHE_DIR: path.join(file, 'cache') })).toMatchObject(works)
  })

  test('that fails is tried again once its cause is gone', () => {
    const own = emulated('failed')
    const { devices } = run(own, { ZC_EMU_DRIVER: '12040' })
    expect(devices[1]).toMatchObject({ available: false, reason: expect.stringMatching(/12\.4/) })
    expect(run(own)).toMatchObject(works)
  })

  test('computes in its trial: a device that does not is refused', () => {
    const { devices, opening } = run(emulated('wrong'), { ZC_EMU_FAULT: '1' })
    const reason = expect.stringMatching(/a fault that was asked for/)
    expect(devices.slice(1)).toEqual(
      [0, 1].map((i) => expect.objectContaining({ name: `cuda:${i}`, available: false, reason })),
    )
    expect(opening).toEqual({ code: 'ERR_ZC_DEVICE', message: reason })
  })

  test('can go untried', () => {
    const own = emulated('untried')
    expect(run(own, { ZIPCACHE_CUDA_TRIAL: '0' })).toMatchObject(works)
    expect(readdirSync(own)).toEqual(['zipcache-cuda.so'])
  })
})
