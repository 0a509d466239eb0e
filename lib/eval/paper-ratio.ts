/**
 * Compression ratios as the paper counts them: bits of codes and 16-bit parameters, no index of
 * which tokens are salient, no page holes, no 16-bit tail. `Sequence.bytes.ratio` counts all of
 * those.
 */
import { checkObject } from '../engine/options.js'
import { show } from '../errors.js'
import { check, checkNumber } from './check.js'

/** What a ratio is computed for; the paper's own are the defaults. */
export interface RatioShape {
  /** l: tokens of a sequence. */
  readonly tokens: number
  /** h d: KV heads times head_dim; the paper takes 4096 for every model. */
  readonly width?: number
  /** b: sequences that share channel parameters; the paper takes 8. */
  readonly batch?: number
}

/** How keys and values are grouped under one scale and zero, as in the rows of Table 1. */
export type Granularity = 'group' | 'token' | 'channel-token' | 'channel-cst'

const kPaperWidth = 4096
const kPaperBatch = 8
/** n: elements of a group. */
const kGroup = 32

/**
 * The ratio of all tokens at `bits`:
 *
 *     2bhld 16 / (2bhld bits + 16 p),   p = 4bhld / 32  group
 *                                           4bl         token
 *                                           2hd + 2bl   K by channel, V by token
 *                                           3hd + 2bl   K by channel, V channel-separable by token
 *
 * Throws `ERR_ZC_ARGUMENT` for what are no numbers, and for another granularity. Source: ZipCache
 * (arXiv 2405.14256) App. A and Table 1.
 */
export function granularityRatio(
  granularity: Granularity,
  bits: number,
  shape: RatioShape,
): number {
  const { tokens, width, batch } = checkShape(shape)
  checkNumber('bits', bits)
  const elements = 2 * batch * width * tokens
  const parametersOf: Record<Granularity, number> = {
    group: (2 * elements) / kGroup,
    token: 4 * batch * tokens,
    'channel-token': 2 * width + 2 * batch * tokens,
    'channel-cst': 3 * width + 2 * batch * tokens,
  }
  const isKnown = Object.hasOwn(parametersOf, granularity)
  const known = Object.keys(parametersOf).join(', ')
  check('granularity', isKnown, `is ${show(granularity)}, expected one of ${known}`)
  const parameters = parametersOf[granularity]
  return (16 * elements) / (bits * elements + 16 * parameters)
}

/**
 * The ratio of a share `r` of the tokens at `high` bits and the others at `low`:
 *
 *     2bhld 16 / (2bhld (r high + (1 - r) low) + 16 * 2 (2hd + 2bl))
 *
 * The paper does not print it. Of the formulas one could think of this one alone gives every ratio
 * that Tables 3, 4, A and B print.
 *
 * Throws `ERR_ZC_ARGUMENT` for what are no numbers.
 */
export function mixedRatio(
  classes: { r: number; high?: number; low?: number },
  shape: RatioShape,
): number {
  const { tokens, width, batch } = checkShape(shape)
  const { r, high, low } = checkClasses(classes)
  const elements = 2 * batch * width * tokens
  const parameters = 2 * (2 * width + 2 * batch * tokens)
  return (16 * elements) / (elements * (r * high + (1 - r) * low) + 16 * parameters)
}

function checkShape(shape: RatioShape): Required<RatioShape> {
  checkObject('shape', shape)
  const { tokens, width = kPaperWidth, batch = kPaperBatch } = shape
  for (const [name, value] of Object.entries({ tokens, width, batch })) checkNumber(name, value)
  return { tokens, width, batch }
}

function checkClasses(classes: Parameters<typeof mixedRatio>[0]) {
  checkObject('classes', classes)
  const { r, high = 4, low = 2 } = classes
  for (const [name, value] of Object.entries({ r, high, low })) checkNumber(name, value)
  return { r, high, low }
}
