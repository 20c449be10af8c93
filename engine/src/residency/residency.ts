/**
 * @module
 * The interface between sparse decoding and expert storage: which experts are in a slot of the arena, and how more
 * get there. A backend knows slots; it never knows where bytes come from.
 */
import type { ExpertUsage } from './usage.ts'

export interface Residency {
  /** Slot of each expert, [layers, experts], or -1. A slot of a pinned expert holds verified bytes and does not move. */
  readonly slots: Int32Array

  /**
   * Makes experts resident and pins them until {@link Residency.release} is called for the layer. Synchronous (returns undefined) when
   * all of them already are, so that a warm token never leaves the fast path. Identical concurrent fetches share one
   * flight.
   *
   * @param routed expert indices, ascending; the first `count` entries count
   * @throws SparsedgeError as {@link ShardStore.read} does, with model, layer and expert filled in; `cancelled`. After a
   * failure nothing stays pinned.
   */
  acquire(
    layer: number,
    routed: Uint16Array,
    count: number,
    usage: ExpertUsage,
    signal?: AbortSignal,
  ): undefined | Promise<void>

  /** Unpins what {@link Residency.acquire} pinned for the layer. */
  release(layer: number): void

  /**
   * Starts fetching what will be needed soon and returns at once. A failure here is silent: `acquire` meets it again.
   * Never evicts a pinned expert and never changes a result.
   */
  prefetch(layer: number, routed: Uint16Array, count: number, usage: ExpertUsage): void
}
