// How the scripts speak to a person: short lines on stderr, so that stdout stays free for results.
import { spawn } from 'node:child_process'

/** A failure with a reason to read and, where there is one, the next step to take. */
export class ScriptError extends Error {
  /**
   * @param {string} reason what went wrong
   * @param {string} [nextStep] what to do about it
   */
  constructor(reason, nextStep) {
    super(nextStep ? `${reason}\n\nNext step: ${nextStep}` : reason)
    this.name = 'ScriptError'
  }
}

/** Prints one progress line on stderr. */
export function say(line) {
  process.stderr.write(`zipcache: ${line}\n`)
}

/**
 * Runs a command to its end without showing its output, unless it fails; then all of it goes to
 * stderr. On a terminal the command's latest line is shown while it runs, so that a long build is
 * seen to move. Throws ScriptError when the command cannot start or does not exit with 0.
 */
export async function runQuietly(what, command, args, { nextStep, ...options } = {}) {
  const started = Date.now()
  say(`${what} ...`)
  let output = ''
  const child = spawn(command, args, { ...options, stdio: ['ignore', 'pipe', 'pipe'] })
  const collect = (chunk) => {
    output += chunk
    if (process.stderr.isTTY) {
      const latest = output
        .trimEnd()
        .split('\n')
        .at(-1)
        .slice(0, (process.stderr.columns || 80) - 4)
      process.stderr.write(`\r\x1b[K  ${latest}`)
    }
  }
  child.stdout.setEncoding('utf8').on('data', collect)
  child.stderr.setEncoding('utf8').on('data', collect)
  const failure = await new Promise((resolve) => {
    child.on('error', (error) => resolve(error.message))
    child.on('close', (code, signal) => {
      resolve(code === 0 ? '' : signal ? `ended by ${signal}` : `exit code ${code}`)
    })
  })
  if (process.stderr.isTTY) process.stderr.write('\r\x1b[K')
  if (failure) {
    process.stderr.write(output)
    throw new ScriptError(`${what} failed (${failure}): ${[command, ...args].join(' ')}`, nextStep)
  }
  say(`${what} took ${((Date.now() - started) / 1000).toFixed(1)} s`)
}

/** Prints an error for a person: the reason alone, or the stack when it is a bug of ours. */
export function reportFailure(error) {
  process.stderr.write(
    `\nzipcache: ${error instanceof ScriptError ? error.message : error.stack}\n`,
  )
}
