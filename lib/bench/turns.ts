/** Something whose time is taken in turns with others. */
export interface TimedCell {
  /** Enqueues one call. */
  run(): void
}

/** Settings of `timeInTurns`. */
export interface TurnOptions {
  /** Resolves when everything enqueued has run. */
  readonly sync: () => Promise<void>
  /** Samples of each cell, unless the time is up. */
  readonly samples: number
  /** No round begins after so many milliseconds, once each cell has kLeastSamples. */
  readonly budgetMs: number
  readonly signal?: AbortSignal | undefined
  /** Called after each round, with how many there were. */
  readonly afterRound?: ((rounds: number) => Promise<void>) | undefined
}

/** A sample lasts about so long: thousands of times the cost of waiting for it, some 10 us. */
const kSampleMs = 4
const kMostCalls = 4096
const kLeastSamples = 3

/**
 * Milliseconds of one call of each cell, several samples each. A sample is the host's time around
 * as many calls as last kSampleMs, and one wait for the device.
 *
 * The cells take turns, in every other round backwards, so that a machine that grows slower or
 * faster meanwhile treats them alike. Each cell is warmed up while its calls are counted out.
 */
export async function timeInTurns(
  cells: readonly TimedCell[],
  options: TurnOptions,
): Promise<number[][]> {
  const { sync, samples, budgetMs, signal, afterRound } = options
  const sample = async (cell: TimedCell, calls: number) => {
    signal?.throwIfAborted()
    const start = performance.now()
    for (let call = 0; call < calls; call++) cell.run()
    await sync()
    return (performance.now() - start) / calls
  }

  const begin = performance.now()
  const timed: { cell: TimedCell; calls: number; milliseconds: number[] }[] = []
  for (const cell of cells) {
    await sample(cell, 1) // touches memory, finds the code
    let calls = 1
    for (;;) {
      const ms = await sample(cell, calls)
      const enough = Math.min(kMostCalls, Math.ceil(kSampleMs / ms))
      // A first guess from few calls is too high: these waited for the device more than they ran.
      if (enough <= 2 * calls) break
      calls = Math.min(enough, 8 * calls)
    }
    timed.push({ cell, calls, milliseconds: [] })
  }
  for (let round = 0; round < samples; round++) {
    if (round >= kLeastSamples && performance.now() - begin > budgetMs) break
    const order = round % 2 === 0 ? timed : timed.toReversed()
    for (const { cell, calls, milliseconds } of order) milliseconds.push(await sample(cell, calls))
    await afterRound?.(round + 1)
  }
  return timed.map(({ milliseconds }) => milliseconds)
}
