// The benchmark's side of a cell: a process of its own, pinned to one processor. When llama.cpp ends
// its process, one cell has failed and no more.
import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

const kWorkers = { zipcache: 'zipcache-worker.mjs', 'llama.cpp': 'llama-worker.mjs' }
/** Of a failed process's stderr. */
const kKeptCharacters = 600

export class CellProcess {
  #child
  #stderr = ''
  /** What the process is asked at the moment. */
  #pending = null
  #ended = null

  /**
   * Starts the process of a cell.
   * @param {{ engine: 'zipcache' | 'llama.cpp' }} cell
   * @param {number} cpu the processor it runs on
   */
  constructor(cell, cpu) {
    const worker = fileURLToPath(new URL(kWorkers[cell.engine], import.meta.url))
    this.#child = spawn('taskset', ['-c', String(cpu), process.execPath, worker], {
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
      serialization: 'advanced',
    })
    this.#child.stderr.setEncoding('utf8').on('data', (text) => {
      this.#stderr = (this.#stderr + text).slice(-kKeptCharacters)
    })
    this.#child.on('message', ({ result, error }) => {
      const pending = this.#pending
      this.#pending = null
      if (error === undefined) pending?.resolve(result)
      else pending?.reject(new Error(error))
    })
    this.#child.on('error', (error) => this.#end(error.message))
    this.#child.on('close', (code, signal) => {
      this.#end(signal ? `its process was ended by ${signal}` : `its process exited with ${code}`)
    })
  }

  /** Asks the process; rejects when it cannot answer or ends. */
  call(method, args) {
    return new Promise((resolve, reject) => {
      if (this.#ended) reject(new Error(this.#ended))
      this.#pending = { resolve, reject }
      this.#child.send({ method, args }, (error) => {
        if (error) reject(new Error(this.#ended ?? error.message))
      })
    })
  }

  /** Ends the process, and resolves when it has ended. */
  async stop() {
    if (this.#ended) return
    const closed = new Promise((resolve) => this.#child.on('close', resolve))
    this.#child.kill('SIGKILL')
    await closed
  }

  #end(reason) {
    const lastWords = this.#stderr.trim()
    this.#ended ??= lastWords === '' ? reason : `${reason}; it wrote: ${lastWords}`
    this.#pending?.reject(new Error(this.#ended))
    this.#pending = null
  }
}

/**
 * Starts a cell over a model.
 * @param {object} cell of cells.mjs
 * @param {import('./models.mjs').BenchModel} model
 * @param {{ cpu: number, nodeLlamaCpp: string }} host
 * @returns {Promise<{ process: CellProcess, info: string }>}
 */
export async function openCell(cell, model, host) {
  const cellProcess = new CellProcess(cell, host.cpu)
  try {
    const { info } = await cellProcess.call('open', {
      ...cell,
      ...host,
      folder: model.folder,
      ggufFile: model.gguf[cell.weights],
      positions: model.positions,
    })
    return { process: cellProcess, info }
  } catch (error) {
    await cellProcess.stop()
    throw error
  }
}
