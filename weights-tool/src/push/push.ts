/**
 * @module
 * Brings a pack to where it is served from: shards first, the manifest last and only when all that it names is there. What
 * is there already is not sent again; a push that was interrupted goes on where it stopped.
 */
import { SparsedgeError } from '@sparsedge/engine/errors'
import { inLanes } from '@sparsedge/engine/store/lanes'
import { IMMUTABLE, manifestKey } from '@sparsedge/engine/store/store'
import { manifestBytes } from '../pack.ts'
import type { PackDirectory } from '../pack-directory.ts'
import { expandPack, type PackFile, type StoredObject } from './expand.ts'

/** How an object is to be served; a target that cannot say so to anybody ignores it. */
export interface ObjectHeaders {
  readonly contentType: string
  readonly cacheControl: string
}

const SHARD: ObjectHeaders = {
  contentType: 'application/octet-stream',
  cacheControl: IMMUTABLE,
}
const MANIFEST: ObjectHeaders = { contentType: 'application/json', cacheControl: 'public, max-age=60' }

/** A place that packs are served from. */
export interface PushTarget {
  /** Sizes of the objects below `shards/`, by their key. */
  shards(): Promise<Map<string, number>>
  put(object: StoredObject, headers: ObjectHeaders): Promise<void>
  close(): Promise<void>
}

export interface PushOptions {
  /** Sends also what is there already in the right size: its bytes may be damaged, which no listing tells. */
  readonly force?: boolean
  /** Called as objects are sent or skipped, with their bytes. */
  readonly onBytes?: (bytes: number) => void
  readonly signal?: AbortSignal
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
 * @throws SparsedgeError what reading the pack or writing to the target throws; `shard_missing` where the target does not
 * hold what it was sent; `cancelled`
 */
export async function push(
  { manifest, store }: PackDirectory,
  target: PushTarget,
  { force = false, onBytes, signal }: PushOptions = {},
): Promise<PushResult> {
  const files = expandPack(manifest, store)
  const there = force ? new Map<string, number>() : await target.shards()
  const result = { sent: 0, sentBytes: 0, skipped: 0 }

  /** The objects that are missing, read one file ahead of their sending at most. */
  async function* missing(): AsyncGenerator<StoredObject> {
    for (const file of files) {
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
  await checkArrival(files, target)
  await target.put({ key: manifestKey(manifest.name), bytes: manifestBytes(manifest) }, MANIFEST)
  return result
}

/** From here on a manifest may name all objects of the pack: somebody else may have removed what was there. */
async function checkArrival(files: readonly PackFile[], target: PushTarget): Promise<void> {
  const there = await target.shards()
  const lost = files.flatMap(({ objects }) => objects).filter(({ key, size }) => there.get(key) !== size)
  if (lost.length === 0) return
  const message = `${lost.length} objects are missing from the target or have another size there, such as ${lost[0].key}; the manifest was not written. Push again`
  throw new SparsedgeError('shard_missing', message)
}
