// `npm run demo`: sets up what is missing, then runs `zipcache demo` with the arguments given. npm
// itself prints two lines to stdout; `npm run -s demo -- --json` leaves nothing there but the JSON.
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { reportFailure } from './progress.mjs'
import { root, setup } from './setup.mjs'

try {
  await setup()
  const main = path.join(root, 'dist', 'cli', 'main.js')
  const demo = spawnSync(process.execPath, [main, 'demo', ...process.argv.slice(2)], {
    stdio: 'inherit',
  })
  process.exitCode = demo.status ?? 1
} catch (error) {
  reportFailure(error)
  process.exitCode = 1
}
