/**
 * @module
 * Which experts have come to the GPU, and how the others get there. Every expert has its place; nothing is ever evicted.
 */
import { SparsedgeError, throwIfCancelled } from '../../errors.ts'
import type { Manifest } from '../../pack/manifest.ts'
import { book, budgetSpent, giveBack, patience, type Spent } from '../../residency/budget.ts'
import { located } from '../../residency/load.ts'
import { bundlePays } from '../../residency/policy.ts'
import type {
  Account,
  ResidencyControl,
  ResidencySnapshot,
  WarmUp,
  WarmUpLimits,
} from '../../residency/residency.ts'
import { ExpertUsage } from '../../residency/usage.ts'
import { inLanes, MAX_IN_FLIGHT } from '../../store/lanes.ts'
import type { ShardStore, Tier } from '../../store/store.ts'
import { verified } from '../../store/verified.ts'
import type { GpuWeights } from './weights.ts'

/** An object in the store: some experts of a layer, end to end, from `first` on. */
interface Parcel {
  readonly layer: number
  readonly hash: string
  readonly first: number
  readonly shards: readonly string[]
}

export class Experts implements ResidencyControl {
  readonly #manifest: Manifest
  readonly #store: ShardStore
  readonly #weights: GpuWeights
  /** 1 where an expert is in its place, [layers, experts]. */
  readonly #resident: Uint8Array
  #missing: number
  /** Tokens so far, and those that routed an expert, [layers, experts]. */
  #tokens = 0
  readonly #uses: Float64Array

  constructor(manifest: Manifest, store: ShardStore, weights: GpuWeights) {
    const { layers, experts } = manifest.config
    this.#manifest = manifest
    this.#store = verified(store)
    this.#weights = weights
    this.#resident = new Uint8Array(layers * experts)
    this.#missing = layers * experts
    this.#uses = new Float64Array(layers * experts)
  }

  /** Whether all have come, so that nobody needs to ask for single ones. */
  get complete(): boolean {
    return this.#missing === 0
  }

  /** @param key layer · experts + expert */
  has(key: number): boolean {
    return this.#resident[key] === 1
  }

  /** Which experts a run that is queued now will find, [layers, experts]; undefined: all. */
  present(): Uint8Array | undefined {
    return this.complete ? undefined : this.#resident.slice()
  }

  /** Some tokens have been run; so many of them routed an expert. */
  visit(tokens: number): void {
    this.#tokens += tokens
  }

  use(key: number, tokens: number): void {
    this.#uses[key] += tokens
  }

  snapshot(): ResidencySnapshot {
    const { config, experts } = this.#manifest
    const all = config.layers * config.experts
    return {
      layers: config.layers,
      experts: config.experts,
      expertBytes: experts.bytes,
      capacity: all,
      resident: all - this.#missing,
      isResident: this.#resident.slice(),
      frequency: Float32Array.from(this.#uses, (uses) => uses / Math.max(this.#tokens, 1)),
    }
  }

  async prewarm(limits: WarmUpLimits = {}, signal?: AbortSignal): Promise<WarmUp> {
    const usage = new ExpertUsage(this.#manifest.config.layers)
    const before = this.#missing
    const frequency = this.#manifest.profile?.flat() ?? []
    const keys = Array.from(this.#resident.keys())
      .filter((key) => !this.has(key))
      .sort((a, b) => (frequency[b] ?? 0) - (frequency[a] ?? 0))
    const options = { policy: 'resident_first' as const, lookahead: false, ...limits }
    await this.load(keys, { usage, options, mayWait: true }, signal)
    return { loaded: before - this.#missing, bytes: usage.bytes, requests: usage.requests }
  }

  /**
   * Brings experts to the GPU: one by one, or a layer's bundle where that is cheaper, which brings the rest along. Stops
   * early, without failing, where the account's limits are spent and its policy is `resident_first`.
   *
   * @param keys of experts that are missing
   * @throws SparsedgeError as {@link ShardStore.read} does, with model, layer and expert; `expert_budget_spent`;
   * `expert_fetches_spent`; `cancelled`
   */
  async load(keys: readonly number[], account: Account, signal: AbortSignal | undefined): Promise<void> {
    const { usage, options } = account
    const { name, config, experts } = this.#manifest
    const started = performance.now()
    const limit = patience(account)
    const late = limit === undefined ? undefined : AbortSignal.timeout(limit)
    const signals = [signal, late].filter((some) => some !== undefined)
    const goOn = options.policy === 'resident_first'
    try {
      let spent: Spent | undefined
      const affordable = function* (parcels: readonly Parcel[]) {
        for (const parcel of parcels) {
          spent = book(account, parcel.shards.length * experts.bytes)
          if (spent) return
          yield parcel
        }
      }
      await inLanes(
        affordable(this.#parcels(keys)),
        MAX_IN_FLIGHT,
        async (parcel, stop) => {
          const bytes = parcel.shards.length * experts.bytes
          try {
            usage.fetched(await this.#fetch(parcel, stop), bytes)
          } catch (cause) {
            giveBack(account, bytes)
            throw cause
          }
        },
        signals.length > 0 ? AbortSignal.any(signals) : undefined,
      )
      if (spent && !goOn) throw budgetSpent(account, spent)
    } catch (cause) {
      throwIfCancelled(signal)
      if (!late?.aborted) throw cause instanceof SparsedgeError ? cause.at({ model: name }) : cause
      if (!goOn) throw budgetSpent(account, 'time')
    } finally {
      const waited = performance.now() - started
      usage.layerWaitMs[Math.floor((keys[0] ?? 0) / config.experts)] += waited
    }
  }

  async #fetch(parcel: Parcel, signal: AbortSignal): Promise<Tier> {
    const into = parcel.shards.map((hash) => ({ hash, bytes: new Uint8Array(this.#manifest.experts.bytes) }))
    const tier = await this.#store.read(parcel.hash, into, signal).catch((cause: unknown) => {
      throw located(cause, parcel)
    })
    for (const [i, { bytes }] of into.entries()) this.#place(parcel.layer, parcel.first + i, bytes)
    return tier
  }

  #place(layer: number, expert: number, shard: Uint8Array<ArrayBuffer>): void {
    const key = layer * this.#manifest.config.experts + expert
    if (this.has(key)) return
    this.#weights.placeExpert(layer, expert, shard)
    this.#resident[key] = 1
    this.#missing -= 1
  }

  #parcels(keys: readonly number[]): Parcel[] {
    const { config, experts } = this.#manifest
    const byLayer = Map.groupBy(keys, (key) => Math.floor(key / config.experts))
    return [...byLayer].flatMap(([layer, wanted]): Parcel[] => {
      const { bundle, shards } = experts.layers[layer]
      if (bundlePays(wanted.length, config.experts, experts.bytes)) {
        return [{ layer, hash: bundle, first: 0, shards }]
      }
      return wanted.map((key) => {
        const first = key % config.experts
        return { layer, hash: shards[first], first, shards: [shards[first]] }
      })
    })
  }
}
