/**
 * Cache policies by name. A new one is a file of its own, one line in POLICIES and one in
 * PolicyOptionsOf.
 */
import { argumentError, show, ZipCacheError } from '../errors.js'
import { type Fp16Options, fp16 } from './fp16.js'
import { type FullOptions, full } from './full.js'
import { type GearOptions, gear } from './gear.js'
import { type H2oOptions, h2o } from './h2o.js'
import { type KiviOptions, kivi } from './kivi.js'
import { type MikvOptions, type MikvPaperOptions, mikv } from './mikv.js'
import type { CachePolicy, CodeBits } from './policy.js'
import { type RotatedOptions, rotated } from './rotated.js'
import { type SnapKvOptions, snapkv } from './snapkv.js'
import { type Granularity, type UniformOptions, uniform } from './uniform.js'
import { type ZipCacheOptions, zipcache } from './zipcache.js'
import { type ZipCacheOfficialOptions, zipcacheOfficial } from './zipcache-official.js'
import { type ZipCachePlusOptions, zipcachePlus } from './zipcache-plus.js'

export type { Fp16Options } from './fp16.js'
export type { FullOptions } from './full.js'
export type { GearOptions } from './gear.js'
export type { H2oOptions } from './h2o.js'
export type { KiviOptions } from './kivi.js'
export type { MikvOptions, MikvPaperOptions, MikvZipCacheOptions } from './mikv.js'
export type {
  AutoRatio,
  CachePolicy,
  CodeBits,
  Compression,
  Correction,
  KeptFacts,
  KeptPlan,
  PrecisionClass,
  QuantizedPlan,
  QuantRange,
  RowCodec,
  RowPlan,
  SaliencyMetric,
  TieredPlan,
} from './policy.js'
export type { ProbeShares, ProbeStrategy } from './probes.js'
export type { RotatedOptions } from './rotated.js'
export type { SnapKvOptions } from './snapkv.js'
export type { Granularity, UniformOptions } from './uniform.js'
export type { ByClass, SaliencyOptions, ZipCacheOptions } from './zipcache.js'
export type { ZipCacheOfficialOptions } from './zipcache-official.js'
export type { ZipCachePlusOptions } from './zipcache-plus.js'

interface PolicyOptionsOf {
  full: FullOptions
  fp16: Fp16Options
  zipcache: ZipCacheOptions
  'zipcache-plus': ZipCachePlusOptions
  'zipcache-official': ZipCacheOfficialOptions
  mikv: MikvOptions
  uniform: UniformOptions
  rotated: RotatedOptions
  kivi: KiviOptions
  gear: GearOptions
  h2o: H2oOptions
  snapkv: SnapKvOptions
}

type PolicyName = keyof PolicyOptionsOf

const POLICIES: { [N in PolicyName]: (options: PolicyOptionsOf[N]) => CachePolicy } = {
  full,
  fp16,
  zipcache,
  'zipcache-plus': zipcachePlus,
  'zipcache-official': zipcacheOfficial,
  mikv,
  uniform,
  rotated,
  kivi,
  gear,
  h2o,
  snapkv,
}

/** Names that `resolvePolicy` knows as strings; `uniform` and `rotated` take other bits, too. */
export const POLICY_NAMES = [
  'full',
  'fp16',
  'zipcache',
  'zipcache-plus',
  'zipcache-official',
  'mikv',
  'mikv-paper',
  'uniform2',
  'uniform3',
  'uniform4',
  'uniform8',
  'uniform4-channel',
  'uniform4-token',
  'uniform4-group',
  'rotated4',
  'kivi2',
  'kivi4',
  'gear4',
  'gear2',
  'h2o',
  'snapkv',
] as const

/** Options of a policy, those left out that its name says. */
type Rest<Options, Name extends string, Said extends keyof Options> = Omit<
  Options,
  'name' | Said
> & { name: Name }

/** Options beside a name that says some of them. */
type NamedOptions =
  | Rest<MikvPaperOptions, 'mikv-paper', 'preset'>
  | Rest<UniformOptions, `uniform${CodeBits}`, 'bits'>
  | Rest<UniformOptions, `uniform${CodeBits}-${Granularity}`, 'bits' | 'granularity'>
  | Rest<RotatedOptions, `rotated${CodeBits}`, 'bits'>
  | Rest<KiviOptions, 'kivi2' | 'kivi4', 'bits'>
  | Rest<GearOptions, 'gear2' | 'gear4', 'bits'>

/**
 * A policy by name (`zipcache`, `uniform4` …), or by name and options. Any text is taken, for names
 * come from command lines, too; that of `POLICY_NAMES` stands here for editors to complete.
 */
export type PolicySpec =
  | (typeof POLICY_NAMES)[number]
  | (string & Record<never, never>)
  | PolicyOptionsOf[PolicyName]
  | NamedOptions

/**
 * The policy that a specification names.
 *
 * Throws `ERR_ZC_ARGUMENT` for an unknown name, an unknown option or a value out of range, and one
 * that the name says otherwise, naming it.
 */
export function resolvePolicy(spec: PolicySpec): CachePolicy {
  const options = optionsOf(spec)
  const { name } = options
  if (typeof name !== 'string' || !Object.hasOwn(POLICIES, name)) {
    const isOptions = typeof spec === 'object' && spec !== null
    const [given, known] = isOptions ? [name, Object.keys(POLICIES)] : [spec, POLICY_NAMES]
    throw argumentError('policy', `is ${show(given)}, expected one of ${known.join(', ')}`)
  }
  const make = POLICIES[name as PolicyName] as (options: object) => CachePolicy
  return make(options)
}

/** All options of a policy, those in its name among them. */
function optionsOf(spec: PolicySpec): Record<string, unknown> {
  if (typeof spec === 'string') return parseName(spec)
  // A caller without types may give anything.
  const { name, ...given } = (spec ?? {}) as Record<string, unknown>
  if (typeof name !== 'string') return { name }
  const { name: policy, ...said } = parseName(name)
  for (const [key, value] of Object.entries(said)) {
    const other = given[key] ?? value
    if (other === value) continue
    throw new ZipCacheError(
      'ERR_ZC_ARGUMENT',
      `policy: ${name}'s ${key} is ${show(other)}, but its name says ${show(value)}`,
      { argument: `policy.${key}` },
    )
  }
  return { name: policy, ...given, ...said }
}

/** Reads `uniform4-group`: a policy, its bits, and its granularity; or `mikv-paper`, and its preset. */
function parseName(text: string): { name: string } & Record<string, unknown> {
  if (text === 'mikv-paper') return { name: 'mikv', preset: 'paper' }
  const [, name, bits, granularity] =
    /^(uniform|rotated|kivi|gear)(\d+)(?:-([a-z]+))?$/.exec(text) ?? []
  if (!name || (granularity && name !== 'uniform')) return { name: text }
  return { name, bits: Number(bits), ...(granularity && { granularity }) }
}
