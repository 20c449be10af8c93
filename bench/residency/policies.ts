/**
 * @module
 * What ours is measured against: the policies that everyone knows, and the optimum, as forecasts for the same table of
 * slots. The expert with the longest wait is evicted.
 */
import { Forecast, HALF_LIFE_TOKENS } from '@sparsedge/engine/residency/policy'
import { config } from './backend.ts'
import type { Trace } from './traces.ts'

const { layers, experts } = config

export const POLICIES = {
  LRU: () => new LeastRecent(),
  LFU: () => new LeastFrequent(),
  ours: () => new Forecast(layers, experts, HALF_LIFE_TOKENS),
  optimum: (trace: Trace) => new Optimum(trace),
} satisfies Record<string, (trace: Trace) => Forecast>

export type Policy = keyof typeof POLICIES

abstract class Other extends Forecast {
  constructor() {
    super(layers, experts, HALF_LIFE_TOKENS)
  }
}

class LeastRecent extends Other {
  readonly #last = new Float64Array(layers * experts)
  #now = 0

  override use(key: number): void {
    this.#now += 1
    this.#last[key] = this.#now
  }

  override wait(key: number): number {
    return -this.#last[key]
  }
}

/** Counts all uses since the start, token by token; among equals the least recent goes first. */
class LeastFrequent extends Other {
  readonly #count = new Float64Array(layers * experts)
  #now = 0

  override use(key: number, tokens: number): void {
    this.#now += 1
    this.#count[key] = Math.floor(this.#count[key]) + tokens + this.#now / 1e9
  }

  override wait(key: number): number {
    return -this.#count[key]
  }
}

/** Belady's: knows the future, and evicts what is needed last. */
class Optimum extends Other {
  /** For each key, the times of its uses, and how many of them are past. */
  readonly #uses: number[][] = Array.from({ length: layers * experts }, () => [])
  readonly #past = new Int32Array(layers * experts)

  constructor({ prompt, decode }: Trace) {
    super()
    for (const [step, routed] of [...prompt, ...decode].entries()) {
      for (const [layer, list] of routed.entries()) {
        for (const expert of list.routed) this.#uses[layer * experts + expert].push(step * layers + layer)
      }
    }
  }

  override use(key: number): void {
    this.#past[key] += 1
  }

  override wait(key: number): number {
    return this.#uses[key][this.#past[key]] ?? Number.POSITIVE_INFINITY
  }
}
