// Opens a device and prints how that failed.
const { Device } = require('zipcache/ops')

Device.open('cpu').then(
  () => console.log(JSON.stringify('opened')),
  ({ name, code, message, cause }) =>
    console.log(JSON.stringify({ name, code, message, hasCause: cause !== undefined })),
)
