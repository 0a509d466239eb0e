import { join } from 'node:path'
import { measureMemory } from '../../lib/eval/memory'
import { POLICY_NAMES } from '../../lib/policy/index'
import { kFixtures } from '../engine/model-copies'
import { someIds, useModel } from '../engine/running'

const model = useModel(join(kFixtures, 'llama'))

test('bytes of a prompt and of its way there, whatever the tokens', async () => {
  const policies = ['fp16', 'zipcache']
  const rows = await measureMemory({ model: model(), policies, lengths: [100, 300], seed: 1 })
  expect(rows.map(({ policy, length }) => [policy, length])).toEqual([
    ['fp16', 100],
    ['fp16', 300],
    ['zipcache', 100],
    ['zipcache', 300],
  ])
  for (const { policy, length, resident, peak, fp16, ratio } of rows) {
    const sequence = model().createSequence({ policy })
    await sequence.prefill(someIds(length, 320))
    expect(sequence.bytes).toMatchObject({ resident, peak, fp16, ratio })
    expect(peak).toBeGreaterThan(resident)
    sequence.dispose()
  }
  const other = await measureMemory({ model: model(), policies, lengths: [100, 300], seed: 2 })
  expect(other).toEqual(rows)
})

test.each(POLICY_NAMES)('%s: the parts are what the allocator handed out', async (policy) => {
  const before = model().kvMemory.used
  const sequence = model().createSequence({ policy })
  for (const n of [300, 30, 1, 200]) {
    await sequence.prefill(someIds(n, 320))
    const { resident, byClass } = sequence.bytes
    expect(Object.values(byClass).reduce((sum, bytes) => sum + bytes, 0)).toBe(resident)
    expect(model().kvMemory.used - before).toBe(resident)
  }
  sequence.dispose()
  expect(model().kvMemory.used).toBe(before)
})

test('a length that the model does not hold is refused', async () => {
  await expect(
    measureMemory({ model: model(), policies: ['fp16'], lengths: [1e6], seed: 1 }),
  ).rejects.toMatchObject({ code: 'ERR_ZC_CONTEXT_LENGTH' })
})
