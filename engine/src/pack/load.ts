/**
 * @module
 * Brings the trunk of a pack into memory.
 */
import { SparsedgeError } from '../errors.ts'
import { inLanes, MAX_IN_FLIGHT } from '../store/lanes.ts'
import type { ShardStore } from '../store/store.ts'
import { verified } from '../store/verified.ts'
import { type Manifest, tensorBytes, trunkBytes } from './manifest.ts'

/**
 * Reads all trunk shards, verified, into one linear image, in the order a forward pass needs them and a few at a time.
 *
 * @param into [trunkBytes(manifest)], from a multiple of 4 bytes on
 * @throws SparsedgeError as {@link ShardStore.read} does, with the model's name; `weights_not_finite`. After a failure
 * `into` is undefined
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
  checkFinite(manifest, into)
}

function* destinations(manifest: Manifest, into: Uint8Array<ArrayBuffer>) {
  let offset = 0
  for (const { hash, bytes } of manifest.trunk.shards) {
    yield { hash, bytes: into.subarray(offset, offset + bytes) }
    offset += bytes
  }
}

/**
 * A hash says that the bytes are those of the packer, not that they are numbers. The kernels compute with whatever there
 * is, so a NaN is found here, once, and not in an answer. Tiles are integers: whatever their bytes, they are finite.
 */
function checkFinite({ trunk, name }: Manifest, image: Uint8Array<ArrayBuffer>): void {
  for (const tensor of trunk.tensors) {
    if (tensor.layout !== 'f32') continue
    const floats = new Float32Array(image.buffer, image.byteOffset + tensor.offset, tensorBytes(tensor) / 4)
    for (let i = 0; i < floats.length; i++) {
      if (Number.isFinite(floats[i])) continue
      throw new SparsedgeError(
        'weights_not_finite',
        `number ${i} of tensor ${tensor.name} is ${floats[i]}; the weights are damaged, pack the model again`,
        { model: name },
      )
    }
  }
}
