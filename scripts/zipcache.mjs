// `npm run demo` and `npm run bench`: sets up what is missing, then runs `zipcache` with the
// arguments given. npm itself prints two lines to stdout; `npm run -s demo -- --json` leaves nothing
// there but the JSON.
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { reportFailure } from './progress.mjs'
import { root, setup } from './setup.mjs'

try {
  await setup()
  const main = path.join(root, 'dist', 'cli', 'main.js')
  const zipcache = spawnSync(process.execPath, [main, ...process.argv.slice(2)], {
    stdio: 'inherit',
  })
  process.exitCode = zipcache.status ?? 1
} catch (error) {
  reportFailure(error)
  process.exitCode = 1
}
