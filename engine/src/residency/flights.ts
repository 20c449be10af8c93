/**
 * @module
 * The queue of fetches: a few fly at once, those that a step waits for before those that are expected to be needed soon,
 * and these before those that only fill memory. A flight belongs to nobody: whoever needs what it brings waits for it, and
 * one that everybody has left is given up, unless it has evicted: a caller that never waits must not empty the memory for
 * all others. Giving up frees a flight's lane and its memory when the store has let go of them, not before: a late answer
 * must never write into memory that was given to another flight. How long a store may take is its deadline's business.
 */
import { abortable } from '../abortable.ts'
import { SparsedgeError } from '../errors.ts'
import { MAX_IN_FLIGHT } from '../store/lanes.ts'

/** What a flight is for, the most urgent last. */
export const WARM_UP = 0
export const GUESS = 1
export const NEEDED = 2
export type Urgency = typeof WARM_UP | typeof GUESS | typeof NEEDED

export abstract class Flight {
  readonly #stop = new AbortController()
  readonly turn = Promise.withResolvers<void>()
  /** `NEEDED` once a step waits for it, or has waited: what only a guess has started goes on without passengers. */
  urgency: Urgency
  passengers = 0
  over = false
  /** It has evicted, so it goes on without passengers, lest nothing come into the place of what was there. */
  hasEvicted = false
  failure: unknown
  /**
   * Resolves when the flight is over, well or not. On Workers a flight is dropped, and does not even run its `finally`,
   * when the request that started it has ended; whoever waits for this promise in another request then sees it rejected,
   * and must end the flight.
   */
  done: Promise<void> = Promise.resolve()

  constructor(urgency: Urgency) {
    this.urgency = urgency
  }

  /** Takes the memory that the flight needs, right before it starts; false if that cannot be had now. */
  abstract claim(): boolean
  abstract fetch(signal: AbortSignal): Promise<void>
  /** Lets go of what `claim` took and `fetch` did not use. Called once, whatever happened. */
  abstract end(): void

  get signal(): AbortSignal {
    return this.#stop.signal
  }

  /** Given up: it is not to be joined any more. */
  get abandoned(): boolean {
    return this.#stop.signal.aborted
  }

  abandon(): void {
    this.#stop.abort()
    this.turn.reject(this.#stop.signal.reason)
  }

  join(urgency: Urgency): void {
    this.passengers += 1
    if (urgency > this.urgency) this.urgency = urgency
  }

  leave(): void {
    this.passengers -= 1
    if (this.passengers === 0 && !this.over && !this.hasEvicted) this.abandon()
  }
}

export class Flights {
  readonly #queue: Flight[] = []
  readonly #flying = new Set<Flight>()

  /** Flights that are not over. */
  get size(): number {
    return this.#queue.length + this.#flying.size
  }

  /** Starts or queues a flight. Its code runs in the caller's request, even if it has to wait for its turn. */
  start(flight: Flight): void {
    this.#queue.push(flight)
    flight.done = this.#run(flight)
    this.#pump()
  }

  /**
   * Waits until flights are over. They may end without having brought anything, if they were given up: the caller looks at
   * what there is.
   *
   * @throws what a flight failed with; SparsedgeError `cancelled` if the signal fired
   */
  async landing(
    flights: ReadonlySet<Flight>,
    urgency: Urgency,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    for (const flight of flights) flight.join(urgency)
    try {
      // They wait behind all that came before.
      this.watch()
      for (const flight of flights) {
        await abortable(this.#watch(flight), signal)
        if (flight.failure !== undefined) throw flight.failure
      }
    } finally {
      for (const flight of flights) flight.leave()
    }
  }

  /** Notices, from now on and in the caller's request, if a request takes its flights along when it ends. */
  watch(): void {
    for (const flight of [...this.#flying, ...this.#queue]) void this.#watch(flight)
  }

  async #run(flight: Flight): Promise<void> {
    try {
      await flight.turn.promise
      await flight.fetch(flight.signal)
    } catch (cause) {
      if (!flight.abandoned) flight.failure = cause
    } finally {
      this.#end(flight)
    }
  }

  /** A promise that resolves when the flight is over, even if the request that started it has died. */
  #watch(flight: Flight): Promise<void> {
    return flight.done.catch(() => this.#end(flight))
  }

  #end(flight: Flight): void {
    if (flight.over) return
    flight.over = true
    this.#flying.delete(flight)
    const queued = this.#queue.indexOf(flight)
    if (queued >= 0) this.#queue.splice(queued, 1)
    flight.end()
    this.#pump()
  }

  /** Gives turns while there are lanes and memory. */
  #pump(): void {
    while (this.#flying.size < MAX_IN_FLIGHT) {
      const flight = this.#next()
      if (flight === undefined) return
      if (flight.claim()) {
        this.#queue.splice(this.#queue.indexOf(flight), 1)
        this.#flying.add(flight)
        flight.turn.resolve()
        continue
      }
      // What flies holds memory that nobody has pinned yet, and pumps again when it ends. A guess can be dropped.
      const needed = flight.urgency === NEEDED
      if (needed && this.#flying.size > 0) return
      if (needed)
        flight.failure = new SparsedgeError('arena_too_small', 'more is pinned than the arena holds')
      flight.abandon()
      this.#end(flight)
    }
  }

  /** The first of the most urgent. */
  #next(): Flight | undefined {
    let best = this.#queue[0]
    for (const flight of this.#queue) if (flight.urgency > best.urgency) best = flight
    return best
  }
}
