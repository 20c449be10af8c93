/**
 * @module
 * What one request cost in experts: kept by the residency, reported as `usage.experts`.
 */
import type { Tier } from '../store/store.ts'

/** Counters of one request; mutable on purpose, since a decoding step must not allocate. */
export class ExpertUsage {
  /** Experts that gates selected, summed over layers and tokens. */
  activated = 0
  /** Experts that could have been selected: tokens x layers x experts. */
  possible = 0
  /** Acquired experts that were resident, and those that had to be fetched; per layer and step, not per token. */
  hits = 0
  misses = 0
  /** Milliseconds that steps waited for shards. */
  waitMs = 0
  /** Fetches that this request started, by the tier that served them. */
  readonly tiers = new Map<Tier, { requests: number; bytes: number }>()

  fetched(tier: Tier, bytes: number): void {
    const line = this.tiers.get(tier) ?? { requests: 0, bytes: 0 }
    line.requests += 1
    line.bytes += bytes
    this.tiers.set(tier, line)
  }

  /** Mean share of experts that ran, from 0 to 1. */
  get activeShare(): number {
    return this.possible === 0 ? 0 : this.activated / this.possible
  }
}
