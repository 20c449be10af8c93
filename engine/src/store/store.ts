/**
 * @module
 * Where a pack's objects come from. Stores compose: `verified(cached(cache, r2))`.
 */

/** Which place served an object; names the line of the accounting. */
export type Tier = 'memory' | 'fs' | 'http' | 'cache' | 'assets' | 'r2'

/** A run of bytes to fill, and the hash that it must have when it is full. */
export interface Destination {
  /** SHA-256, lower-case hex. */
  readonly hash: string
  readonly bytes: Uint8Array
}

/**
 * Read access to packs: content-addressed shards and one mutable manifest per model.
 *
 * A shard is read whole, never by range (an edge cache refuses a 206). The destinations take its bytes in order and
 * without gaps: one destination for a shard of its own, one per expert for a layer's bundle, so that a bundle lands in
 * scattered arena slots without a copy of it ever standing on the JS heap.
 */
export interface ShardStore {
  /**
   * Fills the destinations exactly, or fails. After a failure their bytes are undefined.
   *
   * @returns the tier that served the bytes
   * @throws SparsedgeError `shard_missing`, `shard_too_short`, `shard_too_long`, `store_unavailable`, `cancelled`;
   * from the verifying wrapper also `shard_hash_mismatch`
   */
  read(hash: string, into: readonly Destination[], signal?: AbortSignal): Promise<Tier>

  /**
   * The bytes of `models/<model>/manifest.json`, not yet parsed.
   *
   * @throws SparsedgeError `unknown_model`, `store_unavailable`, `cancelled`
   */
  manifest(model: string, signal?: AbortSignal): Promise<Uint8Array>
}

export const shardKey = (hash: string): string => `shards/${hash}`
export const manifestKey = (model: string): string => `models/${model}/manifest.json`
