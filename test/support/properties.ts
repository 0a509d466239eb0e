import type fc from 'fast-check'

/**
 * How properties run: few and quick, the same every time, and with another seed by
 * `ZIPCACHE_TEST_SEED`. A failing property prints its seed and the smallest input that fails.
 */
export function propertyRuns(numRuns: number): fc.Parameters<unknown> {
  return { seed: Number(process.env.ZIPCACHE_TEST_SEED ?? 20240523), numRuns }
}
