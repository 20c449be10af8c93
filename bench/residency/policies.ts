/**
 * @module
 * What ours is measured against: the policies that everyone knows, and the optimum, as forecasts for the same table of
 * slots. The expert that is worth least is evicted.
 */
import { Forecast, HALF_LIFE_TOKENS } from '@sparsedge/engine/residency/policy'
import { config } from './backend.ts'
import type { Trace } from './traces.ts'

const { layers, experts } = config

export const POLICIES = {
  LRU: () => new LeastRecent(),
  LFU: () => new LeastFrequent(),
  'LFU by tokens': () => new LeastFrequent(true),
  ours: () => new Forecast(layers, experts, HALF_LIFE_TOKENS),
  'true rates': (trace: Trace) => new TrueRates(trace),
  optimum: (trace: Trace) => new Optimum(trace),
} satisfies Record<string, (trace: Trace) => Forecast>

export type Policy = keyof typeof POLICIES
export const NAMES: readonly Policy[] = ['LRU', 'LFU', 'LFU by tokens', 'ours', 'true rates', 'optimum']

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

  override worth(key: number): number {
    return this.#last[key]
  }
}

/** Counts all uses since the start; among equals the least recent goes first. */
class LeastFrequent extends Other {
  readonly #byTokens: boolean
  readonly #count = new Float64Array(layers * experts)
  #now = 0

  /** @param byTokens a use by a prompt of n tokens counts for as many of them as use the expert, and not as one */
  constructor(byTokens = false) {
    super()
    this.#byTokens = byTokens
  }

  override use(key: number, tokens: number): void {
    this.#now += 1
    this.#count[key] = Math.floor(this.#count[key]) + (this.#byTokens ? tokens : 1) + this.#now / 1e9
  }

  override worth(key: number): number {
    return this.#count[key]
  }
}

/** Ours, told how often the whole trace uses each expert: what no counting of the past can do better than. */
class TrueRates extends Other {
  readonly #rates = new Float64Array(layers * experts)

  constructor({ decode }: Trace) {
    super()
    for (const step of decode) {
      for (const [layer, { routed }] of step.entries()) {
        for (const expert of routed) this.#rates[layer * experts + expert] += 1 / decode.length
      }
    }
  }

  override rate(key: number): number {
    return this.#rates[key]
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

  override worth(key: number): number {
    return -(this.#uses[key][this.#past[key]] ?? Number.POSITIVE_INFINITY)
  }
}
