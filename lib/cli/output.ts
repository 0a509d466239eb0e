import { SingleBar } from 'cli-progress'

/** Writes text for people, or a model's text, to stdout. */
export function print(text: string): void {
  process.stdout.write(text)
}

/** Writes the one document of `--json` to stdout. */
export function printJson(value: unknown): void {
  print(`${JSON.stringify(value, null, 2)}\n`)
}

/** Writes a line to stderr. */
export function say(line: string): void {
  process.stderr.write(`${line}\n`)
}

/** Receives how far something is. */
export type OnProgress = (progress: { done: number; total: number }) => void

/**
 * Runs something while a progress bar stands on stderr, if `show` and a person is looking there.
 */
export async function withProgress<T>(
  label: string,
  show: boolean,
  use: (onProgress: OnProgress | undefined) => Promise<T>,
): Promise<T> {
  if (!show || !process.stderr.isTTY) return use(undefined)
  const bar = new SingleBar({
    format: `${label} {bar} {value}/{total}, {eta_formatted} left`,
    barCompleteChar: '#',
    barIncompleteChar: '.',
    clearOnComplete: true,
    stream: process.stderr,
  })
  bar.start(1, 0)
  try {
    return await use(({ done, total }) => {
      bar.setTotal(total)
      bar.update(done)
    })
  } finally {
    bar.stop()
  }
}
