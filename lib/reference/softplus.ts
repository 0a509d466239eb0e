/** log(1 + e^x); x itself above 20, as torch has it. */
export function softplus(x: number): number {
  return x > 20 ? x : Math.log1p(Math.exp(x))
}
