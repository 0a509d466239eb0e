// Finds a C++20 compiler, CMake and a build tool; installs them where that is safe, else says the
// exact command.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { runQuietly, ScriptError, say } from './progress.mjs'

const minimumCMake = [3, 20]

// In the order of preference. The versioned names are for systems whose default is older than
// C++20.
const compilerNames = ['c++', 'g++', 'clang++']
for (let version = 16; version >= 10; version--) compilerNames.push(`g++-${version}`)
for (let version = 21; version >= 13; version--) compilerNames.push(`clang++-${version}`)

// Uses the parts of the language and its library that compilers learned last among those we need.
const cxx20Program = `
#include <bit>
#include <concepts>
#include <span>
#include <thread>
template <std::integral T> constexpr T twice(T x) { return x * 2; }
struct Shape { int rows; int columns; };
int main() {
  constexpr Shape shape{.rows = 2, .columns = 3};
  int values[shape.rows * shape.columns] = {};
  std::span<int> view(values);
  std::jthread([&] { view[0] = twice(std::bit_cast<int>(0.0f)); });
  return view[0];
}
`

/** { compiler }, or the { reason } why there is none. With CXX set, nothing else is tried. */
function findCompiler() {
  const scratch = mkdtempSync(path.join(tmpdir(), 'zipcache-cxx-'))
  try {
    const source = path.join(scratch, 'cxx20.cc')
    writeFileSync(source, cxx20Program)
    const reasons = []
    for (const compiler of process.env.CXX ? [process.env.CXX] : compilerNames) {
      const args = ['-std=c++20', '-pthread', source, '-o', path.join(scratch, 'cxx20')]
      const trial = spawnSync(compiler, args, { encoding: 'utf8' })
      if (trial.status === 0) return { compiler }
      if (trial.error?.code !== 'ENOENT') {
        reasons.push(
          `${compiler} cannot compile C++20:\n${trial.error?.message ?? trial.stderr.trim()}`,
        )
      } else if (process.env.CXX) {
        reasons.push(`CXX is "${compiler}", which is not the name of a program`)
      }
    }
    return { reason: reasons.join('\n') || 'no C++ compiler was found' }
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
}

/** Why CMake cannot be used, or undefined. */
function cmakeProblem() {
  const { status, stdout } = spawnSync('cmake', ['--version'], { encoding: 'utf8' })
  if (status !== 0) return 'CMake was not found'
  const [, version, major, minor] = /version ((\d+)\.(\d+)\S*)/.exec(stdout) ?? []
  const isRecent =
    Number(major) > minimumCMake[0] ||
    (Number(major) === minimumCMake[0] && Number(minor) >= minimumCMake[1])
  return isRecent ? undefined : `CMake is ${version}, expected ${minimumCMake.join('.')} or newer`
}

/** Why neither make nor ninja can be used, or undefined. */
function buildToolProblem() {
  const isThere = (name) => spawnSync(name, ['--version']).status === 0
  return isThere('make') || isThere('ninja') ? undefined : 'neither make nor ninja was found'
}

function findToolchain() {
  const { compiler, reason } = findCompiler()
  const problems = [reason, cmakeProblem(), buildToolProblem()].filter(Boolean)
  return { compiler, problems }
}

function isDebian() {
  if (process.platform !== 'linux' || !existsSync('/etc/os-release')) return false
  const ids = /^ID(?:_LIKE)?=.*$/gm
  const lines = readFileSync('/etc/os-release', 'utf8').match(ids) ?? []
  return /\b(debian|ubuntu)\b/.test(lines.join(' ')) && isOnPath('apt-get')
}

function isOnPath(name) {
  return (process.env.PATH ?? '')
    .split(path.delimiter)
    .some((at) => existsSync(path.join(at, name)))
}

/** The command that installs what is needed on this platform. */
function installCommand() {
  if (process.platform === 'win32')
    return 'use WSL (wsl --install), and run this command again inside it'
  if (process.platform === 'darwin') return 'xcode-select --install; brew install cmake'
  const commands = {
    'apt-get': 'apt-get update && SUDO apt-get install -y g++ cmake make',
    dnf: 'dnf install -y gcc-c++ cmake make',
    yum: 'yum install -y gcc-c++ cmake make',
    pacman: 'pacman -S --needed gcc cmake make',
    apk: 'apk add g++ cmake make',
    zypper: 'zypper install -y gcc-c++ cmake make',
    brew: 'brew install gcc cmake make',
  }
  const manager = Object.keys(commands).find(isOnPath)
  if (!manager) return 'install a C++20 compiler (GCC 11 or Clang 14 or newer), CMake and make'
  const sudo = process.getuid?.() === 0 || manager === 'brew' ? '' : 'sudo '
  return sudo + commands[manager].replace('SUDO ', sudo)
}

/**
 * Returns the C++ compiler to build with, a program name or path. On Debian and Ubuntu as root it
 * installs what is missing; elsewhere it throws a ScriptError that says how to.
 */
export async function requireToolchain() {
  let { compiler, problems } = findToolchain()
  // A compiler named by CXX is the user's choice: installing another would not help it.
  const namedCompilerFails = Boolean(process.env.CXX) && !compiler
  if (problems.length > 0 && !namedCompilerFails && isDebian() && process.getuid() === 0) {
    say(`missing: ${problems.join('; ')}`)
    const apt = { env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' } }
    await runQuietly('apt-get update', 'apt-get', ['update'], apt)
    const packages = ['g++', 'cmake', 'make']
    const install = ['install', '-y', '--no-install-recommends', ...packages]
    await runQuietly(`apt-get install ${packages.join(' ')}`, 'apt-get', install, apt)
    ;({ compiler, problems } = findToolchain())
  }
  if (problems.length > 0) {
    const step = namedCompilerFails
      ? 'set CXX to a C++20 compiler (GCC 11, Clang 14 or newer) or unset it. '
      : `run\n\n  ${installCommand()}\n\n`
    const nextStep = `${step}Then run this command again. CXX may name the compiler to use.`
    throw new ScriptError(
      `The native addon cannot be built here:\n${problems.join('\n')}`,
      nextStep,
    )
  }
  return compiler
}
