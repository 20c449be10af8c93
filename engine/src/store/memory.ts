/**
 * @module
 * A store in memory: for tests, and for packs that a program makes itself.
 */
import { throwIfCancelled } from '../errors.ts'
import { checkManifestSize, checkSize, Filler, shardMissing, unknownModel } from './fill.ts'
import { sha256 } from './sha256.ts'
import { type Destination, manifestKey, type ShardStore, shardKey, type Tier } from './store.ts'

export interface MemoryStore extends ShardStore {
  /** The objects by their key, for tests that damage them. */
  readonly objects: Map<string, Uint8Array<ArrayBuffer>>
  /** Keeps the bytes (not a copy of them). @returns their hash */
  putShard(bytes: Uint8Array<ArrayBuffer>): Promise<string>
  putManifest(model: string, bytes: Uint8Array<ArrayBuffer>): void
}

/**
 * @example
 * const store = memoryStore()
 * const hash = await store.putShard(bytes)
 * await store.read(hash, [{ hash, bytes: slot }])
 */
export function memoryStore(): MemoryStore {
  const objects = new Map<string, Uint8Array<ArrayBuffer>>()
  return {
    objects,
    async putShard(bytes) {
      const hash = await sha256(bytes)
      objects.set(shardKey(hash), bytes)
      return hash
    },
    putManifest(model, bytes) {
      objects.set(manifestKey(model), bytes)
    },
    async read(hash: string, into: readonly Destination[], signal?: AbortSignal): Promise<Tier> {
      throwIfCancelled(signal)
      const object = objects.get(shardKey(hash))
      if (!object) throw shardMissing(hash, 'memory')
      checkSize(object.length, into, hash, 'memory')
      const filler = new Filler(into, hash, 'memory')
      filler.take(object)
      filler.finish()
      return 'memory'
    },
    async manifest(model: string, signal?: AbortSignal): Promise<Uint8Array> {
      throwIfCancelled(signal)
      const object = objects.get(manifestKey(model))
      if (!object) throw unknownModel(model, 'memory')
      checkManifestSize(object.length, 'memory')
      return object
    },
  }
}
