import { type ErrorCode, ZipCacheError } from '../../lib/errors.js'

/** What an error must say: its code, and the argument or op at fault where they are known. */
export interface Fault {
  code: ErrorCode
  op?: string
  argument?: string
  message?: RegExp
}

/** Expects a call to throw a `ZipCacheError` at once, one whose message names the argument. */
export function expectRefused(call: () => unknown, fault: Fault): void {
  expectFault(thrownBy(call), fault)
}

/** Expects a promise to reject with a `ZipCacheError`. */
export async function expectRejected(promise: Promise<unknown>, fault: Fault): Promise<void> {
  const outcome = await promise.then(
    () => undefined,
    (error: unknown) => error,
  )
  expectFault(outcome, fault)
}

function thrownBy(call: () => unknown): unknown {
  try {
    call()
    return undefined
  } catch (error) {
    return error
  }
}

function expectFault(error: unknown, { code, op, argument, message }: Fault): void {
  expect(error).toBeInstanceOf(ZipCacheError)
  expect(error).toMatchObject({ name: 'ZipCacheError', code })
  if (op !== undefined) expect(error).toMatchObject({ op })
  if (argument !== undefined) {
    expect(error).toMatchObject({ argument, message: expect.stringContaining(`${argument}: `) })
  }
  if (message !== undefined) expect((error as Error).message).toMatch(message)
}
