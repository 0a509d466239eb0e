import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { join } from 'node:path'

export const kRoot = join(__dirname, '..', '..')
/** `zipcache` as `npm test` has built it. */
export const kMain = join(kRoot, 'dist', 'cli', 'main.js')
export const kModel = join(kRoot, 'models', 'line-retrieval')

/** How a command ended and what it wrote. */
export interface Ended {
  exitCode: number | null
  stdout: string
  stderr: string
}

/** How a command that fails with a code ends: 2 where what was typed makes no sense. */
export function exitCodeOf(code: string): number {
  return code === 'ERR_ZC_ARGUMENT' ? 2 : 1
}

/** Starts Node with a script of the package, from another folder than its own. */
export function startNode(
  args: readonly string[],
  env: NodeJS.ProcessEnv = {},
): ChildProcessWithoutNullStreams {
  const own = { ...process.env, ...env }
  return spawn(process.execPath, args, { cwd: __dirname, stdio: 'pipe', env: own })
}

/** Starts `zipcache`. */
export function start(args: readonly string[]): ChildProcessWithoutNullStreams {
  return startNode([kMain, ...args])
}

/** Waits until a started command ends. */
export async function end(child: ChildProcessWithoutNullStreams): Promise<Ended> {
  const [out, err] = [child.stdout, child.stderr].map((stream) => {
    const text = { all: '' }
    stream.setEncoding('utf8').on('data', (chunk: string) => {
      text.all += chunk
    })
    return text
  }) as [{ all: string }, { all: string }]
  const exitCode = await new Promise<number | null>((resolve, reject) => {
    child.on('error', reject)
    child.on('close', resolve)
  })
  return { exitCode, stdout: out.all, stderr: err.all }
}

/** Runs `zipcache` with `input` on stdin. */
export function zipcache(args: readonly string[], input = ''): Promise<Ended> {
  const child = start(args)
  child.stdin.on('error', () => {}) // it may end without reading
  child.stdin.end(input)
  return end(child)
}

/** Runs `zipcache … --json`, expects it to succeed in silence, and returns its document. */
// biome-ignore lint/suspicious/noExplicitAny: tests look at what is really there
export async function zipcacheJson(args: readonly string[], input = ''): Promise<any> {
  const { exitCode, stdout, stderr } = await zipcache([...args, '--json'], input)
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
  return JSON.parse(stdout)
}
