// An npm registry on this machine for the packages in dist-packages/; for any other it names the
// public one. So what is tested is what `npm install zipcache` does, not what a file's path does.
import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import path from 'node:path'
import { gunzipSync } from 'node:zlib'

/** package.json of a tarball: npm puts it under package/. */
function manifestOf(tarball) {
  const tar = gunzipSync(tarball)
  const text = (from, length) => tar.toString('utf8', from, from + length).replace(/\0.*$/s, '')
  for (let at = 0; at + 512 <= tar.length; ) {
    const size = Number.parseInt(text(at + 124, 12), 8) || 0
    if (text(at, 100) === 'package/package.json') return JSON.parse(text(at + 512, size))
    at += 512 + Math.ceil(size / 512) * 512
  }
  throw new Error('no package.json in a tarball')
}

/** Starts it; resolves to { url, manifests, close }. */
export async function startRegistry(folder, upstream) {
  const packages = new Map()
  for (const file of readdirSync(folder).filter((name) => name.endsWith('.tgz'))) {
    const tarball = readFileSync(path.join(folder, file))
    packages.set(manifestOf(tarball).name, { file, tarball, manifest: manifestOf(tarball) })
  }
  const server = createServer((request, response) => {
    const name = decodeURIComponent(new URL(request.url, 'http://registry').pathname.slice(1))
    const bytes = [...packages.values()].find(({ file }) => name === `-/${file}`)
    if (bytes) {
      response.end(bytes.tarball)
      return
    }
    const own = packages.get(name)
    if (!own) {
      const isOurs = name.startsWith('@zipcache/')
      response.writeHead(isOurs ? 404 : 302, { location: new URL(request.url, upstream).href })
      response.end(isOurs ? '{}' : '')
      return
    }
    const { manifest, file, tarball } = own
    const integrity = `sha512-${createHash('sha512').update(tarball).digest('base64')}`
    const dist = { tarball: `http://${request.headers.host}/-/${file}`, integrity }
    const { version } = manifest
    const document = { name, 'dist-tags': { latest: version }, versions: {} }
    document.versions[version] = { ...manifest, dist }
    response.setHeader('content-type', 'application/json')
    response.end(JSON.stringify(document))
  })
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  return {
    url: `http://127.0.0.1:${server.address().port}/`,
    manifests: [...packages.values()].map(({ manifest }) => manifest),
    close: () => server.close(),
  }
}
