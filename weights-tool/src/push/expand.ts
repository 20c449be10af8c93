/**
 * @module
 * From a pack directory to the objects of a bucket. A directory holds no byte twice; a bucket also has every expert as
 * an object of its own, cut from its layer's bundle here.
 */
import type { Manifest, ShardRef } from '@sparsedge/engine/pack/manifest'
import { type ShardStore, shardKey } from '@sparsedge/engine/store/store'
import { readBundle, readShard } from '../pack-directory.ts'

export interface StoredObject {
  readonly key: string
  readonly bytes: Uint8Array<ArrayBuffer>
}

/** A file of a pack directory, and the objects of a bucket that are made from it. */
export interface PackFile {
  readonly objects: readonly { readonly key: string; readonly size: number }[]
  /**
   * Reads the file and verifies every object in it.
   *
   * @returns the objects in the same order
   * @throws SparsedgeError as the store does, `shard_hash_mismatch`
   */
  read(): Promise<StoredObject[]>
}

/**
 * All files of a pack but the manifest, in the order in which a forward pass needs them. No object comes twice: where
 * bytes are equal (two experts of zeros, a layer of one expert), the first file that has them brings them.
 *
 * @param store one that verifies
 */
export function expandPack(manifest: Manifest, store: ShardStore): PackFile[] {
  const { trunk, text, experts } = manifest
  const whole = [...trunk.shards, text.tokenizer, ...(text.chatTemplate ? [text.chatTemplate] : [])]
  const files = [
    ...whole.map((ref) => wholeFile(store, ref)),
    ...experts.layers.map((_, layer) => bundleFile(store, manifest, layer)),
  ]
  const seen = new Set<string>()
  return files.map(({ objects, read }) => {
    const isNew = objects.map(({ key, size }) => {
      // With its size: a manifest that gives one name two sizes must not get past the reading.
      const before = seen.size
      return seen.add(`${key} ${size}`).size > before
    })
    return {
      objects: objects.filter((_, i) => isNew[i]),
      read: async () => (await read()).filter((_, i) => isNew[i]),
    }
  })
}

function wholeFile(store: ShardStore, ref: ShardRef): PackFile {
  const key = shardKey(ref.hash)
  return {
    objects: [{ key, size: ref.bytes }],
    read: async () => [{ key, bytes: await readShard(store, ref) }],
  }
}

function bundleFile(store: ShardStore, manifest: Manifest, layer: number): PackFile {
  const { bytes: size, layers } = manifest.experts
  const { bundle, shards } = layers[layer]
  const keys = [...shards, bundle].map(shardKey)
  return {
    objects: keys.map((key, i) => ({ key, size: i < shards.length ? size : size * shards.length })),
    async read() {
      const { experts, bytes } = await readBundle(store, manifest, layer)
      return [...experts, bytes].map((bytes, i) => ({ key: keys[i], bytes }))
    },
  }
}
