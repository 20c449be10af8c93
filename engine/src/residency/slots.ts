/**
 * @module
 * The table of the arena: which slot holds which expert, which may be evicted, which are free. An expert is a key here,
 * layer · experts + expert.
 */
import type { Flight } from './flights.ts'
import type { Forecast } from './policy.ts'

const NONE = -1

/**
 * A slot is free, or taken (a flight fills it), or holds an expert, whose key then has it in `of`. Only a slot that
 * holds an unpinned expert is ever evicted.
 */
export class Slots {
  /** Slot of each key, or -1. */
  readonly of: Int32Array
  /** The flight that brings a key. */
  readonly coming: (Flight | undefined)[]
  /** 1 for a key that a guess has brought, or is bringing, and that nobody has acquired since. */
  readonly guessed: Uint8Array
  /** Pinned keys, resident or on their way. */
  pinned = 0
  /** Keys that have a slot. */
  resident = 0

  readonly #memory: Uint8Array<ArrayBuffer>
  readonly #slotBytes: number
  readonly #forecast: Forecast
  /** Key that a slot holds; -1 while it is free or taken. */
  readonly #holder: Int32Array
  readonly #free: number[]
  readonly #pins: Uint8Array

  /** @param memory slot i is the view of `slotBytes` bytes from i · slotBytes on */
  constructor(
    memory: Uint8Array<ArrayBuffer>,
    slotBytes: number,
    capacity: number,
    keys: number,
    forecast: Forecast,
  ) {
    this.of = new Int32Array(keys).fill(NONE)
    this.coming = new Array(keys).fill(undefined)
    this.guessed = new Uint8Array(keys)
    this.#memory = memory
    this.#slotBytes = slotBytes
    this.#forecast = forecast
    this.#holder = new Int32Array(capacity).fill(NONE)
    this.#free = Array.from({ length: capacity }, (_, i) => capacity - 1 - i)
    this.#pins = new Uint8Array(keys)
  }

  get capacity(): number {
    return this.#holder.length
  }

  /** The first `length` bytes of a slot. */
  bytes(slot: number, length: number): Uint8Array<ArrayBuffer> {
    return this.#memory.subarray(slot * this.#slotBytes, slot * this.#slotBytes + length)
  }

  isPinned(key: number): boolean {
    return this.#pins[key] === 1
  }

  pin(key: number): void {
    this.pinned += 1 - this.#pins[key]
    this.#pins[key] = 1
  }

  unpin(key: number): void {
    this.pinned -= this.#pins[key]
    this.#pins[key] = 0
  }

  /** A free slot, now taken, or -1. */
  takeFree(): number {
    return this.#free.pop() ?? NONE
  }

  /** A slot, now taken: a free one, or that of the unpinned expert worth least; -1 if there is neither. */
  take(): number {
    const free = this.takeFree()
    if (free !== NONE) return free
    const slot = this.#victim()
    if (slot === NONE) return NONE
    const key = this.#holder[slot]
    this.of[key] = NONE
    this.guessed[key] = 0
    this.#holder[slot] = NONE
    this.resident -= 1
    return slot
  }

  /** Whether there is a free slot for a key, or one whose expert is used less. */
  hasRoomFor(key: number): boolean {
    if (this.#free.length > 0) return true
    const victim = this.#victim()
    return victim !== NONE && this.#forecast.rate(this.#holder[victim]) < this.#forecast.rate(key)
  }

  /** The slot of the unpinned expert worth least, or -1. */
  #victim(): number {
    let victim = NONE
    let least = Number.POSITIVE_INFINITY
    for (let slot = 0; slot < this.#holder.length; slot++) {
      const key = this.#holder[slot]
      if (key === NONE || this.#pins[key] === 1) continue
      const worth = this.#forecast.worth(key)
      if (worth < least) {
        least = worth
        victim = slot
      }
    }
    return victim
  }

  /** Makes a key resident in a taken slot that now holds its bytes. */
  publish(key: number, slot: number): void {
    this.of[key] = slot
    this.#holder[slot] = key
    this.resident += 1
  }

  /** Frees a taken slot that nothing came into. */
  giveBack(slot: number): void {
    this.#free.push(slot)
  }
}
