/**
 * @module
 * A pack behind a URL: any static file server, CDN or public bucket.
 */
import { SparsedgeError } from '../errors.ts'
import { shardMissing, storeFailure, unknownModel } from './fill.ts'
import { type ByteStream, gather, scatter } from './scatter.ts'
import { manifestKey, type ShardStore, shardKey, type Tier } from './store.ts'

/** What is used of `fetch`; the runtimes' own types differ in the rest. */
export type HttpFetch = (url: string, init: { signal: AbortSignal | null }) => Promise<HttpResponse>

interface HttpResponse {
  readonly status: number
  readonly headers: { get(name: string): string | null; has(name: string): boolean }
  readonly body: (ByteStream & { cancel(): Promise<void> }) | null
}

/**
 * Fetches whole objects from below a base URL.
 *
 * @param baseUrl what stands before `shards/<hash>` and `models/<name>/manifest.json`; its query goes along
 * @param options.tier under which its reads are counted
 * @throws SparsedgeError `store_unavailable` if it is not a URL
 */
export function httpStore(
  baseUrl: string,
  options: { readonly fetch?: HttpFetch; readonly tier?: Tier } = {},
): ShardStore {
  // Called as a plain function: workerd refuses a fetch that is some object's method.
  const { fetch: get = fetch, tier = 'http' } = options
  const base = URL.parse(baseUrl)
  if (!base) throw new SparsedgeError('store_unavailable', `"${baseUrl}" is not a URL`, { tier })

  /** The body of an object; throws `missing` for a 404. */
  const request = async (key: string, missing: SparsedgeError, signal: AbortSignal | undefined) => {
    const url = new URL(base)
    url.pathname = `${url.pathname.replace(/\/$/, '')}/${key}`
    const response = await get(url.href, { signal: signal ?? null })
    if (response.status === 200 && response.body) return { body: response.body, size: statedSize(response) }
    await response.body?.cancel()
    if (response.status === 404) throw missing
    throw new SparsedgeError('store_unavailable', `${url.origin} answered ${response.status} for ${key}`)
  }

  return {
    async read(hash, into, signal, progress) {
      try {
        const { body, size } = await request(shardKey(hash), shardMissing(hash, tier), signal)
        await scatter(body, size, into, hash, tier, signal, progress)
        return tier
      } catch (cause) {
        throw storeFailure(cause, tier, signal, hash)
      }
    },

    async manifest(model, signal) {
      try {
        const { body } = await request(manifestKey(model), unknownModel(model, tier), signal)
        return await gather(body, tier, signal)
      } catch (cause) {
        throw storeFailure(cause, tier, signal)
      }
    },
  }
}

/** The object's size, unless the header counts bytes that were compressed for the way. */
function statedSize({ headers }: HttpResponse): number | undefined {
  const length = headers.get('content-length')
  return length === null || headers.has('content-encoding') ? undefined : Number(length)
}
