/**
 * @module
 * Where a pack's objects come from. Stores compose: `verified(cached(cache, r2))`.
 */
import { SparsedgeError } from '../errors.ts'

/** Which place served an object; names the line of the accounting. */
export type Tier = 'memory' | 'fs' | 'http' | 'cache' | 'assets' | 'r2'

/** A run of bytes to fill, and the hash that it must have when it is full. */
export interface Destination {
  /** SHA-256, lower-case hex; null for a run that nobody wants, which is only read past: such runs may share memory. */
  readonly hash: string | null
  readonly bytes: Uint8Array<ArrayBuffer>
}

/** Told that a read goes on; never throws. */
export type Progress = () => void

/**
 * Read access to packs: content-addressed shards and one mutable manifest per model.
 *
 * A shard is read whole, never by range (an edge cache refuses a 206). The destinations take its bytes in order and
 * without gaps: one destination for a shard of its own, one per expert for a layer's bundle, so that a bundle lands in
 * scattered arena slots without a copy of it ever standing on the JS heap.
 */
export interface ShardStore {
  /**
   * Fills the destinations exactly, or fails. After a failure their bytes are undefined. Once the promise has settled,
   * either way, nothing writes to them any more: the caller may give the memory to another read.
   *
   * Once the signal has fired it settles as soon as it can keep that promise. A store that cannot call a read off (a disk
   * cannot) settles when the read has ended, however late: until then the memory is not the caller's.
   *
   * @param progress is called whenever the answer has begun or bytes have come: a read that is silent for long is taken
   * for stalled, and a store that never calls it must be done by then
   * @returns the tier that served the bytes
   * @throws SparsedgeError `shard_missing`, `shard_too_short`, `shard_too_long`, `store_unavailable`, `cancelled`;
   * from the verifying wrapper also `shard_hash_mismatch`
   */
  read(hash: string, into: readonly Destination[], signal?: AbortSignal, progress?: Progress): Promise<Tier>

  /**
   * The bytes of `models/<model>/manifest.json`, not yet parsed.
   *
   * @throws SparsedgeError `unknown_model`, `manifest_malformed` if it is too large, `store_unavailable`, `cancelled`
   */
  manifest(model: string, signal?: AbortSignal): Promise<Uint8Array>

  /** Whether what comes from a tier has been held against its hashes already, so that nobody need digest it again. */
  vouchesFor?(tier: Tier): boolean
}

/** Larger than any manifest is: some 100,000 experts. */
export const MAX_MANIFEST_BYTES = 8 << 20
/** How long a shard may be kept by whoever caches it: a year, as its key never means anything else. */
export const IMMUTABLE = 'public, max-age=31536000, immutable'
export const HASH = /^[0-9a-f]{64}$/
export const MODEL_NAME = /^[a-z0-9][a-z0-9._-]{0,63}$/

/** Where a shard lies in a bucket, a directory or under a URL. @throws SparsedgeError `shard_missing` for no hash */
export function shardKey(hash: string): string {
  if (HASH.test(hash)) return `shards/${hash}`
  throw new SparsedgeError('shard_missing', `"${hash}" cannot name a shard; it must be a SHA-256 in hex`)
}

/** Where a manifest lies. @throws SparsedgeError `unknown_model` for what cannot be a name (it may be a client's word) */
export function manifestKey(model: string): string {
  if (MODEL_NAME.test(model)) return `models/${model}/manifest.json`
  throw new SparsedgeError('unknown_model', `"${model}" cannot name a model`)
}
