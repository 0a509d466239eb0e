import type { Command } from 'commander'
import { type Examination, examine } from '../doctor/examine.js'
import { jsonOption } from './options.js'
import { print, printJson } from './output.js'
import { formatBytes, formatMs, formatPairs, formatTable, left, right } from './table.js'

/** `zipcache doctor`: what is here, what is missing, and whether every op computes what it should. */
export function addDoctorCommand(
  program: Command,
  signal: AbortSignal,
  setExitCode: (code: number) => void,
): void {
  program
    .command('doctor')
    .description(
      'say what zipcache found here, why a device cannot be used, and run every op on every one that can',
    )
    .option(...jsonOption)
    .action(async ({ json = false }: { json?: boolean }) => {
      const examination = await examine({ signal })
      if (json) printJson({ schema: 'zipcache-doctor-1', ...examination })
      else print(formatExamination(examination))
      if (!examination.healthy) setExitCode(1)
    })
}

function formatExamination(found: Examination): string {
  const { platform, required, cpu, memory, driver, addon } = found
  const taken = addon.attempts.find(({ failure }) => failure === null)
  const tried = addon.attempts
    .filter(({ failure }) => failure !== null)
    .map((one) => ['', `not ${one.source} ${one.place}: ${one.failure}`] as const)
  const facts = formatPairs([
    ['zipcache', found.version],
    ['node', `${platform.node} (required ${required.node})`],
    ['system', [platform.name, platform.libc].filter((fact) => fact !== null).join(', ')],
    ['prebuilt for', `${required.platforms.join(', ')} with glibc ${required.glibc} or newer`],
    ['cpu', `${cpu.model}, ${cpu.cores} cores${cpu.flags ? `: ${cpu.flags.join(' ')}` : ''}`],
    ['memory', `${formatBytes(memory.total)}, ${formatBytes(memory.free)} free`],
    [
      'driver',
      `${driver.kernel ?? 'no NVIDIA driver is loaded'} (required ` +
        `${required.driver.driver}, of CUDA ${required.driver.cuda}, or newer)`,
    ],
    ['libcuda', driver.libraries.join(', ') || 'none was found'],
    ['addon', taken ? `${taken.source} ${taken.place}` : 'none: see below'],
    ...tried,
    [
      'model',
      'folder' in found.exampleModel ? found.exampleModel.folder : found.exampleModel.failure,
    ],
  ])
  const devices = formatTable(
    [left('device'), left('can be used'), left('what it is, or why not')],
    found.devices.map(({ name, available, reason, isa, memoryBytes, ...gpu }) => {
      const facts = [gpu.model, isa, memoryBytes && formatBytes(memoryBytes)]
      if (gpu.driver) facts.push(`driver for CUDA ${gpu.driver}, built for ${gpu.runtime}`)
      const what = reason?.replace(/^device: /, '') ?? facts.filter(Boolean).join(', ')
      return [name, available ? 'yes' : 'no', what]
    }),
  )
  const tests = formatTable(
    [left('self-test'), right('ops right'), right('wrong'), right('ms')],
    found.selfTests.map(({ device, passed, failed, ms }) => {
      return [device, `${passed}`, `${failed.length}`, formatMs(ms)]
    }),
  )
  const wrong = found.selfTests.flatMap(({ device, failed }) =>
    failed.map(({ op, reason }) => `${device}: ${op}: ${reason}\n`),
  )
  const parts = [facts]
  if (addon.failure !== null) parts.push(`${addon.failure}\n`)
  if (found.devices.length > 0) parts.push(devices)
  if (found.selfTests.length > 0) parts.push(tests)
  if (wrong.length > 0) parts.push(wrong.join(''))
  return parts.join('\n')
}
