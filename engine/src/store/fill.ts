/**
 * @module
 * What all stores share: filling destinations with exactly the bytes of an object, and naming what went wrong.
 */
import { SparsedgeError } from '../errors.ts'
import { type Destination, MAX_MANIFEST_BYTES, type Tier } from './store.ts'

/** Bytes that the destinations take together. */
export function wantedBytes(into: readonly Destination[]): number {
  let sum = 0
  for (const { bytes } of into) sum += bytes.length
  return sum
}

/**
 * Compares an object's size, where the store states it up front, with the bytes wanted.
 *
 * @throws SparsedgeError `shard_too_short`, `shard_too_long`
 */
export function checkSize(size: number, into: readonly Destination[], shard: string, tier: Tier): void {
  const wanted = wantedBytes(into)
  if (size === wanted) return
  throw new SparsedgeError(
    size < wanted ? 'shard_too_short' : 'shard_too_long',
    `shard ${shard} has ${size} bytes in the ${tier} store, the manifest says ${wanted}; push the pack again`,
    { shard, tier },
  )
}

/** @throws SparsedgeError `manifest_malformed` */
export function checkManifestSize(size: number, tier: Tier): void {
  if (size <= MAX_MANIFEST_BYTES) return
  const message = `the manifest has more than ${MAX_MANIFEST_BYTES} bytes; it is not one of ours`
  throw new SparsedgeError('manifest_malformed', message, { tier })
}

/** Copies an object's bytes, chunk by chunk as they come, into the destinations, in order and without gaps. */
export class Filler {
  readonly #into: readonly Destination[]
  readonly #shard: string
  readonly #tier: Tier
  /** The destination being filled, and how much of it is. */
  #index = 0
  #filled = 0

  constructor(into: readonly Destination[], shard: string, tier: Tier) {
    this.#into = into
    this.#shard = shard
    this.#tier = tier
  }

  /** @throws SparsedgeError `shard_too_long` if there are more bytes than wanted; none of the surplus is written. */
  take(chunk: Uint8Array): void {
    let from = 0
    while (from < chunk.length) {
      const target = this.#into[this.#index]?.bytes
      if (target === undefined) throw this.#wrongSize('shard_too_long', 'more')
      const count = Math.min(chunk.length - from, target.length - this.#filled)
      target.set(chunk.subarray(from, from + count), this.#filled)
      from += count
      this.#filled += count
      if (this.#filled === target.length) {
        this.#index += 1
        this.#filled = 0
      }
    }
  }

  /** To be called when the object has ended. @throws SparsedgeError `shard_too_short` if bytes are missing. */
  finish(): void {
    if (this.#index < this.#into.length) throw this.#wrongSize('shard_too_short', 'fewer')
  }

  #wrongSize(code: 'shard_too_short' | 'shard_too_long', word: string): SparsedgeError {
    const wanted = wantedBytes(this.#into)
    const message = `the ${this.#tier} store sent ${word} bytes of shard ${this.#shard} than the ${wanted} of the manifest`
    return new SparsedgeError(code, message, { shard: this.#shard, tier: this.#tier })
  }
}

/** A failure of a store in the engine's words: `cancelled` if the caller asked for it, else `store_unavailable`. */
export function storeFailure(
  cause: unknown,
  tier: Tier,
  signal: AbortSignal | undefined,
  shard?: string,
): SparsedgeError {
  const place = shard === undefined ? { tier } : { shard, tier }
  if (signal?.aborted) return new SparsedgeError('cancelled', 'the request was cancelled', place, { cause })
  if (cause instanceof SparsedgeError) return cause.at(place)
  return new SparsedgeError('store_unavailable', `the ${tier} store failed: ${reasons(cause)}`, place, {
    cause,
  })
}

/** All of it: Node's own words for whatever kept `fetch` from an answer are "fetch failed". */
function reasons(cause: unknown): string {
  if (!(cause instanceof Error)) return String(cause)
  return cause.cause === undefined ? cause.message : `${cause.message}: ${reasons(cause.cause)}`
}

export function shardMissing(shard: string, tier: Tier): SparsedgeError {
  const message = `shard ${shard} is not in the ${tier} store; push the pack again`
  return new SparsedgeError('shard_missing', message, { shard, tier })
}

export function unknownModel(model: string, tier: Tier): SparsedgeError {
  const message = `there is no model "${model}" in the ${tier} store; push its pack there (\`weights-tool push\`), or check its name`
  return new SparsedgeError('unknown_model', message, { model, tier })
}
