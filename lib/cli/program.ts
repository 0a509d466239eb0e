import { Command, CommanderError, Help, type Option } from 'commander'
import { reasonOf, ZipCacheError } from '../errors.js'
import { packageVersion } from './options.js'
import { print, printJson, say } from './output.js'

type AddCommand = (
  program: Command,
  signal: AbortSignal,
  setExitCode: (code: number) => void,
) => void

/** Commands by name, in the order of the help. Each is loaded when it is asked for. */
const kCommands: Readonly<Record<string, () => Promise<AddCommand>>> = {
  demo: async () => (await import('./demo.js')).addDemoCommand,
  generate: async () => (await import('./generate.js')).addGenerateCommand,
  eval: async () => (await import('./eval.js')).addEvalCommand,
  inspect: async () => (await import('./inspect.js')).addInspectCommand,
  bench: async () => (await import('./bench.js')).addBenchCommand,
  serve: async () => (await import('./serve.js')).addServeCommand,
  doctor: async () => (await import('./doctor.js')).addDoctorCommand,
  build: async () => (await import('./build.js')).addBuildCommand,
}

const kExitFailure = 1
const kExitUsage = 2
const kExitSignal = { SIGINT: 130, SIGTERM: 143 } as const

/**
 * Runs one command line and returns its exit code: 0; 1 for a `ZipCacheError`; 2 for a command line
 * that makes no sense, which is also one of `ERR_ZC_ARGUMENT`; 130 for Ctrl-C, 143 for SIGTERM.
 *
 * A failure is one line on stderr, `zipcache: <message> (<code>)`, and with `--json` also
 * `{ "error": { "code", "message" } }` on stdout.
 */
export async function run(argv: readonly string[]): Promise<number> {
  const json = argv.includes('--json')
  const interrupt = new AbortController()
  let exitOnAbort = 0
  for (const name of ['SIGINT', 'SIGTERM'] as const) {
    process.on(name, () => {
      // The second time someone does not want to wait for the current step.
      if (interrupt.signal.aborted) process.exit(kExitSignal[name])
      exitOnAbort = kExitSignal[name]
      interrupt.abort()
    })
  }
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    // `zipcache … | head`: nobody reads on, which is no failure; a full disk is one.
    if (error.code !== 'EPIPE') {
      say(`zipcache: stdout: cannot be written: ${error.message} (ERR_ZC_IO)`)
      process.exitCode = kExitFailure
    }
    interrupt.abort()
  })
  process.stderr.on('error', () => {})

  let exitCode = 0
  let running: Command | undefined
  const program = createProgram().hook('preAction', (_, command) => {
    running = command
  })
  try {
    // The command that comes first, or all of them: for help, and to say what there is.
    const first = argv[2] ?? ''
    const named = Object.hasOwn(kCommands, first) ? [first] : Object.keys(kCommands)
    for (const name of named) {
      const add = await (kCommands[name] as () => Promise<AddCommand>)()
      add(program, interrupt.signal, (code) => {
        exitCode = code
      })
    }
    await program.parseAsync(asHelpOption(argv))
    return exitCode
  } catch (error) {
    if (interrupt.signal.aborted) {
      if (exitOnAbort !== 0) report('ABORT_ERR', 'interrupted', json)
      return exitOnAbort
    }
    if (error instanceof CommanderError) {
      if (error.exitCode === 0) return 0 // help or version was asked for
      if (error.code === 'commander.help') return kExitUsage // help was printed instead
      const message = error.message.replace(/^error: /, '')
      const more = kUnknown.test(message) ? `; see zipcache ${helpOf(argv)}` : ''
      report('ERR_ZC_ARGUMENT', `${message}${more}`, json)
      return kExitUsage
    }
    if (error instanceof ZipCacheError) {
      report(error.code, namingOption(error, running), json)
      return error.code === 'ERR_ZC_ARGUMENT' ? kExitUsage : kExitFailure
    }
    report('ERR_ZC_INTERNAL', reasonOf(error), json)
    if (error instanceof Error) say(error.stack ?? '')
    return kExitFailure
  }
}

/** What commander says of a word that it neither knows nor takes for another one. */
const kUnknown = /^unknown (?:command|option) '[^']*'$/

/** The command line that lists what could have been meant. */
function helpOf(argv: readonly string[]): string {
  const names = argv.slice(2).filter((word) => !word.startsWith('-'))
  const [first = ''] = names
  return Object.hasOwn(kCommands, first) ? `${first} --help` : '--help'
}

/** A failure's message, with the option that was typed where the library names its own argument. */
function namingOption({ message, argument = '' }: ZipCacheError, command?: Command): string {
  // `policy.highBits` is told as of `policy`, and may have been typed as --high-bits.
  const [name = '', part] = argument.split('.')
  const optionOf = (key: string | undefined) =>
    command?.options.find((option) => {
      const isThere = command.getOptionValue(option.attributeName()) !== undefined
      return option.attributeName() === key && (isThere || option.isBoolean())
    })
  const option = optionOf(part) ?? optionOf(name)
  const isNamed =
    option?.long && (message.startsWith(`${name}: `) || message.startsWith(`${name}[`))
  return isNamed ? option.long + message.slice(name.length) : message
}

/**
 * `help eval needle` as `eval needle --help`: commander's own `help` takes one name, and is silent
 * about one that it does not know.
 */
function asHelpOption(argv: readonly string[]): readonly string[] {
  const [node, script, first, ...names] = argv as [string, string, string?, ...string[]]
  const [name] = names
  if (first !== 'help' || name === undefined || name.startsWith('-')) return argv
  return [node, script, ...names, ...(Object.hasOwn(kCommands, name) ? ['--help'] : [])]
}

function createProgram(): Command {
  const program = new Command('zipcache')
  program
    .description(
      'Runs language models with a KV cache compressed as in ZipCache (arXiv 2405.14256).',
    )
    .version(packageVersion(), '-v, --version', 'print the version')
    .helpOption('-h, --help', 'print this help')
    .exitOverride()
    .configureHelp({ optionDescription })
    // `run` reports errors, all in one way.
    .configureOutput({ writeOut: print, outputError: () => {} })
  return program
}

/** What help says of an option: a list that it defaults to as one would be typed, not as JSON. */
function optionDescription(option: Option): string {
  const { defaultValue } = option
  if (Array.isArray(defaultValue)) option.defaultValueDescription ??= defaultValue.join(',')
  return new Help().optionDescription(option)
}

function report(code: string, message: string, json: boolean): void {
  say(`zipcache: ${message.replace(/\s*\n\s*/g, ' ')} (${code})`)
  if (json) printJson({ error: { code, message } })
}
