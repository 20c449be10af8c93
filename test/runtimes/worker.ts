/**
 * @module
 * workerd: a Worker that runs the tasks of a POST and answers with the results. Packs come from R2, and the modules are
 * part of the Worker, as in the real one.
 */
import type { R2Bucket } from '@cloudflare/workers-types'
import { r2Store } from '@sparsedge/engine/store/r2'
import plain from '../../engine/dist/plain.wasm'
import relaxed from '../../engine/dist/relaxed.wasm'
import { type ProbeTask, probe } from './probe.ts'

export default {
  async fetch(request: Request, env: { readonly SHARDS: R2Bucket }): Promise<Response> {
    const tasks = (await request.json()) as ProbeTask[]
    return Response.json(await probe(r2Store(env.SHARDS), { plain, relaxed }, tasks))
  },
}
