/**
 * @module
 * What has `fetch` and no disk: Deno (deno.ts) and a page in a browser. The pack and the modules come over HTTP.
 */
import { httpStore } from '@sparsedge/engine/store/http'
import { compileModules, type ProbeResult, type ProbeTask, probe } from './probe.ts'

/** @param address of a server (server.ts) that has a pack directory, `/plain.wasm` and `/relaxed.wasm` */
export async function runProbe(address: string, tasks: readonly ProbeTask[]): Promise<ProbeResult[]> {
  const modules = await compileModules(async (name) => {
    const response = await fetch(`${address}/${name}.wasm`)
    return new Uint8Array(await response.arrayBuffer())
  })
  return probe(httpStore(address), modules, tasks)
}
