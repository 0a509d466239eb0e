/** Work that is longer than a turn of the event loop leaves it turns. */
import { inSlices } from '../../lib/engine/in-slices'
import type { Steps } from '../../lib/grammar/index'

/** Keeps the thread busy for a millisecond at least with each step. */
function* busy<T>(nSteps: number, result: T): Steps<T> {
  for (let i = 0; i < nSteps; i++) {
    const end = performance.now() + 1
    while (performance.now() < end);
    yield
  }
  return result
}

test('a timer is heard in the middle of several works, of which each turn has one slice', async () => {
  let nTurns = 0
  let isDone = false
  const count = () => {
    nTurns++
    if (!isDone) setImmediate(count)
  }
  setImmediate(count)
  const works = [0, 1, 2, 3].map((n) => inSlices(busy(40, n), () => {}))
  expect(await Promise.all(works)).toEqual([0, 1, 2, 3])
  isDone = true
  // 160 steps, of which a slice has six at most; a quarter of the turns if each had a slice of all.
  expect(nTurns).toBeGreaterThan(20)
})

test('what needs no second step is there at once', async () => {
  const checks: number[] = []
  expect(await inSlices(busy(0, 'done'), () => checks.push(1))).toBe('done')
  expect(checks).toEqual([])
})

test('ends with what the work throws, or who no longer wants it', async () => {
  const lost = new Error('lost')
  function* fails(): Steps {
    yield
    throw lost
  }
  await expect(inSlices(fails(), () => {})).rejects.toBe(lost)
  let nSlices = 0
  const unwanted = inSlices(busy(10_000, 0), () => {
    if (++nSlices > 2) throw lost
  })
  await expect(unwanted).rejects.toBe(lost)
})
