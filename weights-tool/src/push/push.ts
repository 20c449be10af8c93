/**
 * @module
 * Brings a pack to where it is served from: shards first, the manifest last, so that a model appears when all of it is
 * there. What is there already is not sent again; a push that was interrupted goes on where it stopped.
 */
import { inLanes } from '@sparsedge/engine/store/lanes'
import { manifestKey } from '@sparsedge/engine/store/store'
import { manifestBytes } from '../pack.ts'
import type { PackDirectory } from '../pack-directory.ts'
import { expandPack, type StoredObject } from './expand.ts'

/** How an object is to be served; a target that cannot say so to anybody ignores it. */
export interface ObjectHeaders {
  readonly contentType: string
  readonly cacheControl: string
}

const SHARD: ObjectHeaders = {
  contentType: 'application/octet-stream',
  cacheControl: 'public, max-age=31536000, immutable',
}
const MANIFEST: ObjectHeaders = { contentType: 'application/json', cacheControl: 'public, max-age=60' }

/** A place that packs are served from. */
export interface PushTarget {
  /** Sizes of the objects below `shards/`, by their key. */
  shards(): Promise<Map<string, number>>
  put(object: StoredObject, headers: ObjectHeaders): Promise<void>
  close(): Promise<void>
}

export interface PushResult {
  /** Objects and bytes that were sent, and objects that were there already; the manifest not counted. */
  readonly sent: number
  readonly sentBytes: number
  readonly skipped: number
}

/** Objects on their way at once. */
const LANES = 16

/**
 * @param onBytes called as objects are sent or skipped, with their bytes
 * @throws SparsedgeError what reading the pack or writing to the target throws; `cancelled`
 */
export async function push(
  { manifest, store }: PackDirectory,
  target: PushTarget,
  onBytes?: (bytes: number) => void,
  signal?: AbortSignal,
): Promise<PushResult> {
  const there = await target.shards()
  const result = { sent: 0, sentBytes: 0, skipped: 0 }

  /** The objects that are missing, read one file ahead of their sending at most. */
  async function* missing(): AsyncGenerator<StoredObject> {
    for (const file of expandPack(manifest, store)) {
      const lacking = new Set<string>()
      for (const { key, size } of file.objects) {
        if (there.get(key) !== size) lacking.add(key)
        else {
          result.skipped += 1
          onBytes?.(size)
        }
      }
      if (lacking.size > 0) yield* (await file.read()).filter(({ key }) => lacking.has(key))
    }
  }

  await inLanes(
    missing(),
    LANES,
    async (object) => {
      await target.put(object, SHARD)
      result.sent += 1
      result.sentBytes += object.bytes.length
      onBytes?.(object.bytes.length)
    },
    signal,
  )
  await target.put({ key: manifestKey(manifest.name), bytes: manifestBytes(manifest) }, MANIFEST)
  return result
}
