/**
 * @module
 * The interface between sparse decoding and expert storage: which experts are in a slot of the arena, and how more
 * get there. A backend knows slots; it never knows where bytes come from.
 */
import type { ExpertOptions } from '../request.ts'
import type { ExpertUsage } from './usage.ts'

/** On whose behalf experts are fetched: what it allows, and what it has cost so far. */
export interface Account {
  readonly options: ExpertOptions
  readonly usage: ExpertUsage
  /** Whether the step at hand may wait for experts, rather than make do with those that are resident. */
  readonly mayWait: boolean
}

/** What the gates of a layer chose in a step; mutable on purpose, since a decoding step must not allocate. */
export interface Routing {
  /** Expert indices, ascending; the first `count` entries count. */
  readonly routed: Uint16Array
  /** By how many of the step's tokens each is routed. */
  readonly uses: Uint16Array
  count: number
  /** Tokens of the step. */
  tokens: number
}

/** What an arena holds at a moment. */
export interface ResidencySnapshot {
  readonly layers: number
  readonly experts: number
  /** Bytes of one expert. */
  readonly expertBytes: number
  /** Experts that the arena has room for, and that are in it. */
  readonly capacity: number
  readonly resident: number
  /** [layers, experts]: 1 where the expert is resident, else 0. */
  readonly isResident: Uint8Array
  /** [layers, experts]: the share of tokens, lately, that routed the expert, from 0 to 1. */
  readonly frequency: Float32Array
}

/** How much a warm-up may do; absent: until the arena is full. */
export interface WarmUpLimits {
  readonly maxBytes?: number
  readonly maxFetches?: number
}

export interface WarmUp {
  /** Experts that it made resident. */
  readonly loaded: number
  readonly bytes: number
  readonly requests: number
}

/** What the owner of a backend, rather than a step, may want of its residency. */
export interface ResidencyControl {
  snapshot(): ResidencySnapshot

  /**
   * Fills the free slots with the experts that are likely to be needed, behind everything else that is fetched. Evicts
   * nothing. A second call while one runs waits for the same fetches.
   *
   * @throws SparsedgeError as {@link ShardStore.read} does; `cancelled`
   */
  prewarm(limits?: WarmUpLimits, signal?: AbortSignal): Promise<WarmUp>
}

export interface Residency {
  /** Slot of each expert, [layers, experts], or -1. A slot of a pinned expert holds verified bytes and does not move. */
  readonly slots: Int32Array

  /**
   * Makes experts resident and pins them until {@link Residency.release} is called for the layer. Synchronous (returns undefined) when
   * all of them already are, so that a warm token never leaves the fast path. Identical concurrent fetches share one
   * flight.
   *
   * Where the policy is `resident_first`, experts may still be missing afterwards: all of them at once where the step may
   * not wait, some where a limit of the request was spent. Those that the arena would profit from are then fetched behind
   * the step's back, a few at a time.
   *
   * @throws SparsedgeError as {@link ShardStore.read} does, with model, layer and expert filled in; `expert_budget_spent`;
   * `expert_fetches_spent`; `cancelled`. After a failure nothing stays pinned.
   */
  acquire(layer: number, routing: Routing, account: Account, signal?: AbortSignal): undefined | Promise<void>

  /** Unpins what {@link Residency.acquire} pinned for the layer. */
  release(layer: number): void

  /**
   * Starts fetching what will be needed soon and returns at once. A failure here is silent: `acquire` meets it again.
   * Never evicts a pinned expert and never changes a result.
   */
  prefetch(layer: number, routing: Routing, account: Account): void

  /**
   * A prompt is at a layer: starts fetching what is missing of those behind the next one, whatever it is, since many
   * tokens select nearly all experts. As {@link Residency.prefetch} otherwise.
   */
  anticipate(layer: number, account: Account): void
}
