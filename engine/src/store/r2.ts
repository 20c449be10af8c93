/**
 * @module
 * A pack in an R2 bucket, read through a Worker's binding.
 */
import type { R2Bucket, R2ObjectBody } from '@cloudflare/workers-types'
import { abortable } from '../abortable.ts'
import type { SparsedgeError } from '../errors.ts'
import { shardMissing, storeFailure, unknownModel } from './fill.ts'
import { gather, scatter } from './scatter.ts'
import { manifestKey, type ShardStore, shardKey } from './store.ts'

/** @param bucket the binding; reads must happen within a request, as all of a Worker's I/O */
export function r2Store(bucket: Pick<R2Bucket, 'get'>): ShardStore {
  const get = async (key: string, missing: SparsedgeError, signal: AbortSignal | undefined) => {
    // The binding takes no signal: an object that comes after the request has gone is let go unread.
    const object = await abortable<R2ObjectBody | null>(bucket.get(key), signal, (late) =>
      late?.body.cancel(),
    )
    if (object === null) throw missing
    return object
  }

  return {
    async read(hash, into, signal, progress) {
      try {
        const { body, size } = await get(shardKey(hash), shardMissing(hash, 'r2'), signal)
        await scatter(body, size, into, hash, 'r2', signal, progress)
        return 'r2'
      } catch (cause) {
        throw storeFailure(cause, 'r2', signal, hash)
      }
    },

    async manifest(model, signal) {
      try {
        const { body } = await get(manifestKey(model), unknownModel(model, 'r2'), signal)
        return await gather(body, 'r2', signal)
      } catch (cause) {
        throw storeFailure(cause, 'r2', signal)
      }
    },
  }
}
