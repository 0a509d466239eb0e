/** Types tested by types: `npm run check` compiles this folder, and nothing here is run. */

/** `true` where two types are the same, optional and readonly fields included. */
export type Equal<A, B> =
  (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false

/** Does not compile unless its argument is `true`. */
export function expectType<_Same extends true>(): void {}
