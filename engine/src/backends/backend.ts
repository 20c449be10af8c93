/**
 * @module
 * The one thing that generate.ts knows about computing: tokens in, logits out.
 */
import type { ModelConfig } from '../model/config.ts'
import type { Manifest } from '../pack/manifest.ts'
import type { ExpertOptions } from '../request.ts'
import type { ResidencyControl } from '../residency/residency.ts'
import type { ExpertUsage } from '../residency/usage.ts'
import type { ShardStore } from '../store/store.ts'

/** [vocab]; valid until the backend's next step of any sequence. */
export type Logits = Float32Array

/** Tokens of a run. */
export const RUN_TOKENS = 16

/** What a backend knows of its last logits, by runs of {@link RUN_TOKENS}. */
export interface Runs {
  /** [vocab / RUN_TOKENS]: the largest of each run; where a logit is NaN, that of its run or the first is. */
  readonly peaks: Float32Array
  /** [vocab / RUN_TOKENS]: what `weigh` writes. */
  readonly masses: Float64Array
  /**
   * Weighs the tokens whose logit is at least `floor`, each by its likelihood relative to one with the logit `top`:
   * masses[run] = the weight of all of them up to the end of the run. Adds in ascending order, with the bits of `expOf`.
   */
  weigh(floor: number, top: number, temperature: number): void
}

/** One conversation's state inside a backend (its KV cache). */
export interface Sequence {
  /** Tokens whose keys and values are held. */
  readonly length: number
  /** Tokens that it can hold; fixed when it was opened. */
  readonly capacity: number
  /** What its steps cost in experts. */
  readonly usage: ExpertUsage
  /** Gives its memory back. Safe to call twice; not while a step of it runs. */
  close(): void
}

export interface Backend {
  readonly name: string
  /** The model's, but for `context`: that is at most what the longest sequence of this backend can hold. */
  readonly config: ModelConfig
  /** Tokens of a prompt that a step had best be given; 128 where it does not say. */
  readonly prefillTokens?: number | undefined
  /** Of the last step. Absent where the backend knows no more of its logits than anybody. */
  readonly runs?: Runs | undefined
  /** Absent where every expert is always in memory. */
  readonly residency?: ResidencyControl | undefined

  /**
   * Reserves the memory of a sequence of up to `capacity` tokens.
   *
   * @param experts how its steps use experts; by default {@link DEFAULT_EXPERTS}
   * @throws SparsedgeError `memory_exhausted` if it can never fit, `queue_full` if it does not fit now,
   * `unsupported_selection` if the pack cannot select that way
   */
  open(capacity: number, experts?: ExpertOptions): Sequence

  /**
   * Appends tokens to the sequence and computes the logits after the last of them. The same tokens give the same bits
   * whether they come in one call or in many. Returns a value where everything routed is resident, a promise where it
   * must wait. One step at a time per backend; the caller serialises.
   *
   * A step that fails or is cancelled leaves the sequence as it was before it.
   *
   * @param tokens [tokens], at least one; ids below `config.vocab`
   * @throws SparsedgeError as {@link Residency.acquire} does; `cancelled`
   */
  step(sequence: Sequence, tokens: Int32Array, signal?: AbortSignal): Logits | Promise<Logits>
}

/** Builds a backend for a pack: reserves its memory, loads the trunk. Throws what the store throws, or `weights_not_finite`,
 * `memory_exhausted`, `arena_too_small`, `backend_unavailable`. */
export type BackendFactory = (
  pack: { readonly manifest: Manifest; readonly store: ShardStore },
  signal?: AbortSignal,
) => Promise<Backend>
