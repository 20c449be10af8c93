/**
 * @module
 * The R2 bucket that `wrangler dev` serves on this machine, kept under `.wrangler/` beside wrangler.toml.
 */
import { dirname, join } from 'node:path'
import type { R2Bucket } from '@cloudflare/workers-types'
import { SparsedgeError } from '@sparsedge/engine/errors'
import { cannot } from '../files.ts'
import type { PushTarget } from './push.ts'

/** The binding in wrangler.toml. */
const BINDING = 'SHARDS'

export interface LocalOptions {
  /** The directory of wrangler.toml. */
  readonly root: string
  /** What `wrangler dev --persist-to` is given; by default wrangler's own choice. */
  readonly state?: string
}

/** The directory in which wrangler keeps the local buckets. */
export function localBuckets({ root, state = join(root, '.wrangler', 'state') }: LocalOptions): string {
  return join(state, 'v3', 'r2')
}

/** @throws SparsedgeError `store_unavailable` if wrangler does not start or has no such bucket */
export async function localTarget(options: LocalOptions): Promise<PushTarget> {
  // No question to the network, no telemetry.
  process.env.CLOUDFLARE_CF_FETCH_ENABLED ??= 'false'
  process.env.WRANGLER_SEND_METRICS ??= 'false'
  // wrangler takes most of a second to load, and only this target needs it.
  const { getPlatformProxy } = await import('wrangler')
  const proxy = await getPlatformProxy<{ [BINDING]?: R2Bucket }>({
    configPath: join(options.root, 'wrangler.toml'),
    persist: { path: dirname(localBuckets(options)) },
    remoteBindings: false,
  }).catch((cause: unknown) => {
    throw new SparsedgeError('store_unavailable', 'wrangler does not open its local bucket', {}, { cause })
  })
  const bucket = proxy.env[BINDING]
  if (!bucket) {
    await proxy.dispose()
    throw new SparsedgeError('store_unavailable', `wrangler.toml has no R2 bucket bound as ${BINDING}`)
  }
  return {
    async shards() {
      const sizes = new Map<string, number>()
      let cursor: string | undefined
      do {
        const page = await bucket
          .list({ prefix: 'shards/', ...(cursor !== undefined && { cursor }) })
          .catch(cannot('list the local bucket'))
        for (const { key, size } of page.objects) sizes.set(key, size)
        cursor = page.truncated ? page.cursor : undefined
      } while (cursor !== undefined)
      return sizes
    },
    async put({ key, bytes }, httpMetadata) {
      await bucket.put(key, bytes, { httpMetadata }).catch(cannot(`put ${key} into the local bucket`))
    },
    close: () => proxy.dispose(),
  }
}
