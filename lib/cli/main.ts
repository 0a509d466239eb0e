#!/usr/bin/env node
import { run } from './program.js'

void run(process.argv).then((exitCode) => {
  // Not process.exit: what was written to a pipe must still get there.
  process.exitCode = exitCode
})
