#!/usr/bin/env node
import { run } from './program.js'

void run(process.argv).then((exitCode) => {
  // Not process.exit: what was written to a pipe must still get there.
  // A failure of stdout may have been told already.
  process.exitCode ||= exitCode
})
