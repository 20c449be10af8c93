/**
 * @module
 * Hashes every object of a pack again, and every expert inside its bundle.
 */
import { SparsedgeError } from '@sparsedge/engine/errors'
import type { Manifest } from '@sparsedge/engine/pack/manifest'
import type { ShardStore } from '@sparsedge/engine/store/store'
import { readBundle, readShard } from './pack-directory.ts'

export interface Verification {
  readonly objects: number
  readonly bytes: number
  /** One per object or expert that is missing or wrong. */
  readonly faults: readonly SparsedgeError[]
}

/**
 * Checks all objects and collects what is wrong with them, so that one run tells everything.
 *
 * @param onObject called after each object
 * @throws whatever is not a fault of the pack
 */
export async function verifyPack(
  manifest: Manifest,
  store: ShardStore,
  onObject?: () => void,
): Promise<Verification> {
  const faults: SparsedgeError[] = []
  let objects = 0
  let bytes = 0
  const check = async (place: SparsedgeError['place'], look: () => Promise<Uint8Array>) => {
    try {
      bytes += (await look()).length
    } catch (error) {
      if (!(error instanceof SparsedgeError)) throw error
      faults.push(error.at({ ...place, model: manifest.name }))
    }
    objects++
    onObject?.()
  }
  for (const ref of [...manifest.trunk.shards, ...textRefs(manifest)]) {
    await check({}, () => readShard(store, ref))
  }
  for (const layer of manifest.experts.layers.keys()) {
    await check({ layer }, async () => (await readBundle(store, manifest, layer)).bytes)
  }
  return { objects, bytes, faults }
}

/** How many objects {@link verifyPack} looks at. */
export function objectCount(manifest: Manifest): number {
  return manifest.trunk.shards.length + textRefs(manifest).length + manifest.experts.layers.length
}

function textRefs({ text }: Manifest) {
  return [text.tokenizer, ...(text.chatTemplate ? [text.chatTemplate] : [])]
}
