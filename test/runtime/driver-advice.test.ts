/** What users are told to do about a driver that cannot be used. */
import { mayHaveGpu } from '../../lib/native/driver.js'
import { warnOfUnusedGpu, withAdvice } from '../../lib/native/driver-advice.js'

const facts = { visibleDevices: undefined, hasUvm: true }
const failed = (name: string) => `device: cudaGetDeviceCount: some text (${name})`

test.each([
  ['device: there is no NVIDIA driver on this machine', /; install NVIDIA's driver 580 or newer/],
  ['device: the NVIDIA driver is for CUDA 12.4, expected 13.0 or newer', /; update .* to 580/],
  [failed('cudaErrorNoDevice'), /; `nvidia-smi -L` lists .* --gpus all/],
  [failed('cudaErrorStubLibrary'), /`stubs` out of LD_LIBRARY_PATH/],
  [failed('cudaErrorSystemDriverMismatch'), /restart the machine/],
  [failed('cudaErrorCompatNotSupportedOnDevice'), /cuda-compat.*LD_LIBRARY_PATH/],
  [failed('cudaErrorSystemNotReady'), /nvidia-fabricmanager/],
  [failed('cudaErrorDevicesUnavailable'), /another process/],
  [failed('cudaErrorUnknown'), /does not start: `nvidia-smi`.*restart/],
  ["device: 'cuda' was tried in a process of its own, which ended by SIGSEGV", /driver is broken/],
  ['device: A is an sm_75, and this build has code for 80-real alone', /capability 8\.0 or newer/],
  ['device: B is an sm_120, and this build has code for 80-real alone', /ARCHITECTURES=120-real/],
])('%s', (reason, advice) => {
  const told = withAdvice(reason, facts)
  expect(told.startsWith(`${reason}; `)).toBe(true)
  expect(told).toMatch(advice)
})

test('what is seen here is part of it', () => {
  const hidden = { ...facts, visibleDevices: '' }
  expect(withAdvice(failed('cudaErrorNoDevice'), hidden)).toContain("CUDA_VISIBLE_DEVICES is ''")
  const bare = { ...facts, hasUvm: false }
  expect(withAdvice(failed('cudaErrorUnknown'), bare)).toContain('/dev/nvidia-uvm is missing')
})

test('a reason that nobody knows what to do about stays as it is', () => {
  expect(withAdvice('device: is of version 2, expected 1', facts)).toBe(
    'device: is of version 2, expected 1',
  )
})

test('a GPU that is not used is warned of, once; a machine without one is not', () => {
  const warn = jest.spyOn(process, 'emitWarning').mockImplementation(() => {})
  warnOfUnusedGpu('some reason', { kernel: null })
  expect(warn).not.toHaveBeenCalled()
  warnOfUnusedGpu('some reason', { kernel: '570.1' })
  warnOfUnusedGpu('some reason', { kernel: '570.1' })
  expect(warn).toHaveBeenCalledTimes(1)
  expect(warn).toHaveBeenCalledWith(
    'the CPU computes, since no GPU can be used: some reason',
    expect.objectContaining({ code: 'ZC_GPU_UNUSED' }),
  )
})

test.each([
  [{ kernel: null, libraries: [] }, [], false],
  [{ kernel: '580.65.06', libraries: [] }, [], true],
  [{ kernel: null, libraries: ['/usr/lib64/libcuda.so.580.65.06'] }, [], true],
  [{ kernel: null, libraries: [] }, ['/dev/nvidiactl'], true],
  [{ kernel: null, libraries: [] }, ['/dev/dxg'], true],
] as const)(
  'whether there may be a GPU: %j, files %j',
  (driver, files: readonly string[], expected) => {
    expect(mayHaveGpu(driver, (file) => files.includes(String(file)))).toBe(expected)
  },
)
