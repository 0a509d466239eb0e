import { timeInTurns } from '../../lib/bench/turns'

/** Cells that take their time in `sync`, by a clock of their own, and write down who ran. */
function fakeCells(milliseconds: readonly number[]) {
  const log: number[] = []
  let now = 0
  let owed = 0
  jest.spyOn(performance, 'now').mockImplementation(() => now)
  const cells = milliseconds.map((ms, c) => ({
    run() {
      log.push(c)
      owed += ms
    },
  }))
  const sync = async () => {
    now += owed
    owed = 0
  }
  return { cells, sync, log }
}

afterEach(() => jest.restoreAllMocks())

test('as many samples as asked for, of one call each', async () => {
  const { cells, sync } = fakeCells([0.5, 6])
  const times = await timeInTurns(cells, { sync, samples: 5, budgetMs: 60_000 })
  expect(times.map((own) => own.length)).toEqual([5, 5])
  for (const ms of times[0]!) expect(ms).toBeCloseTo(0.5)
  for (const ms of times[1]!) expect(ms).toBeCloseTo(6)
})

test('rounds go forwards and backwards', async () => {
  const { cells, sync, log } = fakeCells([5, 5, 5])
  const begun: number[] = []
  const afterRound = async () => {
    if (begun.length === 0) begun.push(log.length)
  }
  await timeInTurns(cells, { sync, samples: 3, budgetMs: 60_000, afterRound })
  expect(log.slice(begun[0]! - 3)).toEqual([0, 1, 2, 2, 1, 0, 0, 1, 2])
})

test('calls much shorter than a sample share one', async () => {
  const { cells, sync, log } = fakeCells([0.05])
  await timeInTurns(cells, { sync, samples: 3, budgetMs: 60_000 })
  expect(log.length).toBeGreaterThan(3 * 80)
})

test('no more rounds than three once the time is up', async () => {
  const { cells, sync } = fakeCells([5])
  const rounds: number[] = []
  const afterRound = async (round: number) => void rounds.push(round)
  const [times] = await timeInTurns(cells, { sync, samples: 50, budgetMs: 0, afterRound })
  expect(times).toHaveLength(3)
  expect(rounds).toEqual([1, 2, 3])
})

test('ends when aborted', async () => {
  const { cells, sync } = fakeCells([1])
  const abort = new AbortController()
  const afterRound = async () => abort.abort(new Error('enough'))
  const options = { sync, samples: 9, budgetMs: 60_000, afterRound, signal: abort.signal }
  await expect(timeInTurns(cells, options)).rejects.toThrow('enough')
})
