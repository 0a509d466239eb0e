import { restoreOutliers } from '../../lib/reference'

const x = [1, 2, 3, 4, 5, 6] // (2, 3)

describe('restoreOutliers', () => {
  test('puts the values of a row at their channels', () => {
    const [values, places] = [
      [10, 20, 30, 40],
      [2, 0, 1, 2],
    ]
    const out = restoreOutliers({ x, channels: 3, values, places, perLine: 2, scheme: 'tokenwise' })
    expect([...out]).toEqual([20, 2, 10, 4, 30, 40])
    expect(x[0]).toBe(1)
  })

  test('puts the values of a channel at their rows', () => {
    const [values, places] = [
      [10, 20, 30],
      [1, 0, 1],
    ]
    const given = { x, channels: 3, values, places, perLine: 1 }
    expect([...restoreOutliers({ ...given, scheme: 'channelwise' })]).toEqual([1, 20, 3, 10, 5, 30])
  })

  test('of none leaves all', () => {
    const given = { x, channels: 3, values: [], places: [], perLine: 0 }
    expect([...restoreOutliers({ ...given, scheme: 'tokenwise' })]).toEqual(x)
  })
})
