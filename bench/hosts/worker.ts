/**
 * @module
 * workerd: a Worker that measures what it is asked to. Packs come from R2, and the modules are part of the Worker, as in the
 * real one. Its clock has milliseconds, against tasks of hundreds.
 */
import type { R2Bucket } from '@cloudflare/workers-types'
import { r2Store } from '@sparsedge/engine/store/r2'
import plain from '../../engine/dist/plain.wasm'
import relaxed from '../../engine/dist/relaxed.wasm'
import reader from '../cache/read.wasm'
import { createMeter, type Meter } from './ours.ts'
import type { Task } from './task.ts'

let meter: Meter | undefined

export default {
  async fetch(request: Request, env: { readonly SHARDS: R2Bucket }): Promise<Response> {
    meter ??= createMeter({ store: r2Store(env.SHARDS), modules: { plain, relaxed }, reader })
    if (new URL(request.url).pathname === '/read') return Response.json(meter.read())
    const task: Task = await request.json()
    return Response.json(await meter.generate(task))
  },
}
