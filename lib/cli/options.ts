/** Reads option values; commander puts the option's name before what these complain of. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { type Command, InvalidArgumentError } from 'commander'
import { reasonOf, ZipCacheError } from '../errors.js'
import { type ComputeDtype, WEIGHT_FORMATS, type WeightFormat } from '../model/weights.js'
import { type PolicySpec, resolvePolicy } from '../policy/index.js'
import { policyLabel } from '../policy/policy-label.js'

/** The folder of the package. */
export const kPackageRoot = join(__dirname, '..', '..')

/** The version in package.json. */
export function packageVersion(): string {
  const text = readFileSync(join(kPackageRoot, 'package.json'), 'utf8')
  return (JSON.parse(text) as { version: string }).version
}

type Parser<T> = (value: string) => T

/** A whole number of [min, max]. */
export function integer(min: number, max = Number.MAX_SAFE_INTEGER): Parser<number> {
  return (value) => {
    const number = Number(value)
    if (/^[+-]?\d+$/.test(value) && number >= min && number <= max) return number
    throw new InvalidArgumentError(`Expected a whole number ${range(min, max)}.`)
  }
}

/** A decimal number of [min, max]. */
export function decimal(min: number, max = Number.MAX_VALUE): Parser<number> {
  return (value) => {
    const number = Number(value)
    if (/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(value) && number >= min && number <= max) {
      return number
    }
    throw new InvalidArgumentError(`Expected a number ${range(min, max)}.`)
  }
}

/** Any integer that JavaScript holds exactly. */
export const seed: Parser<number> = integer(Number.MIN_SAFE_INTEGER)

/** Values between commas. */
export function list<T>(parse: Parser<T>): Parser<T[]> {
  return (value) => value.split(',').map((item) => parse(item.trim()))
}

/** Values between commas, each at most once. */
export function distinctList<T>(parse: Parser<T>): Parser<T[]> {
  return (value) => {
    const items = list(parse)(value)
    const twice = items.find((item, i) => items.indexOf(item) !== i)
    if (twice === undefined) return items
    throw new InvalidArgumentError(`${String(twice)} is named twice.`)
  }
}

/** The name of a policy. */
export function policyName(value: string): string {
  try {
    resolvePolicy(value)
    return value
  } catch (error) {
    if (error instanceof ZipCacheError) throw new InvalidArgumentError(`${error.message}.`)
    throw error
  }
}

/**
 * Policies between commas, each at most once: names, or JSON objects with a name and options.
 * `fp16,{"name":"zipcache","saliencyRatio":0.2}`
 */
export function policySpecs(value: string): PolicySpec[] {
  const specs = splitOutsideBraces(value).map((text) => {
    const item = text.trim()
    if (!item.startsWith('{')) return policyName(item)
    try {
      const spec = JSON.parse(item) as PolicySpec
      resolvePolicy(spec)
      return spec
    } catch (error) {
      throw new InvalidArgumentError(`${item}: ${(error as Error).message}.`)
    }
  })
  const labels = specs.map(policyLabel)
  const twice = labels.find((label, i) => labels.indexOf(label) !== i)
  if (twice !== undefined) throw new InvalidArgumentError(`${twice} is named twice.`)
  return specs
}

/** One policy, as `policySpecs` takes it. */
export function policySpec(value: string): PolicySpec {
  const [policy, ...others] = policySpecs(value)
  if (policy !== undefined && others.length === 0) return policy
  throw new InvalidArgumentError('Expected one policy.')
}

/** Commas inside of braces separate a policy's options, not policies. */
function splitOutsideBraces(text: string): string[] {
  const items = ['']
  let depth = 0
  for (const character of text) {
    if (character === '{') depth++
    if (character === '}') depth--
    if (character === ',' && depth === 0) items.push('')
    else items[items.length - 1] += character
  }
  return items
}

/** A regular expression. */
export function regularExpression(value: string): RegExp {
  try {
    return new RegExp(value)
  } catch (error) {
    throw new InvalidArgumentError(reasonOf(error))
  }
}

/** One of a few words. */
export function choice<T extends string>(...choices: readonly T[]): Parser<T> {
  return (value) => {
    if (choices.includes(value as T)) return value as T
    throw new InvalidArgumentError(`Expected ${choices.join(' or ')}.`)
  }
}

function range(min: number, max: number): string {
  if (max < Number.MAX_SAFE_INTEGER) return `of ${min} to ${max}`
  return min === Number.MIN_SAFE_INTEGER ? 'that JavaScript holds exactly' : `of at least ${min}`
}

/** Where and in what a model computes. */
export interface DeviceOptions {
  readonly device?: string
  readonly dtype?: ComputeDtype
  readonly weights: WeightFormat
  readonly threads?: number
}

/** What commands take that run a model and print one document. */
export interface ModelOptions extends DeviceOptions {
  readonly json?: boolean
}

/** Adds `--device`, `--dtype`, `--weights` and `--threads` to a command. */
export function addDeviceOptions(command: Command): Command {
  return command
    .option(...deviceOption)
    .option(...dtypeOption, computeDtype)
    .option(...weightsOption, weightFormat, 'stored')
    .option('--threads <n>', 'threads that compute (default: one a core)', integer(1, 1024))
}

/** Flags of `--device`, and what help says of it. */
export const deviceOption = [
  '--device <name>',
  'device that computes: cuda, cuda:1, cpu (default: a GPU that can be used, else the CPU)',
] as const

/** Flags of `--dtype`, and what help says of it. */
export const dtypeOption = [
  '--dtype <type>',
  'compute in f32 or bf16 (default: f32, on a GPU bf16)',
] as const

export const computeDtype = choice<ComputeDtype>('f32', 'bf16')

/** Flags of `--weights`, and what help says of it. */
export const weightsOption = [
  '--weights <format>',
  'matrices as they are stored, or int8 or int4, rounded to so many bits when the model is loaded',
] as const

export const weightFormat = choice<WeightFormat>(...WEIGHT_FORMATS)

/** Flag of `--json`, and what help says of it. */
export const jsonOption = ['--json', 'print one JSON document on stdout and nothing else'] as const

/** Adds `--device`, `--dtype`, `--weights`, `--threads` and `--json` to a command. */
export function addModelOptions(command: Command): Command {
  return addDeviceOptions(command).option(...jsonOption)
}

/** Adds `--json`, `--json-file` and `--html`, with what its page shows, to a command. */
export function addReportOptions(command: Command, shown: string): Command {
  return command
    .option(...jsonOption)
    .option('--json-file <file>', 'write the JSON document to a file, too')
    .option('--html <file>', `write a page with ${shown}`)
}
