// Prints as JSON how many threads and how much memory a device of the CPU takes unasked.
const { Device } = require('zipcache/ops')

Device.open('cpu').then((device) => {
  console.log(JSON.stringify({ threads: device.info.nThreads, memory: device.memory.total }))
})
