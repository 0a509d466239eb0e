/** Conversations between requests, without a model. */
import type { Sequence } from '../../lib/engine/sequence'
import { ZipCacheError } from '../../lib/errors'
import { Sessions } from '../../lib/server/sessions'

/** A sequence of these tokens, which can be copied as long as there is memory; `alive`: it and its copies. */
function sequenceOf(tokens: number[], memory = { isFull: false }, alive = new Set<object>()) {
  const sequence = {
    tokens,
    isDisposed: false,
    bytes: { resident: 1 },
    fork: () => {
      if (memory.isFull) throw new ZipCacheError('ERR_ZC_OUT_OF_MEMORY', 'full')
      return sequenceOf(tokens, memory, alive)
    },
    dispose: () => {
      sequence.isDisposed = true
      alive.delete(sequence)
    },
  }
  alive.add(sequence)
  return sequence
}

const name = (id: string) => ({ id, owner: '' })
const prompt = { ids: [1, 2, 3, 4], text: null }
const encode = () => []

function keep(sessions: Sessions, id: string, sequence: ReturnType<typeof sequenceOf>): void {
  sessions.enter(name(id), 'p', prompt, encode)
  const own = sequence as unknown as Sequence
  sessions.leave(name(id), { sequence: own, policy: 'p', text: null })
}

test('a copy goes on with what the prompt begins with, and leaves the conversation', () => {
  const sessions = new Sessions({ maxSessions: 2, sessionTtlMs: 10 }, () => 0)
  const own = sequenceOf([1, 2])
  keep(sessions, 'a', own)
  for (let i = 0; i < 2; i++) {
    const copy = sessions.copy(name('a'), null, 'p', prompt, encode)
    expect(copy).toMatchObject({ ids: [3, 4], text: null })
    expect(copy?.sequence).not.toBe(own)
  }
  expect(sessions.copy(name('a'), null, 'other', prompt, encode)).toBe(null)
  expect(sessions.copy(name('a'), null, 'p', { ids: [1, 3], text: null }, encode)).toBe(null)
  expect(sessions.copy(name('b'), null, 'p', prompt, encode)).toBe(null)
  expect([sessions.size, own.isDisposed]).toEqual([1, false])
  expect(sessions.counters).toMatchObject({ resumed: 2, restarted: 2, reusedTokens: 4 })
})

test('a conversation that is copied is one that is used', () => {
  let now = 0
  const sessions = new Sessions({ maxSessions: 2, sessionTtlMs: 10 }, () => now)
  const [a, b, c] = [sequenceOf([1]), sequenceOf([1]), sequenceOf([1])]
  keep(sessions, 'a', a)
  keep(sessions, 'b', b)
  now = 6
  sessions.copy(name('a'), null, 'p', prompt, encode)
  keep(sessions, 'c', c)
  expect([a.isDisposed, b.isDisposed]).toEqual([false, true])
  now = 15
  expect(sessions.find(name('a'))).toBe(a)
  now = 16
  expect(sessions.find(name('a'))).toBe(null)
  expect([a.isDisposed, c.isDisposed, sessions.size]).toEqual([true, true, 0])
})

test('without memory for a copy the conversation itself goes on', () => {
  const sessions = new Sessions({ maxSessions: 2, sessionTtlMs: 10 }, () => 0)
  const own = sequenceOf([1, 2], { isFull: true })
  keep(sessions, 'a', own)
  expect(sessions.copy(name('a'), null, 'p', prompt, encode)?.sequence).toBe(own)
  expect([sessions.size, own.isDisposed]).toEqual([0, false])
})

describe('what a conversation held before', () => {
  const whole = [1, 2, 3, 4, 5]
  const memory = { isFull: false }
  const kept = () => {
    const sessions = new Sessions({ maxSessions: 2, sessionTtlMs: 10 }, () => 0)
    const alive = new Set<object>()
    const all = [[1], [1, 2], whole].map((tokens) => sequenceOf(tokens, memory, alive))
    const [first, second, last] = all.map((own) => own as unknown as Sequence) as [
      Sequence,
      Sequence,
      Sequence,
    ]
    sessions.enter(name('a'), 'p', prompt, encode)
    sessions.keepBefore(name('a'), { sequence: first, text: null }, true)
    sessions.keepBefore(name('a'), { sequence: second, text: null }, false)
    sessions.leave(name('a'), { sequence: last, policy: 'p', text: null })
    const enter = (ids: number[]) => sessions.enter(name('a'), 'p', { ids, text: null }, encode)
    const copy = (ids: number[], own: { id: string; owner: string } | null = null) =>
      sessions.copy(name('a'), own, 'p', { ids, text: null }, encode)
    const gone = () => all.map(({ isDisposed }) => isDisposed)
    return { sessions, all, first, second, last, enter, copy, gone, alive }
  }
  afterEach(() => {
    memory.isFull = false
  })

  test('is tried from the last on, and what came behind it is given up', () => {
    const a = kept()
    expect(a.enter([...whole, 6])).toMatchObject({ sequence: a.last, ids: [6] })
    expect(a.gone()).toEqual([false, false, false])
    const b = kept()
    const resumed = b.enter([1, 2, 7])
    expect(resumed?.ids).toEqual([7])
    expect(resumed?.sequence).not.toBe(b.second)
    expect([b.gone(), b.alive.size]).toEqual([[false, false, true], 3])
    const c = kept()
    expect(c.enter([1, 7])?.sequence).not.toBe(c.first)
    expect([c.gone(), c.alive.size]).toEqual([[false, true, true], 2])
    c.sessions.leave(name('a'), null)
    expect([c.gone(), c.alive.size]).toEqual([[true, true, true], 1])
    const d = kept()
    expect(d.enter([7, 8])).toBe(null)
    expect(d.gone()).toEqual([true, true, true])
    expect(d.sessions.counters).toMatchObject({ resumed: 0, restarted: 1 })
  })

  test('goes on itself where there is no memory for a copy', () => {
    const a = kept()
    memory.isFull = true
    const resumed = a.enter([1, 2, 7])
    expect(resumed?.sequence).toBe(a.second)
    expect(a.gone()).toEqual([false, false, true])
    a.sessions.leave(name('a'), null)
    expect(a.gone()).toEqual([true, false, true]) // what is resumed is the request's
  })

  test('is copied into the memory of what is given up', () => {
    const a = kept()
    memory.isFull = true
    const { dispose } = a.all[2]!
    a.all[2]!.dispose = () => {
      memory.isFull = false
      dispose()
    }
    const resumed = a.enter([1, 2, 7])
    expect(resumed?.sequence).not.toBe(a.second)
    expect([a.gone(), a.alive.size]).toEqual([[false, false, true], 3])
  })

  test('is left where there is memory for a copy, though not for all', () => {
    const a = kept()
    const { fork } = a.all[1]!
    a.all[1]!.fork = () => {
      const copy = fork()
      memory.isFull = true
      return copy
    }
    a.sessions.enter(name('b'), 'p', prompt, encode)
    const copy = a.copy([1, 2, 7], name('b'))
    expect(copy?.sequence).not.toBe(a.second)
    expect([a.alive.size, a.gone(), a.sessions.size]).toEqual([4, [false, false, false], 1])
  })

  test('is copied with what was before it, where the copy is left under a name', () => {
    const a = kept()
    expect(a.copy([1, 2, 7])?.ids).toEqual([7])
    expect([a.gone(), a.alive.size]).toEqual([[false, false, false], 4])
    a.sessions.enter(name('b'), 'p', prompt, encode)
    const copy = a.copy([1, 2, 7], name('b'))
    expect([copy?.ids, a.gone(), a.alive.size]).toEqual([[7], [false, false, false], 7])
    expect(a.sessions.bytes).toBe(5)
    a.sessions.leave(name('b'), null)
    expect([a.gone(), a.alive.size, a.sessions.size]).toEqual([[false, false, false], 5, 1])
    memory.isFull = true
    expect(a.copy([1, 2, 7])).toMatchObject({ sequence: a.second, ids: [7] })
    expect([a.gone(), a.sessions.size]).toEqual([[true, false, true], 0])
  })

  test('is counted and, while it is answered, given up before those that wait', () => {
    const a = kept()
    expect(a.sessions.bytes).toBe(3)
    a.enter([...whole, 6])
    const other = sequenceOf([1])
    keep(a.sessions, 'b', other)
    const bytes = [a.sessions.bytes]
    expect([a.sessions.evict(), a.gone(), other.isDisposed]).toEqual([
      true,
      [true, false, false],
      false,
    ])
    bytes.push(a.sessions.bytes)
    while (a.sessions.evict()) bytes.push(a.sessions.bytes)
    expect(bytes).toEqual([3, 2, 1, 0])
    expect(a.gone()).toEqual([true, true, false])
    expect(a.sessions.counters.evicted).toBe(1)
    a.sessions.leave(name('a'), { sequence: a.last, policy: 'p', text: null })
    expect(a.enter([1, 2, 7])).toBe(null)
  })

  test.each(['remove', 'evict', 'dispose'] as const)('is given up with it by %s', (way) => {
    const a = kept()
    way === 'remove' ? a.sessions.remove(name('a')) : a.sessions[way]()
    expect(a.gone()).toEqual([true, true, true])
  })
})

describe('a request that names no session', () => {
  const setUp = (...all: { tokens: number[]; owner?: string }[]) => {
    const sessions = new Sessions({ maxSessions: 4, sessionTtlMs: 10 }, () => 0)
    const names = all.map(({ tokens, owner = '' }) => {
      const own = sessions.match(owner, 'p', { ids: [], text: null }, encode)
      sessions.enter(own, 'p', prompt, encode)
      const sequence = sequenceOf(tokens) as unknown as Sequence
      sessions.leave(own, { sequence, policy: 'p', text: null })
      return own
    })
    const match = (ids: number[], owner = '', policy = 'p') =>
      sessions.match(owner, policy, { ids, text: null }, encode)
    return { sessions, names, match }
  }

  test('finds the one that has most of its prompt, among those of its owner and policy', () => {
    const { match, names } = setUp(
      { tokens: [1] },
      { tokens: [1, 2] },
      { tokens: [1, 2, 3], owner: 'b' },
      { tokens: [1, 4] },
    )
    expect(match([1, 2, 3, 4])).toBe(names[1])
    expect(match([1, 5])).toBe(names[0])
    expect(match([1, 2, 3, 4], 'b')).toBe(names[2])
    expect(match([1, 2])).toBe(names[0]) // one token at least has to run
    for (const other of [match([2]), match([1, 2, 3], '', 'q'), match([1, 2], 'c')]) {
      expect(names).not.toContain(other)
    }
  })

  test('finds none that is named, and none that another one uses', () => {
    const { sessions, match, names } = setUp({ tokens: [1, 2] })
    keep(sessions, 'a', sequenceOf([1, 2, 3]))
    expect(match([1, 2, 3, 4])).toBe(names[0])
    sessions.enter(names[0]!, 'p', prompt, encode)
    const other = match([1, 2, 3, 4])
    expect([other.id === 'a', other.id === names[0]?.id]).toEqual([false, false])
    expect(sessions.enter(other, 'p', prompt, encode)).toBe(null)
  })
})
