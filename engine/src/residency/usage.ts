/**
 * @module
 * What one request cost in experts: kept by the residency, reported as `usage.experts`.
 */
import type { Tier } from '../store/store.ts'

/** Counters of one request; mutable on purpose, since a decoding step must not allocate. */
export class ExpertUsage {
  /** Per layer, [layers]: experts that ran, counted for each token. */
  readonly layerActivated: Float64Array
  /** Per layer: acquired experts that were resident, and those that were not; per step, not per token. */
  readonly layerHits: Float64Array
  readonly layerMisses: Float64Array
  /** Per layer: milliseconds that steps waited for shards. */
  readonly layerWaitMs: Float64Array
  /** Experts that could have been selected: tokens x layers x experts. */
  possible = 0
  /** Experts that gates selected, counted for each token, and those of them that ran. */
  chosen = 0
  honoured = 0
  /** Experts that were fetched on a guess, and acquired experts that some guess had brought. */
  prefetched = 0
  prefetchedUsed = 0
  /** Fetches that this request started, and the bytes they asked for, whether they have come yet or not. */
  requests = 0
  bytes = 0
  /** Fetches of this request that succeeded, by the tier that served them. */
  readonly tiers = new Map<Tier, { requests: number; bytes: number }>()

  constructor(layers: number) {
    this.layerActivated = new Float64Array(layers)
    this.layerHits = new Float64Array(layers)
    this.layerMisses = new Float64Array(layers)
    this.layerWaitMs = new Float64Array(layers)
  }

  fetched(tier: Tier, bytes: number): void {
    const line = this.tiers.get(tier) ?? { requests: 0, bytes: 0 }
    line.requests += 1
    line.bytes += bytes
    this.tiers.set(tier, line)
  }

  get activated(): number {
    return sum(this.layerActivated)
  }

  get hits(): number {
    return sum(this.layerHits)
  }

  get misses(): number {
    return sum(this.layerMisses)
  }

  get waitMs(): number {
    return sum(this.layerWaitMs)
  }

  /** Mean share of experts that ran, from 0 to 1. */
  get activeShare(): number {
    return this.possible === 0 ? 0 : this.activated / this.possible
  }

  /** Share of the gates' choices that ran, from 0 to 1; always 1 where the policy is `exact`. */
  get fidelity(): number {
    return this.chosen === 0 ? 1 : this.honoured / this.chosen
  }
}

function sum(values: Float64Array): number {
  let total = 0
  for (let i = 0; i < values.length; i++) total += values[i]
  return total
}
