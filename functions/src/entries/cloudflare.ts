/**
 * @module
 * Cloudflare Workers: the pack comes from the R2 bucket bound as `SHARDS`. The WebAssembly modules are part of the
 * Worker, since an isolate may not compile bytes that it fetched.
 */
import { env, waitUntil } from 'cloudflare:workers'
import { createEngine } from '@sparsedge/engine'
import { wasmBackend } from '@sparsedge/engine/backends/wasm/index'
import { r2Store } from '@sparsedge/engine/store/r2'
import plain from '../../../engine/dist/plain.wasm'
import relaxed from '../../../engine/dist/relaxed.wasm'
import { createApp } from '../app.ts'
import page from '../playground/index.html'
import { appSettings, readSettings } from './settings.ts'

const settings = readSettings(env)
const { MODEL: model, CONTEXT_TOKENS: contextTokens } = settings

export default createApp({
  ...appSettings(settings),
  page,
  models: {
    [model]: () =>
      createEngine({
        store: r2Store(env.SHARDS),
        model,
        backend: wasmBackend({ modules: { plain, relaxed }, ...(contextTokens && { contextTokens }) }),
      }),
  },
  keepAlive: waitUntil,
})
