/**
 * @module
 * A pack in a directory: for Node and Deno on a machine with a disk, and for tests.
 */
import { type FileHandle, open } from 'node:fs/promises'
import { join } from 'node:path'
import { SparsedgeError, throwIfCancelled } from '../errors.ts'
import { checkManifestSize, checkSize, shardMissing, storeFailure, unknownModel } from './fill.ts'
import { manifestKey, type Progress, type ShardStore, shardKey } from './store.ts'

/**
 * Reads `shards/<hash>` and `models/<name>/manifest.json` under a directory. Names that would lead out of it do not
 * exist for it.
 */
export function fsStore(directory: string): ShardStore {
  return {
    async read(hash, into, signal, progress) {
      try {
        await reading(join(directory, shardKey(hash)), shardMissing(hash, 'fs'), async (file, size) => {
          checkSize(size, into, hash, 'fs')
          for (const { bytes } of into) {
            throwIfCancelled(signal)
            await fill(file, bytes, hash, progress)
          }
        })
        return 'fs'
      } catch (cause) {
        throw storeFailure(cause, 'fs', signal, hash)
      }
    },

    async manifest(model, signal) {
      try {
        throwIfCancelled(signal)
        return await reading(
          join(directory, manifestKey(model)),
          unknownModel(model, 'fs'),
          async (file, size) => {
            checkManifestSize(size, 'fs')
            return await file.readFile()
          },
        )
      } catch (cause) {
        throw storeFailure(cause, 'fs', signal)
      }
    },
  }
}

/** Opens a file, uses it and closes it; throws `missing` where there is none. */
async function reading<T>(
  path: string,
  missing: SparsedgeError,
  use: (file: FileHandle, size: number) => Promise<T>,
): Promise<T> {
  let file: FileHandle
  try {
    file = await open(path)
  } catch (cause) {
    throw isMissing(cause) ? missing : cause
  }
  try {
    return await use(file, (await file.stat()).size)
  } finally {
    await file.close()
  }
}

/** Reads on from the file's position until the view is full. */
async function fill(
  file: FileHandle,
  bytes: Uint8Array,
  hash: string,
  progress: Progress | undefined,
): Promise<void> {
  for (let filled = 0; filled < bytes.length; ) {
    const { bytesRead } = await file.read(bytes, filled, bytes.length - filled, null)
    if (bytesRead === 0) {
      const message = `the file of shard ${hash} shrank while it was read; push the pack again`
      throw new SparsedgeError('shard_too_short', message)
    }
    filled += bytesRead
    progress?.()
  }
}

const isMissing = (cause: unknown): boolean =>
  cause instanceof Error && 'code' in cause && (cause.code === 'ENOENT' || cause.code === 'ENOTDIR')
