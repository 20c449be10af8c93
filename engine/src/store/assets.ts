/**
 * @module
 * A pack among a Worker's static assets, read through their binding: no bucket, and reads that cost nothing.
 */
import { type HttpFetch, httpStore } from './http.ts'
import type { ShardStore } from './store.ts'

/** @param binding of the assets directory; reads must happen within a request, as all of a Worker's I/O */
export function assetsStore(binding: { fetch: HttpFetch }): ShardStore {
  // The binding looks at the path alone.
  return httpStore('https://assets.invalid', {
    tier: 'assets',
    fetch: (url, init) => binding.fetch(url, init),
  })
}
