/**
 * @module
 * Residency in an arena: a fixed region of memory, cut into slots that each hold one expert. Fetches what is missing,
 * evicts what is worth least, and never lets a byte be seen that was not verified.
 */
import { SparsedgeError, throwIfCancelled } from '../errors.ts'
import type { Manifest } from '../pack/manifest.ts'
import { DEFAULT_EXPERTS } from '../request.ts'
import { MAX_IN_FLIGHT } from '../store/lanes.ts'
import type { ShardStore } from '../store/store.ts'
import { verified } from '../store/verified.ts'
import { book, budgetSpent, patience, type Spent, waited } from './budget.ts'
import { type Flight, Flights, GUESS, NEEDED, type Urgency, WARM_UP } from './flights.ts'
import { Load } from './load.ts'
import { bundlePays, Forecast, HALF_LIFE_TOKENS } from './policy.ts'
import type {
  Account,
  Residency,
  ResidencyControl,
  ResidencySnapshot,
  Routing,
  WarmUp,
  WarmUpLimits,
} from './residency.ts'
import { Slots } from './slots.ts'
import { ExpertUsage } from './usage.ts'

export interface ArenaOptions {
  readonly manifest: Manifest
  readonly store: ShardStore
  /** Slot i is the view of `slotBytes` bytes from i · slotBytes on; an expert lies at its start. */
  readonly arena: Uint8Array<ArrayBuffer>
  /** At least `manifest.experts.bytes`; more where slots must be aligned. */
  readonly slotBytes: number
}

export interface ArenaResidency extends Residency, ResidencyControl {
  /** Experts that the arena has room for; never more than there are. */
  readonly capacity: number
  /** Experts in a slot now. */
  readonly resident: number
}

/** Slots without which a model cannot run: two neighbouring layers, one computing, one on its way. */
export function arenaFloor({ config }: Pick<Manifest, 'config'>): number {
  return Math.min(2, config.layers) * config.experts
}

/**
 * @throws SparsedgeError `arena_too_small` if the arena has fewer slots than {@link arenaFloor}
 */
export function createResidency(options: ArenaOptions): ArenaResidency {
  const { manifest, arena, slotBytes } = options
  if (slotBytes < manifest.experts.bytes) {
    throw new RangeError(`an expert of ${manifest.experts.bytes} bytes does not fit a slot of ${slotBytes}`)
  }
  const capacity = Math.floor(arena.length / slotBytes)
  const floor = arenaFloor(manifest)
  if (capacity < floor) {
    throw new SparsedgeError(
      'arena_too_small',
      `the arena has ${arena.length} bytes; ${manifest.name} needs at least ${floor * slotBytes}, ` +
        'so allow more memory, or fewer tokens of context',
      { model: manifest.name },
    )
  }
  return new Arena(options, Math.min(capacity, manifest.config.layers * manifest.config.experts))
}

class Arena implements ArenaResidency {
  readonly slots: Int32Array
  readonly #manifest: Manifest
  readonly #store: ShardStore
  readonly #forecast: Forecast
  readonly #table: Slots
  readonly #flights = new Flights()

  constructor({ manifest, store, arena, slotBytes }: ArenaOptions, capacity: number) {
    const { layers, experts } = manifest.config
    this.#manifest = manifest
    this.#store = verified(store)
    this.#forecast = new Forecast(layers, experts, HALF_LIFE_TOKENS, manifest.profile)
    this.#table = new Slots(arena, slotBytes, capacity, layers * experts, this.#forecast)
    this.slots = this.#table.of
  }

  get capacity(): number {
    return this.#table.capacity
  }

  get resident(): number {
    return this.#table.resident
  }

  acquire(
    layer: number,
    routing: Routing,
    account: Account,
    signal?: AbortSignal,
  ): undefined | Promise<void> {
    const { routed, uses, count, tokens } = routing
    const row = layer * this.#manifest.config.experts
    const { guessed } = this.#table
    const { usage } = account
    this.#forecast.visit(layer, tokens)
    for (let i = 0; i < count; i++) {
      const key = row + routed[i]
      this.#forecast.use(key, uses[i])
      this.#table.pin(key)
      usage.prefetchedUsed += guessed[key]
      guessed[key] = 0
    }
    const missing = this.#countMissing(row, routing)
    usage.layerHits[layer] += count - missing
    usage.layerMisses[layer] += missing
    if (missing === 0) return undefined
    if (account.mayWait) return this.#wait(layer, this.#missing(row, routing), account, signal)
    this.#improve(layer, routing, account)
    return undefined
  }

  /** Fetches missing experts that are used more than what they would replace, while there are lanes to spare. */
  #improve(layer: number, { routed, count }: Routing, account: Account): void {
    const row = layer * this.#manifest.config.experts
    // Nobody waits here, so nobody would notice that those who hold the lanes have died; once it has started something
    // itself, a request has lanes.
    if (account.usage.requests === 0 && this.#flights.size >= MAX_IN_FLIGHT) this.#flights.watch()
    for (let i = 0; i < count && this.#flights.size < MAX_IN_FLIGHT; i++) {
      const key = row + routed[i]
      if (this.slots[key] >= 0 || this.#table.coming[key] || !this.#table.hasRoomFor(key)) continue
      this.#request(layer, [routed[i]], GUESS, account)
    }
  }

  release(layer: number): void {
    const { experts } = this.#manifest.config
    for (let key = layer * experts; key < (layer + 1) * experts; key++) this.#table.unpin(key)
  }

  prefetch(layer: number, routing: Routing, account: Account): void {
    const row = layer * this.#manifest.config.experts
    if (this.#countMissing(row, routing) === 0) return
    this.#guess(layer, this.#missing(row, routing), account)
  }

  anticipate(layer: number, account: Account): void {
    const { layers, experts } = this.#manifest.config
    // The layer at hand and the next one keep their room whatever comes.
    const ahead = Math.min(MAX_IN_FLIGHT, Math.floor(this.capacity / experts) - 2)
    for (let next = layer + 2; next < Math.min(layer + 2 + ahead, layers); next++) {
      if (this.resident === this.capacity && this.capacity === layers * experts) return
      const missing: number[] = []
      for (let expert = 0; expert < experts; expert++) {
        const key = next * experts + expert
        if (this.slots[key] < 0 && !this.#table.coming[key]) missing.push(expert)
      }
      if (missing.length > 0) this.#guess(next, missing, account)
    }
  }

  /** Fetches experts that nobody has asked for yet. */
  #guess(layer: number, missing: readonly number[], account: Account): void {
    const row = layer * this.#manifest.config.experts
    for (const expert of missing) {
      if (this.#table.coming[row + expert]) continue
      this.#table.guessed[row + expert] = 1
      account.usage.prefetched += 1
    }
    this.#request(layer, missing, GUESS, account)
  }

  snapshot(): ResidencySnapshot {
    const { config, experts } = this.#manifest
    return {
      layers: config.layers,
      experts: config.experts,
      expertBytes: experts.bytes,
      capacity: this.capacity,
      resident: this.resident,
      isResident: Uint8Array.from(this.slots, (slot) => (slot < 0 ? 0 : 1)),
      frequency: Float32Array.from(this.slots, (_, key) => this.#forecast.rate(key)),
    }
  }

  async prewarm(limits: WarmUpLimits = {}, signal?: AbortSignal): Promise<WarmUp> {
    throwIfCancelled(signal)
    const { layers, experts } = this.#manifest.config
    const usage = new ExpertUsage(layers)
    const account = { options: { ...DEFAULT_EXPERTS, ...limits }, usage, mayWait: true }
    const before = this.resident
    // As many as there are free slots, the likeliest first; they are then fetched in the order of a forward pass.
    const likeliest = Array.from(this.slots.keys())
      .filter((key) => this.slots[key] < 0)
      .sort((a, b) => this.#forecast.rate(b) - this.#forecast.rate(a) || a - b)
      .slice(0, this.capacity - before)
      .sort((a, b) => a - b)
    const flights = new Set<Flight>()
    for (let layer = 0; layer < layers; layer++) {
      const wanted = likeliest.filter((key) => Math.floor(key / experts) === layer)
      const missing = wanted.map((key) => key - layer * experts)
      const { flights: some, spent } = this.#request(layer, missing, WARM_UP, account)
      for (const flight of some) flights.add(flight)
      if (spent) break
    }
    await this.#flights.landing(flights, WARM_UP, signal)
    return { loaded: this.resident - before, bytes: usage.bytes, requests: usage.requests }
  }

  /** Makes pinned experts resident, or unpins the layer. */
  async #wait(
    layer: number,
    experts: number[],
    account: Account,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const started = performance.now()
    const row = layer * this.#manifest.config.experts
    const exact = account.options.policy === 'exact'
    const limit = patience(account)
    const late = limit === undefined ? undefined : AbortSignal.timeout(limit)
    const either = late && signal ? AbortSignal.any([signal, late]) : (late ?? signal)
    try {
      throwIfCancelled(signal)
      this.#checkPins()
      // Before anything is fetched: nobody would wait for it.
      if (exact && limit === 0) throw budgetSpent(account, 'time')
      // Flights may end without having brought what they were joined for; then there is another round.
      let missing = experts
      while (missing.length > 0) {
        const { flights, spent } = this.#request(layer, missing, NEEDED, account)
        if (exact && spent) throw budgetSpent(account, spent)
        if (spent || limit === 0) return
        await this.#flights.landing(flights, NEEDED, either)
        missing = missing.filter((expert) => this.slots[row + expert] < 0)
      }
    } catch (cause) {
      const tooLate = late?.aborted === true && !signal?.aborted
      if (tooLate && !exact) return
      this.release(layer)
      const place = { model: this.#manifest.name, layer }
      if (tooLate) throw budgetSpent(account, 'time').at(place)
      throw cause instanceof SparsedgeError ? cause.at(place) : cause
    } finally {
      account.usage.layerWaitMs[layer] += waited(started, limit, late)
    }
  }

  /**
   * The flights that bring the missing experts: those on their way already, and new ones for the rest, as far as the
   * request's limits go.
   */
  #request(
    layer: number,
    missing: readonly number[],
    urgency: Urgency,
    account: Account,
  ): { flights: Set<Flight>; spent?: Spent } {
    const { config, experts } = this.#manifest
    const row = layer * config.experts
    const flights = new Set<Flight>()
    const rest: number[] = []
    for (const expert of missing) {
      const flight = this.#table.coming[row + expert]
      if (flight && !flight.abandoned) flights.add(flight)
      else rest.push(expert)
    }
    const { bundle, shards } = experts.layers[layer]
    const objects = bundlePays(rest.length, config.experts, experts.bytes)
      ? [{ hash: bundle, first: 0, shards, wanted: rest }]
      : rest.map((e) => ({ hash: shards[e], first: e, shards: [shards[e]], wanted: [e] }))
    for (const { wanted, ...object } of objects) {
      const spent = book(account, object.shards.length * experts.bytes)
      if (spent) return { flights, spent }
      const cargo = { ...object, layer, key: row + object.first, expertBytes: experts.bytes }
      const load = new Load(cargo, this.#table, this.#store, account, urgency)
      for (const expert of wanted) this.#table.coming[row + expert] = load
      this.#flights.start(load)
      flights.add(load)
    }
    return { flights }
  }

  #countMissing(row: number, { routed, count }: Routing): number {
    let missing = 0
    for (let i = 0; i < count; i++) if (this.slots[row + routed[i]] < 0) missing += 1
    return missing
  }

  #missing(row: number, { routed, count }: Routing): number[] {
    return Array.from(routed.subarray(0, count)).filter((expert) => this.slots[row + expert] < 0)
  }

  /** A caller that holds more layers than the arena has room for would wait for ever. */
  #checkPins(): void {
    if (this.#table.pinned <= this.capacity) return
    const message = `${this.#table.pinned} experts are needed at once, the arena holds ${this.capacity}`
    throw new SparsedgeError('arena_too_small', `${message}; release a layer before the one after the next`)
  }
}
