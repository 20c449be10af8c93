/**
 * @module
 * Cloudflare Workers: the pack comes from the static assets bound as `ASSETS`, else from the R2 bucket bound as `SHARDS`
 * through the data centre's cache. The WebAssembly modules are part of the Worker, since an isolate may not compile bytes
 * that it fetched.
 */
import { env, waitUntil } from 'cloudflare:workers'
import { createEngine } from '@sparsedge/engine'
import { wasmBackend } from '@sparsedge/engine/backends/wasm/index'
import { assetsStore } from '@sparsedge/engine/store/assets'
import { cached } from '@sparsedge/engine/store/cached'
import { r2Store } from '@sparsedge/engine/store/r2'
import type { ShardStore } from '@sparsedge/engine/store/store'
import plain from '../../../engine/dist/plain.wasm'
import relaxed from '../../../engine/dist/relaxed.wasm'
import { createApp } from '../app.ts'
import page from '../playground/index.html'
import { appSettings, readSettings, Settings } from './settings.ts'

/** A request has 10,000 subrequests. Behind the cache a fetch takes three of them: to look there, to read, to put it there. */
const MOST_FETCHES = { assets: 9000, cached: 3000 }

const settings = readSettings(Settings, env)
const { MODEL: model, CONTEXT_TOKENS: contextTokens, MEMORY_MIB } = settings
const { limits, ...others } = appSettings(settings)
/** This server's own, under which it caches; no request has told it yet. */
let origin: string | undefined
const store = openStore()

const app = createApp({
  ...others,
  limits: { expertFetches: env.ASSETS ? MOST_FETCHES.assets : MOST_FETCHES.cached, ...limits },
  page,
  models: {
    [model]: () =>
      createEngine({
        store,
        model,
        backend: wasmBackend({
          modules: { plain, relaxed },
          ...(contextTokens && { contextTokens }),
          ...(MEMORY_MIB && { memoryBytes: MEMORY_MIB * 2 ** 20 }),
        }),
      }),
  },
  keepAlive: waitUntil,
})

export default {
  fetch(request: Request): Response | Promise<Response> {
    const url = new URL(request.url)
    // There the Cache API does nothing.
    if (!url.hostname.endsWith('.workers.dev')) origin ??= url.origin
    return app.fetch(request)
  },
}

function openStore(): ShardStore {
  // Assets are served from the edge as it is.
  if (env.ASSETS) return assetsStore(env.ASSETS)
  if (env.SHARDS)
    return cached(caches.default, r2Store(env.SHARDS), { origin: () => origin, keepAlive: waitUntil })
  throw new Error(
    'the Worker has no storage: bind a bucket as SHARDS or assets as ASSETS in its wrangler.toml',
  )
}
