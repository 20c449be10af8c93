/**
 * @module
 * Which experts have come to the GPU, and how the others get there. Every expert has its place; nothing is ever evicted.
 */
import { throwIfCancelled } from '../../errors.ts'
import type { Manifest } from '../../pack/manifest.ts'
import { DEFAULT_EXPERTS } from '../../request.ts'
import { book, budgetSpent, giveBack, patience, type Spent, waited } from '../../residency/budget.ts'
import { Flight, Flights, GUESS, NEEDED, type Urgency, WARM_UP } from '../../residency/flights.ts'
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
import { MAX_IN_FLIGHT } from '../../store/lanes.ts'
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

/** The flight of a parcel. It takes no memory that others wait for: every expert has its place. */
class Delivery extends Flight {
  readonly #bring: (signal: AbortSignal) => Promise<void>
  readonly #ended: (flown: boolean) => void
  #flown = false

  /** @param ended told once, when it is over, whether it has been started */
  constructor(
    urgency: Urgency,
    bring: (signal: AbortSignal) => Promise<void>,
    ended: (flown: boolean) => void,
  ) {
    super(urgency)
    this.#bring = bring
    this.#ended = ended
  }

  claim(): boolean {
    return true
  }

  fetch(signal: AbortSignal): Promise<void> {
    this.#flown = true
    return this.#bring(signal)
  }

  end(): void {
    this.#ended(this.#flown)
  }
}

export class Experts implements ResidencyControl {
  readonly #manifest: Manifest
  readonly #store: ShardStore
  readonly #weights: GpuWeights
  /** 1 where an expert is in its place, [layers, experts]. */
  readonly #resident: Uint8Array
  #missing: number
  /** The flight that each expert comes with, [layers · experts]; empty where nothing is under way. */
  readonly #coming: (Flight | undefined)[]
  readonly #flights = new Flights()
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
    this.#coming = new Array(layers * experts)
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
    throwIfCancelled(signal)
    const usage = new ExpertUsage(this.#manifest.config.layers)
    const account = { options: { ...DEFAULT_EXPERTS, ...limits }, usage, mayWait: true }
    const before = this.#missing
    const frequency = this.#manifest.profile?.flat() ?? []
    const keys = Array.from(this.#resident.keys())
      .filter((key) => !this.has(key))
      .sort((a, b) => (frequency[b] ?? 0) - (frequency[a] ?? 0))
    const { flights } = this.#request(keys, WARM_UP, account)
    await this.#flights.landing(flights, WARM_UP, signal)
    return { loaded: before - this.#missing, bytes: usage.bytes, requests: usage.requests }
  }

  /**
   * Waits for experts to come to the GPU: one by one, or a layer's bundle where that is cheaper, which brings the rest
   * along; for what is on its way already, nothing is fetched. Stops early, without failing, where the account's limits are
   * spent and its policy is `resident_first`.
   *
   * @param keys of experts that are missing
   * @throws SparsedgeError as {@link ShardStore.read} does, with model, layer and expert; `expert_budget_spent`;
   * `expert_fetches_spent`; `cancelled`
   */
  async load(keys: readonly number[], account: Account, signal: AbortSignal | undefined): Promise<void> {
    const { name, config } = this.#manifest
    const started = performance.now()
    const limit = patience(account)
    const late = limit === undefined ? undefined : AbortSignal.timeout(limit)
    const either = late && signal ? AbortSignal.any([signal, late]) : (late ?? signal)
    let spent: Spent | undefined = limit === 0 ? 'time' : undefined
    try {
      throwIfCancelled(signal)
      // Flights may end without having brought what they were joined for; then there is another round.
      let missing = keys
      while (missing.length > 0 && !spent) {
        const request = this.#request(missing, NEEDED, account)
        await this.#flights.landing(request.flights, NEEDED, either)
        spent = request.spent
        missing = missing.filter((key) => !this.has(key))
      }
    } catch (cause) {
      throwIfCancelled(signal)
      if (!late?.aborted) throw cause
      spent = 'time'
    } finally {
      const layer = Math.floor((keys[0] ?? 0) / config.experts)
      account.usage.layerWaitMs[layer] += waited(started, limit, late)
    }
    if (spent && account.options.policy !== 'resident_first') {
      throw budgetSpent(account, spent).at({ model: name })
    }
  }

  /**
   * Starts fetching what a step does without, for the steps after it, unless the lanes are full. Nobody waits, so it costs
   * the account no time; that an expert cannot be had is told to whoever waits for it.
   */
  loadAside(keys: readonly number[], account: Account): void {
    if (this.#flights.size >= MAX_IN_FLIGHT) return
    this.#request(
      keys.filter((key) => !this.has(key)),
      GUESS,
      account,
    )
  }

  /** The flights that bring missing experts: those on their way already, and new ones as far as the limits go. */
  #request(
    keys: readonly number[],
    urgency: Urgency,
    account: Account,
  ): { readonly flights: ReadonlySet<Flight>; readonly spent?: Spent } {
    const flights = new Set<Flight>()
    const rest: number[] = []
    for (const key of keys) {
      const flight = this.#coming[key]
      if (flight && !flight.abandoned) flights.add(flight)
      else rest.push(key)
    }
    for (const parcel of this.#parcels(rest)) {
      const spent = book(account, parcel.shards.length * this.#manifest.experts.bytes)
      if (spent) return { flights, spent }
      const flight = this.#delivery(parcel, urgency, account)
      this.#flights.start(flight)
      flights.add(flight)
    }
    return { flights }
  }

  /** A flight for a parcel that is booked; whoever misses one of its experts will find it. */
  #delivery(parcel: Parcel, urgency: Urgency, account: Account): Flight {
    const bytes = parcel.shards.length * this.#manifest.experts.bytes
    const start = parcel.layer * this.#manifest.config.experts + parcel.first
    const keys = parcel.shards.map((_, i) => start + i)
    const flight = new Delivery(
      urgency,
      async (signal) => account.usage.fetched(await this.#fetch(parcel, signal), bytes),
      (flown) => {
        if (!flown) giveBack(account, bytes)
        for (const key of keys) if (this.#coming[key] === flight) this.#coming[key] = undefined
      },
    )
    for (const key of keys) {
      if (!this.has(key) && (this.#coming[key]?.abandoned ?? true)) this.#coming[key] = flight
    }
    return flight
  }

  async #fetch(parcel: Parcel, signal: AbortSignal): Promise<Tier> {
    const into = parcel.shards.map((hash) => ({ hash, bytes: new Uint8Array(this.#manifest.experts.bytes) }))
    const tier = await this.#store.read(parcel.hash, into, signal).catch((cause: unknown) => {
      throw located(cause, parcel).at({ model: this.#manifest.name })
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
