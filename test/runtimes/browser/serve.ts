/**
 * @module
 * A page that runs a model itself: `npm run serve:browser <folder>`, where the folder is what `weights-tool
 * push --to` wrote. Whatever a page needs lies side by side under its address: packs, kernels, onnxruntime, the script.
 */
import { readFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { dirname } from 'node:path'
import { bundle, DIST } from '../runners.ts'
import { type StaticServer, serveFolders } from '../server.ts'

export const ONNXRUNTIME = dirname(createRequire(import.meta.url).resolve('onnxruntime-web/webgpu'))

export async function servePage(folder: string): Promise<StaticServer> {
  const page = await readFile(new URL('index.html', import.meta.url), 'utf8')
  const script = await bundle('browser/page.ts', { platform: 'browser' })
  return serveFolders([folder, DIST, ONNXRUNTIME], script, page)
}

if (import.meta.main) {
  const [folder] = process.argv.slice(2)
  if (folder === undefined) {
    console.error('say which folder the packs are in: npm run serve:browser FOLDER')
    process.exit(1)
  }
  console.log((await servePage(folder)).address)
}
