/**
 * @module
 * The two choices of the residency, apart from all mechanism: which expert may go, and how to fetch the missing ones.
 */
import { MAX_IN_FLIGHT } from '../store/lanes.ts'

/** Past this a count is near the end of float64, and all are scaled down. */
const RESCALE = 1e200

/**
 * How much each expert was used lately: the least used one goes first (LFU with ageing). Experts are used unevenly and,
 * within a text, repeatedly, so this beats mere recency at small arenas. After `halfLife` ticks a use counts half;
 * instead of all counts shrinking at every tick, the next use counts more.
 */
export class Frequency {
  readonly #counts: Float64Array
  readonly #growth: number
  #weight = 1

  /** @param halfLife in ticks */
  constructor(keys: number, halfLife: number) {
    this.#counts = new Float64Array(keys)
    this.#growth = 2 ** (1 / halfLife)
  }

  /** Lets time pass. */
  tick(): void {
    this.#weight *= this.#growth
    if (this.#weight < RESCALE) return
    for (let key = 0; key < this.#counts.length; key++) this.#counts[key] /= RESCALE
    this.#weight /= RESCALE
  }

  use(key: number): void {
    this.#counts[key] += this.#weight
  }

  /** Comparable between keys at one moment only. */
  of(key: number): number {
    return this.#counts[key]
  }
}

/** What a fetch is taken to cost: milliseconds to its first byte, then bytes a millisecond. Object storage from a Worker
 * is that slow or slower; from a local disk either choice is good. */
const FIRST_BYTE_MS = 30
const BYTES_PER_MS = 30_000

/**
 * Whether to read a layer's whole bundle rather than the missing experts one by one: one round trip, but bytes that
 * nobody asked for. For small experts that is from about half of a layer on.
 *
 * @param expertBytes of one of the layer's `experts` experts
 */
export function bundlePays(missing: number, experts: number, expertBytes: number): boolean {
  const roundTrips = Math.ceil(missing / MAX_IN_FLIGHT)
  const single = roundTrips * FIRST_BYTE_MS + (missing * expertBytes) / BYTES_PER_MS
  const bundle = FIRST_BYTE_MS + (experts * expertBytes) / BYTES_PER_MS
  return bundle <= single
}
