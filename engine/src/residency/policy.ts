/**
 * @module
 * The two choices of the residency, apart from all mechanism: which expert may go, and how to fetch the missing ones.
 */
import { MAX_IN_FLIGHT } from '../store/lanes.ts'

/** Tokens after which the use of an expert counts half. */
export const HALF_LIFE_TOKENS = 48
/** What a slot costs for a pass through all layers, in uses. Between .15 and .6 hits hardly differ. */
const RENT = 0.3
/** Past this a count is near the end of float64, and all are scaled down. */
const RESCALE = 1e200

/**
 * What each slot is good for. Layers are visited in a circle: an expert of a layer that comes soon pays off, or turns out
 * not to, in a short while; one of the layer just left keeps its slot busy for a whole pass. With rate r, the share of
 * tokens that routed it lately, and the way to its layer in passes, an expert is worth r - rent · way; what is worth least
 * goes first. Where rates differ that is LFU with ageing; where they are alike, as when nearly all experts are always on,
 * the layer just left goes first. Plain LFU turns such a circle into a scan that evicts everything right before its use.
 *
 * A step of many tokens counts as so many, and tells at once which experts a prompt is about.
 */
export class Forecast {
  readonly #layers: number
  readonly #experts: number
  /** Uses, weighed so that one counts half after the half-life: instead of all counts shrinking, the next counts more. */
  readonly #counts: Float64Array
  /** Per layer: weight of all its tokens so far, were each a use. */
  readonly #visits: Float64Array
  /** Per layer: what the next use counts. */
  readonly #weights: Float64Array
  readonly #halfLife: number
  #layer = 0
  /** What one token of the step at hand counts: its last one the layer's weight, those before it less and less. */
  #weight = 0

  /**
   * @param halfLife in tokens
   * @param profile how often each expert is routed, [layers][experts], as if that had been seen for a half-life
   */
  constructor(layers: number, experts: number, halfLife: number, profile?: readonly (readonly number[])[]) {
    this.#layers = layers
    this.#experts = experts
    this.#halfLife = halfLife
    this.#counts = Float64Array.from(
      profile?.flat() ?? new Float64Array(layers * experts),
      (r) => r * halfLife,
    )
    this.#visits = new Float64Array(layers).fill(profile ? halfLife : 0)
    this.#weights = new Float64Array(layers).fill(1)
  }

  /** A step of so many tokens has come to a layer. */
  visit(layer: number, tokens: number): void {
    this.#layer = layer
    this.#weights[layer] *= 2 ** (tokens / this.#halfLife)
    const decay = 2 ** (-1 / this.#halfLife)
    const sum = (1 - decay ** tokens) / (1 - decay)
    this.#weight = (this.#weights[layer] * sum) / tokens
    this.#visits[layer] += this.#weight * tokens
    if (this.#weights[layer] < RESCALE) return
    const row = layer * this.#experts
    for (let e = 0; e < this.#experts; e++) this.#counts[row + e] /= RESCALE
    this.#visits[layer] /= RESCALE
    this.#weights[layer] /= RESCALE
    this.#weight /= RESCALE
  }

  /** So many of its tokens use an expert there. */
  use(key: number, tokens: number): void {
    this.#counts[key] += this.#weight * tokens
  }

  /** The share of tokens that used the expert, lately. */
  rate(key: number): number {
    const visits = this.#visits[Math.floor(key / this.#experts)]
    return visits === 0 ? 0 : this.#counts[key] / visits
  }

  /** What it is worth to hold the expert from now until its layer has come and gone, in uses. */
  worth(key: number): number {
    const layer = Math.floor(key / this.#experts)
    const ahead = layer - this.#layer
    const way = (ahead > 0 ? ahead : ahead + this.#layers) / this.#layers
    return this.rate(key) - RENT * way
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
