/** Conversations between requests, without a model. */
import type { Sequence } from '../../lib/engine/sequence'
import { ZipCacheError } from '../../lib/errors'
import { Sessions } from '../../lib/server/sessions'

/** A sequence of these tokens, which can be copied as long as there is memory. */
function sequenceOf(tokens: number[], memory = { isFull: false }) {
  const sequence = {
    tokens,
    isDisposed: false,
    bytes: { resident: 1 },
    fork: () => {
      if (memory.isFull) throw new ZipCacheError('ERR_ZC_OUT_OF_MEMORY', 'full')
      return sequenceOf(tokens, memory)
    },
    dispose: () => {
      sequence.isDisposed = true
    },
  }
  return sequence
}

const name = (id: string) => ({ id, owner: '' })
const prompt = { ids: [1, 2, 3, 4], text: null }
const encode = () => []

function keep(sessions: Sessions, id: string, sequence: ReturnType<typeof sequenceOf>): void {
  sessions.enter(name(id), 'p', prompt, encode)
  sessions.leave(name(id), { sequence: sequence as unknown as Sequence, policy: 'p', text: null })
}

test('a copy goes on with what the prompt begins with, and leaves the conversation', () => {
  const sessions = new Sessions({ maxSessions: 2, sessionTtlMs: 10 })
  const own = sequenceOf([1, 2])
  keep(sessions, 'a', own)
  for (let i = 0; i < 2; i++) {
    const copy = sessions.copy(name('a'), 'p', prompt, encode)
    expect(copy).toMatchObject({ ids: [3, 4], text: null })
    expect(copy?.sequence).not.toBe(own)
  }
  expect(sessions.copy(name('a'), 'other', prompt, encode)).toBe(null)
  expect(sessions.copy(name('a'), 'p', { ids: [1, 3], text: null }, encode)).toBe(null)
  expect(sessions.copy(name('b'), 'p', prompt, encode)).toBe(null)
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
  sessions.copy(name('a'), 'p', prompt, encode)
  keep(sessions, 'c', c)
  expect([a.isDisposed, b.isDisposed]).toEqual([false, true])
  now = 15
  expect(sessions.find(name('a'))).toBe(a)
  now = 16
  expect(sessions.find(name('a'))).toBe(null)
  expect([a.isDisposed, c.isDisposed, sessions.size]).toEqual([true, true, 0])
})

test('without memory for a copy the conversation itself goes on', () => {
  const sessions = new Sessions({ maxSessions: 2, sessionTtlMs: 10 })
  const own = sequenceOf([1, 2], { isFull: true })
  keep(sessions, 'a', own)
  expect(sessions.copy(name('a'), 'p', prompt, encode)?.sequence).toBe(own)
  expect([sessions.size, own.isDisposed]).toEqual([0, false])
})
