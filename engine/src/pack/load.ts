/**
 * @module
 * Brings the trunk of a pack into memory.
 */
import { SparsedgeError } from '../errors.ts'
import { inLanes, MAX_IN_FLIGHT } from '../store/lanes.ts'
import type { ShardStore } from '../store/store.ts'
import { verified } from '../store/verified.ts'
import { type Manifest, trunkBytes } from './manifest.ts'

/**
 * Reads all trunk shards, verified, into one linear image, in the order a forward pass needs them and a few at a time.
 *
 * @param into [trunkBytes(manifest)]
 * @throws SparsedgeError as {@link ShardStore.read} does, with the model's name; after a failure `into` is undefined
 */
export async function loadTrunk(
  manifest: Manifest,
  store: ShardStore,
  into: Uint8Array<ArrayBuffer>,
  signal?: AbortSignal,
): Promise<void> {
  if (into.length !== trunkBytes(manifest)) {
    throw new RangeError(`the trunk takes ${trunkBytes(manifest)} bytes, not ${into.length}`)
  }
  const trusted = verified(store)
  await inLanes(
    destinations(manifest, into),
    MAX_IN_FLIGHT,
    async (destination, stop) => {
      await trusted.read(destination.hash, [destination], stop)
    },
    signal,
  ).catch((cause: unknown) => {
    throw cause instanceof SparsedgeError ? cause.at({ model: manifest.name }) : cause
  })
}

function* destinations(manifest: Manifest, into: Uint8Array<ArrayBuffer>) {
  let offset = 0
  for (const { hash, bytes } of manifest.trunk.shards) {
    yield { hash, bytes: into.subarray(offset, offset + bytes) }
    offset += bytes
  }
}
