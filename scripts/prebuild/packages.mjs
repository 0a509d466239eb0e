// The packages that are published: their package.json, and the files in them.
import path from 'node:path'

const MB = 1_000_000
const platform = `${process.platform}-${process.arch}`

/** Of the addon: how Node finds its start, and which Node-API it asks for. */
const addonExports = ['napi_register_module_v1', 'node_api_module_get_api_version_v1']

/** What the source build of an installed package needs beside a compiler and CMake. */
const buildTools = ['cmake-js', 'node-addon-api', 'node-api-headers']

/**
 * Every package as { manifest, files, binary?, needsCuda? }. In `from`, `$zipcache` and
 * `$zipcache-cuda` are where these targets were built; else paths begin at the repository.
 * @param own package.json of the repository
 */
export function packages(own) {
  const shared = {
    version: own.version,
    license: own.license,
    author: own.author,
    engines: own.engines,
  }
  const addon = `@zipcache/${platform}`
  const cuda = `@zipcache/${platform}-cuda`
  const model = '@zipcache/model-line-retrieval'
  const license = { from: 'LICENSE', to: 'LICENSE' }
  const selected = {
    os: [process.platform],
    cpu: [process.arch],
    ...(process.platform === 'linux' ? { libc: ['glibc'] } : {}),
    // Yarn: a shared library must lie in a folder.
    preferUnplugged: true,
  }
  const binaryPackage = (name, description, file) => ({
    name,
    ...shared,
    description,
    ...selected,
    main: `./${file}`,
    exports: { '.': `./${file}`, './package.json': './package.json' },
  })

  const { private: _, scripts: __, devDependencies, ...published } = own
  const buildDependencies = Object.fromEntries(
    buildTools.map((name) => [name, devDependencies[name]]),
  )
  return [
    {
      manifest: {
        ...published,
        optionalDependencies: {
          [addon]: own.version,
          [cuda]: own.version,
          [model]: own.version,
        },
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
    {
      manifest: binaryPackage(
        addon,
        `The native addon of zipcache for ${platform}`,
        'zipcache.node',
      ),
      files: [
        { from: '$zipcache/zipcache.node', to: 'zipcache.node' },
        { from: 'scripts/prebuild/binaries.md', to: 'README.md' },
        license,
      ],
      binary: { file: 'zipcache.node', budgetBytes: 5 * MB, exports: addonExports },
    },
    {
      manifest: binaryPackage(
        cuda,
        `The CUDA backend of zipcache for ${platform}`,
        'zipcache-cuda.so',
      ),
      needsCuda: true,
      files: [
        { from: '$zipcache-cuda/zipcache-cuda.so', to: 'zipcache-cuda.so' },
        { from: 'scripts/prebuild/binaries.md', to: 'README.md' },
        { from: 'scripts/prebuild/cuda-notice.md', to: 'NOTICE.md' },
        license,
      ],
      binary: { file: 'zipcache-cuda.so', budgetBytes: 60 * MB, exports: ['zipcache_plugin'] },
    },
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
