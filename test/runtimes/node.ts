/**
 * @module
 * Node: `node node.js <pack directory> <engine/dist> <tasks as JSON>`, bundled before it runs, since Node 20 knows no
 * TypeScript. Prints the results as JSON.
 */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fsStore } from '@sparsedge/engine/store/fs'
import { compileModules, probe } from './probe.ts'

// Node 20 is here for what its V8 lacks (relaxed SIMD), not for what its library lacks.
Promise.withResolvers ??= <T>() => {
  let resolve: PromiseWithResolvers<T>['resolve'] = () => {}
  let reject: PromiseWithResolvers<T>['reject'] = () => {}
  const promise = new Promise<T>((fulfil, fail) => {
    resolve = fulfil
    reject = fail
  })
  return { promise, resolve, reject }
}

const [directory, dist, tasks] = process.argv.slice(2)
const modules = await compileModules(
  async (name) => new Uint8Array(await readFile(join(dist, `${name}.wasm`))),
)
console.log(JSON.stringify(await probe(fsStore(directory), modules, JSON.parse(tasks))))
