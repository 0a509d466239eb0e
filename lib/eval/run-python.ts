import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ZipCacheError } from '../errors.js'

/** Bounds of a program that a model wrote. */
export interface PythonLimits {
  readonly timeoutMs: number
  readonly memoryBytes: number
}

/** How a program ended. */
export type PythonEnd = 'passed' | 'failed' | 'timeout'

/** The shell could not set a limit. */
const kExitNoLimit = 125
/** No such command. */
const kExitNotFound = 127
const kMaxOutputBytes = 1 << 20
const kMaxFileBlocks = 2048 // of 512 bytes

/**
 * Runs a Python program in a process of its own, in an empty folder and without the environment's
 * variables, with limits on time, memory and written files. `passed`: it came to its end without an
 * error, and did not leave early.
 *
 * This bounds mistakes, not malice: the program can read files and reach the network as whoever
 * runs this can.
 *
 * Rejects with `ERR_ZC_UNSUPPORTED` where there is no python3 or no such limit (Windows, macOS), and
 * with `signal.reason` when aborted.
 */
export async function runPython(
  program: string,
  { timeoutMs, memoryBytes }: PythonLimits,
  signal?: AbortSignal,
): Promise<PythonEnd> {
  signal?.throwIfAborted()
  if (process.platform === 'win32') throw unsupported('limits on a process need a POSIX shell')
  const dir = await mkdtemp(join(tmpdir(), 'zipcache-python-'))
  // Printed last: a program that ends before its checks does not print it.
  const proof = randomUUID()
  const seconds = Math.ceil(timeoutMs / 1000) + 1
  const limits = [
    `ulimit -v ${Math.floor(memoryBytes / 1024)}`,
    `ulimit -t ${seconds}`,
    `ulimit -f ${kMaxFileBlocks}`,
    'ulimit -c 0',
  ]
  const script = `${limits.map((limit) => `${limit} || exit ${kExitNoLimit}`).join('; ')}; exec python3 -I -`
  try {
    return await new Promise<PythonEnd>((resolve, reject) => {
      // A group of its own, so that children of the program end with it.
      const child = spawn('/bin/sh', ['-c', script], {
        cwd: dir,
        env: { PATH: process.env.PATH ?? '' },
        detached: true,
        stdio: ['pipe', 'pipe', 'ignore'],
      })
      const end = () => {
        try {
          if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL')
        } catch {
          // It has ended.
        }
      }
      let isLate = false
      let output = ''
      const timer = setTimeout(() => {
        isLate = true
        end()
      }, timeoutMs)
      signal?.addEventListener('abort', end, { once: true })
      child.stdout.setEncoding('utf8').on('data', (text: string) => {
        output = (output + text).slice(-kMaxOutputBytes)
      })
      child.stdin.on('error', () => {}) // it may end without reading
      child.stdin.end(`${program}\nprint(${JSON.stringify(proof)})\n`)
      child.on('error', reject)
      child.on('exit', end) // what it has started ends, too
      child.on('close', (code) => {
        clearTimeout(timer)
        signal?.removeEventListener('abort', end)
        if (signal?.aborted) reject(signal.reason)
        else if (isLate) resolve('timeout')
        else if (code === kExitNoLimit) reject(unsupported('this system has no such limits'))
        else if (code === kExitNotFound) reject(unsupported('there is no python3'))
        else resolve(code === 0 && output.trimEnd().endsWith(proof) ? 'passed' : 'failed')
      })
    })
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
}

function unsupported(why: string): ZipCacheError {
  return new ZipCacheError('ERR_ZC_UNSUPPORTED', `programs cannot be run: ${why}`)
}
