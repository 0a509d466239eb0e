const deviceSuites = require('./test/support/device-suites.cjs')

// Asked for devices by name, jest runs what there is to run on them.
const suites = process.env.ZC_TEST_DEVICES ? deviceSuites : ['**/']

// What a test does not ask for by name is the CPU, whose results are the same everywhere; so are its processes'.
process.env.ZIPCACHE_DEVICE ??= 'cpu'

/** @type {import('jest').Config} */
module.exports = {
  testEnvironment: 'node',
  roots: ['<rootDir>/test'],
  testMatch: suites.map((name) => `<rootDir>/test/${name}*.test.ts`),
  // Sources import './name.js', as Node resolves it after compilation; jest runs the .ts beside it.
  moduleNameMapper: { '^(\\.{1,2}/.*)\\.js$': '$1' },
  moduleFileExtensions: ['js', 'ts', 'json', 'node', 'mjs', 'cjs'],
  modulePathIgnorePatterns: ['<rootDir>/dist/', '<rootDir>/build/'],
  transform: {
    '^.+\\.ts$': [
      '@swc/jest',
      {
        jsc: { parser: { syntax: 'typescript' }, target: 'es2022' },
        module: { type: 'commonjs' },
        sourceMaps: 'inline',
      },
    ],
  },
  // Tests run inside a vm context, where looking up a global is slow: 20x for the reference's loops.
  sandboxInjectedGlobals: ['Math', 'Number'],
  testTimeout: 60_000,
  // The addon has its own threads: two test files at a time keep a small machine honest.
  maxWorkers: 2,
}
