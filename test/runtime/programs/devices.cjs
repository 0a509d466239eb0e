// Prints as JSON which devices there are, and what opening the one named says.
//   node devices.cjs cuda
const { Device, siluGate } = require('../../../dist/ops/index.js')

async function compute(name) {
  const device = await Device.open(name)
  const [x, out] = [device.from(Float32Array.of(0, 1), [1, 2]), device.tensor('f32', [1, 2])]
  siluGate({ gate: x, up: x, out })
  const values = await out.read()
  const { name: opened } = device.info
  await device.dispose()
  return { opened, zero: values[0] }
}

async function main() {
  const devices = await Device.list()
  const opening = await compute(process.argv[2]).catch(({ code, message }) => ({ code, message }))
  console.log(JSON.stringify({ devices, opening }))
}
main()
