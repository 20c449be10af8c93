/**
 * @module
 * From a pack directory to the objects of a bucket. A directory holds no byte twice; a bucket also has every expert as
 * an object of its own, cut from its layer's bundle here.
 */
import { SparsedgeError } from '@sparsedge/engine/errors'
import type { Manifest, ShardRef } from '@sparsedge/engine/pack/manifest'
import { sha256 } from '@sparsedge/engine/store/sha256'
import { type ShardStore, shardKey } from '@sparsedge/engine/store/store'
import { readShard } from '../pack-directory.ts'

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

/** All files of a pack but the manifest, in the order in which a forward pass needs them. */
export function expandPack(manifest: Manifest, store: ShardStore): PackFile[] {
  const { trunk, text, experts } = manifest
  const whole = [...trunk.shards, text.tokenizer, ...(text.chatTemplate ? [text.chatTemplate] : [])]
  return [
    ...whole.map((ref) => wholeFile(store, ref)),
    ...experts.layers.map((layer) => bundleFile(store, layer, experts.bytes)),
  ]
}

function wholeFile(store: ShardStore, ref: ShardRef): PackFile {
  const key = shardKey(ref.hash)
  return {
    objects: [{ key, size: ref.bytes }],
    read: async () => [{ key, bytes: await readShard(store, ref) }],
  }
}

function bundleFile(
  store: ShardStore,
  { bundle, shards }: Manifest['experts']['layers'][number],
  expertBytes: number,
): PackFile {
  const size = shards.length * expertBytes
  return {
    objects: [
      ...shards.map((hash) => ({ key: shardKey(hash), size: expertBytes })),
      { key: shardKey(bundle), size },
    ],
    async read() {
      const bytes = await readShard(store, { hash: bundle, bytes: size })
      const objects: StoredObject[] = []
      for (const [expert, hash] of shards.entries()) {
        const cut = bytes.subarray(expert * expertBytes, (expert + 1) * expertBytes)
        if ((await sha256(cut)) !== hash) {
          const message = `bundle ${bundle} holds other bytes than expert ${expert}; pack the model again`
          throw new SparsedgeError('shard_hash_mismatch', message, { expert, shard: hash })
        }
        objects.push({ key: shardKey(hash), bytes: cut })
      }
      return [...objects, { key: shardKey(bundle), bytes }]
    },
  }
}
