/**
 * @module
 * Which experts have come to the GPU, and how the others get there. Every expert has its place; nothing is ever evicted.
 */
import { SparsedgeError } from '../../errors.ts'
import type { Manifest } from '../../pack/manifest.ts'
import { bundlePays } from '../../residency/policy.ts'
import type { ExpertUsage } from '../../residency/usage.ts'
import { inLanes, MAX_IN_FLIGHT } from '../../store/lanes.ts'
import type { ShardStore } from '../../store/store.ts'
import { verified } from '../../store/verified.ts'
import type { GpuWeights } from './weights.ts'

/** An object in the store: some experts of a layer, end to end, from `first` on. */
interface Parcel {
  readonly layer: number
  readonly hash: string
  readonly first: number
  readonly shards: readonly string[]
}

export class Experts {
  readonly #manifest: Manifest
  readonly #store: ShardStore
  readonly #weights: GpuWeights
  /** 1 where an expert is in its place, [layers, experts]. */
  readonly #resident: Uint8Array
  #missing: number

  constructor(manifest: Manifest, store: ShardStore, weights: GpuWeights) {
    const { layers, experts } = manifest.config
    this.#manifest = manifest
    this.#store = verified(store)
    this.#weights = weights
    this.#resident = new Uint8Array(layers * experts)
    this.#missing = layers * experts
  }

  /** Whether all have come, so that nobody needs to ask for single ones. */
  get complete(): boolean {
    return this.#missing === 0
  }

  /** @param key layer · experts + expert */
  has(key: number): boolean {
    return this.#resident[key] === 1
  }

  /**
   * Brings experts to the GPU: one by one, or a layer's bundle where that is cheaper, which brings the rest along.
   *
   * @param keys of experts that are missing, ascending
   * @throws SparsedgeError as {@link ShardStore.read} does, with model, layer and expert; `cancelled`
   */
  async load(keys: readonly number[], usage: ExpertUsage, signal: AbortSignal | undefined): Promise<void> {
    const started = performance.now()
    const { name, experts } = this.#manifest
    try {
      await inLanes(
        this.#parcels(keys),
        MAX_IN_FLIGHT,
        async ({ layer, hash, first, shards }, stop) => {
          const into = shards.map((shard) => ({ hash: shard, bytes: new Uint8Array(experts.bytes) }))
          const tier = await this.#store.read(hash, into, stop).catch((cause: unknown) => {
            throw located(cause, { layer, hash, first, shards }).at({ model: name })
          })
          usage.fetched(tier, shards.length * experts.bytes)
          for (const [i, { bytes }] of into.entries()) this.#place(layer, first + i, bytes)
        },
        signal,
      )
    } finally {
      usage.waitMs += performance.now() - started
    }
  }

  #place(layer: number, expert: number, shard: Uint8Array<ArrayBuffer>): void {
    const key = layer * this.#manifest.config.experts + expert
    if (this.has(key)) return
    this.#weights.placeExpert(layer, expert, shard)
    this.#resident[key] = 1
    this.#missing -= 1
  }

  #parcels(keys: readonly number[]): Parcel[] {
    const { config, experts } = this.#manifest
    const byLayer = Map.groupBy(keys, (key) => Math.floor(key / config.experts))
    return [...byLayer].flatMap(([layer, wanted]): Parcel[] => {
      const { bundle, shards } = experts.layers[layer]
      if (bundlePays(wanted.length, config.experts, experts.bytes)) {
        return [{ layer, hash: bundle, first: 0, shards }]
      }
      return wanted.map((key) => {
        const first = key % config.experts
        return { layer, hash: shards[first], first, shards: [shards[first]] }
      })
    })
  }
}

/** A failure with the expert that it concerns, as far as that is known. */
function located(cause: unknown, { layer, hash, first, shards }: Parcel): SparsedgeError {
  const error =
    cause instanceof SparsedgeError
      ? cause
      : new SparsedgeError('store_unavailable', `the store failed: ${String(cause)}`, {}, { cause })
  const shard = error.place.shard ?? hash
  const index = shards.indexOf(shard)
  return error.at(index < 0 ? { layer, shard } : { layer, shard, expert: first + index })
}
