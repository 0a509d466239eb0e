import { existsSync } from 'node:fs'
import path from 'node:path'
import { ZipCacheError } from '../errors.js'

const kPackage = '@zipcache/model-line-retrieval'

/**
 * The folder of the small model that examples and `zipcache demo` use: of the package
 * `@zipcache/model-line-retrieval`, which npm installs with this one, or of the repository. It knows
 * no language, only to find a number in thousands of tokens.
 *
 * Throws `ERR_ZC_CHECKPOINT` when it is not installed.
 */
export function exampleModel(): string {
  // Both lib/model (tests) and dist/model are two folders below the package.
  const folder = path.resolve(__dirname, '..', '..', 'models', 'line-retrieval')
  if (existsSync(folder)) return folder
  try {
    return path.dirname(require.resolve('@zipcache/model-line-retrieval/package.json'))
  } catch (cause) {
    throw new ZipCacheError(
      'ERR_ZC_CHECKPOINT',
      `${kPackage} is not installed: \`npm install ${kPackage}\``,
      { cause },
    )
  }
}
