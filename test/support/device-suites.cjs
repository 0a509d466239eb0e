// How the names of suites begin, below test/, that run on any device: `npm run test:cuda` and
// scripts/gpu-check run these. The others judge the CPU, or need the sources.
module.exports = [
  'contract/',
  'engine/cuda',
  'runtime/device-tensor',
  'runtime/program',
  'runtime/stream',
]
