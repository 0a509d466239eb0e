/**
 * An orthogonal matrix of +-1 / sqrt(m) that is its own inverse, (n, n) row-major: Hadamard
 * matrices of size m on the diagonal, m the largest power of two that divides n. Rotating a head's
 * channels by it spreads outliers over all of them.
 *
 * Source: Sylvester's construction; QuaRot (arXiv 2404.00456) for its use before quantization.
 */
export function hadamard(n: number): Float32Array {
  const size = n & -n
  const matrix = new Float32Array(n * n)
  const unit = 1 / Math.sqrt(size)
  for (let row = 0; row < n; row++) {
    const block = row - (row % size)
    for (let column = block; column < block + size; column++) {
      // The sign is the parity of the bits that both indices have.
      matrix[row * n + column] = isOdd((row % size) & (column - block)) ? -unit : unit
    }
  }
  return matrix
}

function isOdd(bits: number): boolean {
  let parity = 0
  for (let rest = bits; rest > 0; rest >>= 1) parity ^= rest & 1
  return parity === 1
}
