// The entry points, by import and by require: what they share.
import { createRequire } from 'node:module'
import { Device, ERROR_CODES, evaluateLineRetrieval, loadModel, ZipCacheError } from 'zipcache'
import { evaluate, evaluateLineRetrieval as fromEval } from 'zipcache/eval'
import { Device as OpsDevice } from 'zipcache/ops'

const require = createRequire(import.meta.url)
const root = require('zipcache')
const ops = require('zipcache/ops')
const evaluation = require('zipcache/eval')

const error = await Device.open('nowhere').catch((reason) => reason)
const device = await ops.Device.open('cpu', { threads: 1 })
const tensor = device.from(Float32Array.of(3), [1, 1])
ops.linear({ x: tensor, weight: tensor, out: tensor })
const nativeModules = Object.keys(require.cache).filter((file) => file.endsWith('.node'))

console.log(
  JSON.stringify({
    sameErrorClass: ZipCacheError === root.ZipCacheError,
    sameDevice: new Set([Device, OpsDevice, root.Device, ops.Device]).size === 1,
    sameEvaluate: evaluate === evaluation.evaluate && fromEval === evaluateLineRetrieval,
    sameLoadModel: loadModel === root.loadModel,
    sameCodes: ERROR_CODES === root.ERROR_CODES,
    thrownIsInstance: error instanceof ZipCacheError && error instanceof root.ZipCacheError,
    nNativeModules: nativeModules.length,
    value: (await tensor.read())[0],
  }),
)
