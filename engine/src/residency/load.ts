/**
 * @module
 * The flight that brings experts into slots: one expert's shard, or a layer's bundle scattered over slots.
 */
import { SparsedgeError } from '../errors.ts'
import type { Destination, ShardStore } from '../store/store.ts'
import { giveBack } from './budget.ts'
import { Flight, NEEDED, type Urgency, WARM_UP } from './flights.ts'
import type { Account } from './residency.ts'
import type { Slots } from './slots.ts'

/** An object in the store, as the experts that lie in it end to end. */
export interface Cargo {
  readonly hash: string
  readonly layer: number
  /** The hashes of the experts in it, from expert `first` of the layer on; the first one's key. */
  readonly shards: readonly string[]
  readonly first: number
  readonly key: number
  /** Bytes of one expert. */
  readonly expertBytes: number
}

/**
 * Brings the experts whose key names it in `slots.coming`. Of a bundle's other experts it takes along those that find a
 * free slot; it evicts nothing for them, and reads past the rest.
 */
export class Load extends Flight {
  readonly #cargo: Cargo
  readonly #slots: Slots
  readonly #store: ShardStore
  readonly #account: Account
  /** Slot that each expert of the cargo will fill, or -1. */
  readonly #taken: Int32Array
  #started = false

  /**
   * @param store one that verifies
   * @param account has a fetch of the cargo booked; whatever is not started is given back to it
   */
  constructor(cargo: Cargo, slots: Slots, store: ShardStore, account: Account, urgency: Urgency) {
    super(urgency)
    this.#cargo = cargo
    this.#slots = slots
    this.#store = store
    this.#account = account
    this.#taken = new Int32Array(cargo.shards.length).fill(-1)
  }

  claim(): boolean {
    const { coming, resident } = this.#slots
    for (let i = 0; i < this.#taken.length; i++) {
      const key = this.#cargo.key + i
      // A guess must find room for all that it wants. Where a step waits, only what is pinned must find room.
      if (coming[key] !== this || (this.urgency === NEEDED && !this.#slots.isPinned(key))) continue
      this.#taken[i] = this.urgency === WARM_UP ? this.#slots.takeFree() : this.#slots.take()
      if (this.#taken[i] >= 0) continue
      this.#giveBack()
      return false
    }
    for (let i = 0; i < this.#taken.length; i++) {
      const key = this.#cargo.key + i
      if (this.#taken[i] >= 0 || this.#slots.of[key] >= 0 || (coming[key] ?? this) !== this) continue
      this.#taken[i] = this.#slots.takeFree()
      if (this.#taken[i] >= 0) coming[key] = this
    }
    this.hasEvicted = this.#slots.resident < resident
    return true
  }

  async fetch(signal: AbortSignal): Promise<void> {
    const { hash } = this.#cargo
    this.#started = true
    try {
      const tier = await this.#store.read(hash, this.#destinations(), signal)
      this.#account.usage.fetched(tier, this.#bytes)
      this.#publish()
    } catch (cause) {
      throw located(cause, this.#cargo)
    }
  }

  end(): void {
    const { coming, guessed, of } = this.#slots
    this.#giveBack()
    for (let i = 0; i < this.#taken.length; i++) {
      const key = this.#cargo.key + i
      if (coming[key] !== this) continue
      coming[key] = undefined
      if (of[key] < 0) guessed[key] = 0
    }
    if (!this.#started) giveBack(this.#account, this.#bytes)
  }

  get #bytes(): number {
    return this.#cargo.shards.length * this.#cargo.expertBytes
  }

  #destinations(): Destination[] {
    const { shards, expertBytes } = this.#cargo
    const passedOver = this.#taken.includes(-1) ? new Uint8Array(expertBytes) : undefined
    return shards.map((hash, i) =>
      passedOver && this.#taken[i] < 0
        ? { hash: null, bytes: passedOver }
        : { hash, bytes: this.#slots.bytes(this.#taken[i], expertBytes) },
    )
  }

  /** The bytes are right: the experts are resident from now on, but for those that came another way meanwhile. */
  #publish(): void {
    for (let i = 0; i < this.#taken.length; i++) {
      const key = this.#cargo.key + i
      if (this.#taken[i] < 0 || this.#slots.of[key] >= 0) continue
      this.#slots.publish(key, this.#taken[i])
      this.#taken[i] = -1
    }
  }

  #giveBack(): void {
    for (let i = 0; i < this.#taken.length; i++) {
      if (this.#taken[i] >= 0) this.#slots.giveBack(this.#taken[i])
      this.#taken[i] = -1
    }
  }
}

/** A failed read of some experts of a layer, with the one that it concerns, as far as that is known. */
export function located(
  cause: unknown,
  { hash, layer, shards, first }: Pick<Cargo, 'hash' | 'layer' | 'shards' | 'first'>,
): SparsedgeError {
  const error =
    cause instanceof SparsedgeError
      ? cause
      : new SparsedgeError('store_unavailable', `the store failed: ${String(cause)}`, {}, { cause })
  const shard = error.place.shard ?? hash
  const index = shards.indexOf(shard)
  return error.at(index < 0 ? { layer, shard } : { layer, shard, expert: first + index })
}
