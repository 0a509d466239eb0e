// What the programs beside this one compute: small results to compare, or work without end.
const { linear } = require('zipcache/ops')

/** Enqueues `n` products of matrices; 10000 of them are minutes of work. */
function enqueueWork(device, n, width = 512) {
  const x = device.from(new Float32Array(width * width).fill(1 / width), [width, width])
  const out = device.tensor('f32', [width, width])
  for (let i = 0; i < n; ++i) linear({ x, weight: x, out })
}

/** 2 * 3 + 4 * 5, on the device. */
async function dotProduct(device) {
  const x = device.from(Float32Array.of(2, 4), [1, 2])
  const weight = device.from(Float32Array.of(3, 5), [1, 2])
  const out = device.tensor('f32', [1, 1])
  linear({ x, weight, out })
  return (await out.read())[0]
}

module.exports = { enqueueWork, dotProduct }
