/**
 * @module
 * The two choices of the residency, apart from all mechanism: which expert may go, and how to fetch the missing ones.
 */
import { MAX_IN_FLIGHT } from '../store/lanes.ts'

/** Past this a count is near the end of float64, and all are scaled down. */
const RESCALE = 1e200
/** Experts used less often than this in a pass are alike. */
const LEAST_RATE = 1e-3

/**
 * When each expert will be needed next: the one with the longest wait goes first. Layers are visited in a circle, so the
 * wait is the way to the expert's layer, plus the passes that it is expected to sit out there: with rate r, the share of
 * passes that used it lately, 1/r - 1. Where rates differ that is LFU with ageing; where they are alike, as when nearly
 * all experts are always on, the layer just left goes first. Plain LFU turns such a circle into a scan that evicts
 * everything right before its use.
 */
export class Forecast {
  readonly #layers: number
  readonly #experts: number
  /** Uses, weighed so that one counts half after the half-life: instead of all counts shrinking, the next counts more. */
  readonly #counts: Float64Array
  readonly #growth: number
  #weight = 1
  /** Weight of all visits so far, were every one a use; counted as the uses are. */
  #visits = 0
  #layer = 0

  /** @param halfLife in passes through all layers */
  constructor(layers: number, experts: number, halfLife: number) {
    this.#layers = layers
    this.#experts = experts
    this.#counts = new Float64Array(layers * experts)
    this.#growth = 2 ** (1 / (halfLife * layers))
  }

  /** A step has come to a layer. */
  visit(layer: number): void {
    this.#layer = layer
    this.#weight *= this.#growth
    this.#visits += this.#weight / this.#layers
    if (this.#weight < RESCALE) return
    for (let key = 0; key < this.#counts.length; key++) this.#counts[key] /= RESCALE
    this.#visits /= RESCALE
    this.#weight /= RESCALE
  }

  /** It uses an expert there. */
  use(key: number): void {
    this.#counts[key] += this.#weight
  }

  /** The share of passes that used the expert, lately; in the first pass an overestimate. */
  rate(key: number): number {
    return this.#visits === 0 ? 0 : Math.min(this.#counts[key] / this.#visits, 1)
  }

  /** Passes until the expert is expected to be used. */
  wait(key: number): number {
    const layer = Math.floor(key / this.#experts)
    const ahead = layer - this.#layer
    const way = (ahead > 0 ? ahead : ahead + this.#layers) / this.#layers
    return way + 1 / Math.max(this.rate(key), LEAST_RATE) - 1
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
