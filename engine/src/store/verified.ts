/**
 * @module
 * The wrapper that makes a store trustworthy: bytes whose hash is wrong never leave it.
 */
import { SparsedgeError } from '../errors.ts'
import { retried } from '../retry.ts'
import { sha256 } from './sha256.ts'
import type { Destination, Progress, ShardStore, Tier } from './store.ts'

class VerifiedStore implements ShardStore {
  readonly #inner: ShardStore

  readonly #attempts: number

  constructor(inner: ShardStore, attempts: number) {
    this.#inner = inner
    this.#attempts = attempts
  }

  read(hash: string, into: readonly Destination[], signal?: AbortSignal, progress?: Progress): Promise<Tier> {
    return retried(this.#attempts, () => this.#readOnce(hash, into, signal, progress), signal)
  }

  async #readOnce(
    hash: string,
    into: readonly Destination[],
    signal?: AbortSignal,
    progress?: Progress,
  ): Promise<Tier> {
    try {
      const tier = await this.#inner.read(hash, into, signal, progress)
      if (!this.#inner.vouchesFor?.(tier)) await verify(into, tier)
      return tier
    } catch (cause) {
      for (const { bytes } of into) bytes.fill(0)
      throw cause
    }
  }

  manifest(model: string, signal?: AbortSignal): Promise<Uint8Array> {
    return retried(this.#attempts, () => this.#inner.manifest(model, signal), signal)
  }
}

/** @throws SparsedgeError `shard_hash_mismatch`, with the destination's hash as its shard */
export async function verify(into: readonly Destination[], tier: Tier): Promise<void> {
  // One after the other: a runtime may copy what it digests, and whole shards must not pile up.
  for (const { hash, bytes } of into) {
    if (hash === null) continue
    const found = await sha256(bytes)
    if (found === hash) continue
    throw new SparsedgeError(
      'shard_hash_mismatch',
      `the bytes of shard ${hash} from the ${tier} store hash to ${found}; they are damaged, push the pack again with --force`,
      { shard: hash, tier },
    )
  }
}

/**
 * Digests every destination after it was filled, and zero-fills all of them when a read fails in any way. A store that
 * verifies already is returned as it is, so whoever must be able to trust a store simply wraps it.
 *
 * @param attempts how often a read is tried that fails in a way that may pass, wrong bytes included, see {@link retried}
 * @throws SparsedgeError from `read`, besides the inner store's: `shard_hash_mismatch`, with the destination's hash as
 * its shard
 */
export function verified(store: ShardStore, attempts = 1): ShardStore {
  return store instanceof VerifiedStore ? store : new VerifiedStore(store, attempts)
}
