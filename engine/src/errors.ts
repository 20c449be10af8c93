/**
 * @module
 * Every failure that the engine can name: one code per cause. An HTTP layer maps codes to statuses; no code ever
 * stands for two causes, and no failure ever turns into a token.
 */

/** What went wrong, machine-readable. Grouped by who can mend it. */
export type ErrorCode =
  // The caller sent something that cannot be served.
  | 'invalid_request'
  | 'prompt_too_long'
  | 'unsupported_selection'
  | 'unknown_model'
  // A checkpoint cannot become a pack: it is broken, or sound but of a kind that the packer does not know.
  | 'checkpoint_malformed'
  | 'checkpoint_unsupported'
  // The pack is not what it claims to be.
  | 'manifest_malformed'
  | 'manifest_version'
  | 'shard_hash_mismatch'
  | 'shard_too_short'
  | 'shard_too_long'
  | 'weights_not_finite'
  | 'logits_not_finite'
  // Storage did not deliver.
  | 'shard_missing'
  | 'store_unavailable'
  // This machine is too small for what was asked of it.
  | 'arena_too_small'
  | 'memory_exhausted'
  | 'queue_full'
  // This machine lacks a feature.
  | 'backend_unavailable'
  // Experts are missing, the request did not allow to go on without them, and what it may spend on them is spent: bytes or
  // milliseconds, which are the caller's to set; fetches, of which the platform has only so many.
  | 'expert_budget_spent'
  | 'expert_fetches_spent'
  // The GPU went away under a running backend: its driver restarted, or it was unplugged.
  | 'device_lost'
  // The client went away or a deadline passed.
  | 'cancelled'

/** Where in a pack a failure happened; every field that is known is filled in. */
export interface ErrorPlace {
  readonly model?: string
  readonly layer?: number
  readonly expert?: number
  readonly shard?: string
  readonly tier?: string
}

/**
 * The one error class of the engine.
 *
 * @example
 * throw new SparsedgeError('shard_missing', 'shard 3fa9… is not in the bucket; push the pack again', { tier: 'r2' })
 */
export class SparsedgeError extends Error {
  override readonly name = 'SparsedgeError'
  readonly code: ErrorCode
  readonly place: ErrorPlace

  constructor(code: ErrorCode, message: string, place: ErrorPlace = {}, options?: ErrorOptions) {
    super(message, options)
    this.code = code
    this.place = place
  }

  /** The same failure, told with more of its place (an outer layer knows the model and expert, an inner one the tier). */
  at(place: ErrorPlace): SparsedgeError {
    return new SparsedgeError(
      this.code,
      this.message,
      { ...place, ...this.place },
      { cause: this.cause ?? this },
    )
  }
}

/** Throws `cancelled` if the signal has fired; call between units of work, never inside a kernel. */
export function throwIfCancelled(signal: AbortSignal | undefined): void {
  if (signal?.aborted)
    throw new SparsedgeError('cancelled', 'the request was cancelled', {}, { cause: signal.reason })
}
