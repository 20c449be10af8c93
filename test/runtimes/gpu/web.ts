/**
 * @module
 * Deno (deno.ts) and a page in a browser: packs, kernels and, for the page, onnxruntime come over HTTP.
 */
import { httpStore } from '@sparsedge/engine/store/http'
import { compileModules } from '../probe.ts'
import { type GpuResult, gpuProbe } from './probe.ts'

/** @param address of a server that has a pack directory, the kernels and, where `own` is false, onnxruntime's files */
export async function runGpuProbe(
  address: string,
  models: readonly string[],
  own: boolean,
): Promise<GpuResult> {
  const modules = await compileModules(async (name) => {
    const response = await fetch(`${address}/${name}.wasm`)
    return new Uint8Array(await response.arrayBuffer())
  })
  const kit = { store: httpStore(address), modules }
  return gpuProbe(own ? kit : { ...kit, onnxruntimePath: `${address}/` }, models)
}
