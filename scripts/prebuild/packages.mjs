// The packages that are published: their package.json, and the files in them.
import path from 'node:path'

const MB = 1_000_000

/**
 * What binaries are for. Of those that can be compiled elsewhere: `compiler`, the one that does,
 * `debian`, the package that has it, and `processor`, as CMake calls it.
 */
export const platforms = [
  { name: 'linux-x64', os: 'linux', cpu: 'x64', hasCuda: true },
  {
    name: 'linux-arm64',
    os: 'linux',
    cpu: 'arm64',
    hasCuda: false,
    processor: 'aarch64',
    compiler: 'aarch64-linux-gnu-g++',
    debian: 'g++-aarch64-linux-gnu',
  },
]

/** Of the addon: how Node finds its start, and which Node-API it asks for. */
const addonExports = ['napi_register_module_v1', 'node_api_module_get_api_version_v1']

/** What the source build of an installed package needs beside a compiler and CMake. */
const buildTools = ['cmake-js', 'node-addon-api', 'node-api-headers']

/**
 * Every package as { manifest, files, binary?, platform?, needsCuda? }. In `from`, `$zipcache` and
 * `$zipcache-cuda` are where the platform's targets were built; else paths begin at the repository.
 * @param own package.json of the repository
 */
export function packages(own) {
  const shared = {
    version: own.version,
    license: own.license,
    author: own.author,
    engines: own.engines,
  }
  const model = '@zipcache/model-line-retrieval'
  const license = { from: 'LICENSE', to: 'LICENSE' }
  const notes = { from: 'scripts/prebuild/binaries.md', to: 'README.md' }
  const binaryPackage = (platform, name, description, file) => ({
    name,
    ...shared,
    description: `${description} for ${platform.name}`,
    os: [platform.os],
    cpu: [platform.cpu],
    ...(platform.os === 'linux' ? { libc: ['glibc'] } : {}),
    // Yarn: a shared library must lie in a folder.
    preferUnplugged: true,
    main: `./${file}`,
    exports: { '.': `./${file}`, './package.json': './package.json' },
  })
  const addonPackage = (platform) => ({
    platform,
    manifest: binaryPackage(
      platform,
      `@zipcache/${platform.name}`,
      'The native addon of zipcache',
      'zipcache.node',
    ),
    files: [{ from: '$zipcache/zipcache.node', to: 'zipcache.node' }, notes, license],
    binary: { file: 'zipcache.node', budgetBytes: 5 * MB, exports: addonExports },
  })
  const cudaPackage = (platform) => ({
    platform,
    needsCuda: true,
    manifest: binaryPackage(
      platform,
      `@zipcache/${platform.name}-cuda`,
      'The CUDA backend of zipcache',
      'zipcache-cuda.so',
    ),
    files: [
      { from: '$zipcache-cuda/zipcache-cuda.so', to: 'zipcache-cuda.so' },
      notes,
      { from: 'scripts/prebuild/cuda-notice.md', to: 'NOTICE.md' },
      license,
    ],
    binary: { file: 'zipcache-cuda.so', budgetBytes: 60 * MB, exports: ['zipcache_plugin'] },
  })
  const binaries = platforms.flatMap((platform) =>
    platform.hasCuda ? [addonPackage(platform), cudaPackage(platform)] : [addonPackage(platform)],
  )

  const { private: _, scripts: __, devDependencies, ...published } = own
  const buildDependencies = Object.fromEntries(
    buildTools.map((name) => [name, devDependencies[name]]),
  )
  return [
    {
      manifest: {
        ...published,
        optionalDependencies: Object.fromEntries(
          [...binaries.map(({ manifest }) => manifest.name), model].map((name) => [
            name,
            own.version,
          ]),
        ),
        // For `zipcache build`, which installs them when it is called.
        buildDependencies,
      },
      files: [
        {
          from: 'dist',
          to: 'dist',
          filter: (file) => path.basename(file) !== '.stamp',
        },
        // The emulator and its tests are for the repository.
        { from: 'csrc', to: 'csrc', filter: (file) => !/csrc[/\\]emu([/\\]|$)/.test(file) },
        ...['CMakeLists.txt', 'binding.gyp', 'README.md'].map((name) => ({ from: name, to: name })),
        license,
      ],
    },
    ...binaries,
    {
      manifest: {
        name: model,
        ...shared,
        description: 'A model of 1.9M parameters that finds a number in thousands of tokens',
        exports: { './package.json': './package.json' },
      },
      files: [
        { from: 'models/line-retrieval', to: '.' },
        { from: 'models/README.md', to: 'README.md' },
        license,
      ],
    },
  ]
}
