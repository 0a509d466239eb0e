// node-llama-cpp, installed when the benchmark first asks for it, into a folder of its own: it is no
// dependency of this package.
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { runQuietly, ScriptError } from '../../scripts/progress.mjs'

/** llama.cpp's own version is fixed with it; the state file's layout (llama-state.mjs) too. */
export const kNodeLlamaCppVersion = '3.22.1'

const kPlatformPackages = {
  'linux-x64': '@node-llama-cpp/linux-x64',
  'linux-arm64': '@node-llama-cpp/linux-arm64',
}

/**
 * Installs node-llama-cpp with the binaries of this platform, 85 MB, unless it is there.
 * @param {string} folder where its node_modules stands
 * @returns {Promise<string>} the URL to import
 * Throws ScriptError when there is no package for this platform or npm fails.
 */
export async function installNodeLlamaCpp(folder) {
  const platform = `${process.platform}-${process.arch}`
  const binaries = kPlatformPackages[platform]
  if (!binaries) {
    const known = Object.keys(kPlatformPackages).join(' and ')
    throw new ScriptError(
      `llama.cpp cannot be measured on ${platform}: runs are pinned with taskset, on ${known}`,
    )
  }
  const packages = ['node-llama-cpp', binaries].map((name) => `${name}@${kNodeLlamaCppVersion}`)
  const entry = path.join(folder, 'node_modules', 'node-llama-cpp', 'dist', 'index.js')
  const isThere = existsSync(entry) && existsSync(path.join(folder, 'node_modules', binaries))
  if (!isThere) {
    mkdirSync(folder, { recursive: true })
    writeFileSync(path.join(folder, 'package.json'), '{ "private": true }\n')
    // Without the optional packages of other platforms and of GPUs: 85 MB instead of 725. The
    // binaries need no install script.
    const flags = ['--omit=optional', '--ignore-scripts', '--no-audit', '--no-fund', '--no-save']
    await runQuietly('installing node-llama-cpp', 'npm', ['install', ...flags, ...packages], {
      cwd: folder,
      nextStep: 'see whether npm reaches its registry, and run this command again.',
    })
  }
  return pathToFileURL(entry).href
}
