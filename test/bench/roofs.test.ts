import { achieved, Roofs, rooflineOf } from '../../lib/bench/roofs'
import { Device } from '../../lib/ops/index'

test('what a time means, by hand', () => {
  const roofline = { gigabytesPerSecond: 10, gigaflopsPerSecond: 100 }
  // 10 MB take a millisecond at the roof, 50 MFLOP half of one.
  const work = { bytes: 10e6, flops: 50e6 }
  expect(achieved({ ...work, ms: { median: 2, p10: 1.25 } }, roofline)).toEqual({
    gigabytesPerSecond: 5,
    gigaflopsPerSecond: 25,
    bound: 'memory',
    share: 0.5,
    bestShare: 0.8,
  })
  const more = achieved({ ...work, flops: 200e6, ms: { median: 4, p10: 4 } }, roofline)
  expect(more).toMatchObject({ bound: 'compute', share: 0.5 })
})

test.each([1, 2])('the roofs of a device with %i threads', async (threads) => {
  const device = await Device.open('cpu', { threads })
  try {
    const roofs = new Roofs(device)
    await roofs.check()
    for (let i = 0; i < 3; i++) await roofs.sample()
    const { measured } = roofs
    const expected = (threads === 1 ? [1] : [1, threads]).flatMap((n) => [
      ['read', n],
      ['multiply-add', n],
    ])
    expect(measured.map((roof) => [roof.name, roof.threads])).toEqual(expected)
    for (const { rate, ms } of measured) {
      expect(ms.samples).toBe(3)
      expect(rate).toBeGreaterThan(0.1)
      expect(rate).toBeLessThan(1e5)
    }
    const { gigabytesPerSecond, gigaflopsPerSecond } = rooflineOf(measured)
    expect([gigabytesPerSecond, gigaflopsPerSecond]).toEqual(
      measured.slice(-2).map(({ rate }) => rate),
    )
    roofs.dispose()
    await device.sync()
    expect(device.memory.current).toBe(0)
  } finally {
    await device.dispose()
  }
})
