/**
 * @module
 * The queue of fetches: a few fly at once, those that a step waits for before those that are only expected to be
 * needed. A flight belongs to nobody: whoever needs what it brings waits for it, and one that everybody has left is
 * given up.
 */
import { abortable } from '../abortable.ts'
import { SparsedgeError } from '../errors.ts'
import { MAX_IN_FLIGHT } from '../store/lanes.ts'

export abstract class Flight {
  /** Nobody has to wait for it: it was started by a guess, and goes on though all have left. */
  readonly #background: boolean
  readonly #stop = new AbortController()
  readonly turn = Promise.withResolvers<void>()
  /** A step waits for it. */
  urgent: boolean
  passengers = 0
  over = false
  failure: unknown
  /**
   * Resolves when the flight is over, well or not. It rejects only where the runtime has ended the request that started
   * the flight (Workers do, and drop whatever still ran for it): then somebody else must end it.
   */
  done: Promise<void> = Promise.resolve()

  constructor(urgent: boolean) {
    this.urgent = urgent
    this.#background = !urgent
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

  join(): void {
    this.passengers += 1
    this.urgent = true
  }

  leave(): void {
    this.passengers -= 1
    if (this.passengers === 0 && !this.#background && !this.over) this.abandon()
  }
}

export class Flights {
  readonly #queue: Flight[] = []
  readonly #flying = new Set<Flight>()

  /** Starts or queues a flight. Its code runs in the caller's request, even if it has to wait for its turn. */
  start(flight: Flight): void {
    // It waits behind these, so somebody has to notice if they have died.
    for (const other of this.#all()) void this.#watch(other)
    this.#queue.push(flight)
    flight.done = this.#run(flight)
    this.#pump()
  }

  /**
   * Waits until a flight, which the caller has joined, is over. It may end without having brought anything, if it was
   * given up: the caller looks at what there is.
   *
   * @throws what the flight failed with; SparsedgeError `cancelled` if the signal fired
   */
  async landing(flight: Flight, signal: AbortSignal | undefined): Promise<void> {
    await abortable(this.#watch(flight), signal)
    if (flight.failure !== undefined) throw flight.failure
  }

  /** Resolves when nothing flies and nothing is queued. */
  async settled(): Promise<void> {
    while (this.#flying.size + this.#queue.length > 0) {
      await Promise.all([...this.#all()].map((flight) => this.#watch(flight)))
    }
  }

  *#all(): Iterable<Flight> {
    yield* this.#flying
    yield* this.#queue
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
      const flight = this.#queue.find(({ urgent }) => urgent) ?? this.#queue[0]
      if (flight === undefined) return
      if (flight.claim()) {
        this.#queue.splice(this.#queue.indexOf(flight), 1)
        this.#flying.add(flight)
        flight.turn.resolve()
        continue
      }
      // What flies holds memory that nobody has pinned yet, and pumps again when it ends. A guess can be dropped.
      if (flight.urgent && this.#flying.size > 0) return
      if (flight.urgent)
        flight.failure = new SparsedgeError('arena_too_small', 'more is pinned than the arena holds')
      flight.abandon()
      this.#end(flight)
    }
  }
}
