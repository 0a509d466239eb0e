/**
 * Codes as a string of bits, low bits first, without gaps: how a snapshot stores them, whatever the
 * order of bytes in a page.
 */

/** Bytes of `n` codes. */
export function codeBytes(n: number, bits: number): number {
  return Math.ceil((n * bits) / 8)
}

/** Codes, one a byte and below 2^bits, to a string of bits. */
export function joinCodes(codes: Uint8Array, bits: number): Uint8Array {
  const out = new Uint8Array(codeBytes(codes.length, bits))
  let held = 0
  let nHeld = 0
  let at = 0
  for (const code of codes) {
    held |= code << nHeld
    nHeld += bits
    while (nHeld >= 8) {
      out[at++] = held & 0xff
      held >>>= 8
      nHeld -= 8
    }
  }
  if (nHeld > 0) out[at] = held
  return out
}

/** The inverse of `joinCodes`. */
export function splitCodes(bytes: Uint8Array, n: number, bits: number): Uint8Array {
  const out = new Uint8Array(n)
  const mask = 2 ** bits - 1
  let held = 0
  let nHeld = 0
  let at = 0
  for (let i = 0; i < n; i++) {
    while (nHeld < bits) {
      held |= (bytes[at++] as number) << nHeld
      nHeld += 8
    }
    out[i] = held & mask
    held >>>= bits
    nHeld -= bits
  }
  return out
}
