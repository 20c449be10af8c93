/**
 * @module
 * How requests share one backend. Each waits until its sequence has memory, first come, first served; those that have
 * take turns, one step each, so that a long answer does not hold up a short one.
 */
import { abortable } from './abortable.ts'
import type { Sequence } from './backends/backend.ts'
import { SparsedgeError, throwIfCancelled } from './errors.ts'

/** Tokens computed in a row before the event loop gets its turn. Counted, not timed: on Workers clocks stand still while a
 * request computes. */
const SLICE_TOKENS = 4

/** One step at a time, in the order of asking. */
export class Turns {
  #taken = false
  /** Those who have asked for a turn and not had it yet. */
  #coming = 0
  #sliceTokens = SLICE_TOKENS
  readonly #line: (() => void)[] = []

  /**
   * Runs a unit of work when nobody else's runs. Before it, where others want a turn and now and then anyway, the event loop
   * gets its own: steps that never wait for anything would otherwise keep out every other request, and the news that a
   * client has gone.
   *
   * @param tokens that the work computes
   * @throws SparsedgeError `cancelled`; whatever the work throws
   */
  async take<T>(tokens: number, work: () => T | Promise<T>, signal?: AbortSignal): Promise<T> {
    this.#coming += 1
    try {
      if (this.#coming > 1 || this.#sliceTokens >= SLICE_TOKENS) {
        await eventLoop()
        this.#sliceTokens = 0
      }
      throwIfCancelled(signal)
      if (this.#taken) await this.#wait(signal)
      this.#taken = true
    } finally {
      this.#coming -= 1
    }
    this.#sliceTokens += tokens
    try {
      throwIfCancelled(signal)
      const result = work()
      return result instanceof Promise ? await result : result
    } finally {
      this.#pass()
    }
  }

  async #wait(signal: AbortSignal | undefined): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#line.push(resolve)
    try {
      await abortable(promise, signal, () => this.#pass())
    } catch (cause) {
      remove(this.#line, resolve)
      throw cause
    }
  }

  /** Hands the turn to the next in line, without letting go of it in between. */
  #pass(): void {
    const next = this.#line.shift()
    if (next) next()
    else this.#taken = false
  }
}

interface Waiting {
  readonly open: () => Sequence
  readonly resolve: (sequence: Sequence) => void
  readonly reject: (cause: unknown) => void
}

/** Who may have a sequence. */
export class Admission {
  readonly #limit: number
  /** Sequences of those that run. */
  readonly #running = new Set<Sequence>()
  readonly #line: Waiting[] = []

  /** @param limit requests that may be here at once, waiting or running */
  constructor(limit: number) {
    this.#limit = limit
  }

  /**
   * Opens a sequence, now or when those before have left enough memory. Whoever gets one must {@link Admission.leave}.
   *
   * @throws SparsedgeError `queue_full` where there are too many already, `cancelled`; what `open` throws, but for the
   * `queue_full` with which it says that it must wait
   */
  async enter(open: () => Sequence, signal?: AbortSignal): Promise<Sequence> {
    throwIfCancelled(signal)
    if (this.#running.size + this.#line.length >= this.#limit) {
      throw new SparsedgeError('queue_full', `${this.#limit} requests are being served already; try again`)
    }
    const { promise, resolve, reject } = Promise.withResolvers<Sequence>()
    const waiting = { open, resolve, reject }
    this.#line.push(waiting)
    this.#admit()
    try {
      return await abortable(promise, signal, (sequence) => this.leave(sequence))
    } catch (cause) {
      // Who waited at the head may have been all that kept out the next.
      if (remove(this.#line, waiting)) this.#admit()
      throw cause
    }
  }

  /** Closes a sequence and lets in whoever now fits. Does nothing the second time; not while a step of it runs. */
  leave(sequence: Sequence): void {
    if (!this.#running.delete(sequence)) return
    sequence.close()
    this.#admit()
  }

  /** Lets in as many as fit, in order: nobody overtakes, so that a large request gets its memory too. */
  #admit(): void {
    for (let first = this.#line[0]; first; first = this.#line[0]) {
      try {
        const sequence = first.open()
        this.#running.add(sequence)
        first.resolve(sequence)
      } catch (cause) {
        const mustWait = cause instanceof SparsedgeError && cause.code === 'queue_full'
        if (mustWait && this.#running.size > 0) return
        first.reject(cause)
      }
      this.#line.shift()
    }
  }
}

/** @returns whether it was there */
function remove<T>(list: T[], item: T): boolean {
  const place = list.indexOf(item)
  if (place >= 0) list.splice(place, 1)
  return place >= 0
}

/** Lets everything happen that is due. Browsers have no setImmediate; where both exist, a message (workerd) does not let
 * other requests in. */
function eventLoop(): Promise<void> {
  if (typeof setImmediate === 'function') return new Promise((resolve) => void setImmediate(resolve))
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel()
    port1.addEventListener('message', () => {
      port1.close()
      resolve()
    })
    port1.start()
    port2.postMessage(null)
  })
}
