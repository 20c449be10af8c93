/**
 * @module
 * A backend with another one behind it. When the first one's device goes away, or has no memory left, the second takes its
 * place, and every sequence is told it anew, token by token: the conversation goes on, and nobody else need know.
 */
import { SparsedgeError } from '../errors.ts'
import type { ExpertOptions } from '../request.ts'
import type { Backend, BackendFactory, Logits, Sequence } from './backend.ts'

/** Tokens that are told again in one step. */
const CHUNK = 128

/**
 * A factory whose backend changes to a second one when the first fails for good. Until then the second costs nothing. What
 * keeps the first from being built is the caller's to see.
 *
 * @param onFallback told why, once
 */
export function withFallback(
  first: BackendFactory,
  second: BackendFactory,
  onFallback: (reason: SparsedgeError) => void = () => {},
): BackendFactory {
  return async (pack, signal) =>
    new FallbackBackend(await first(pack, signal), (reason) => {
      onFallback(reason)
      return second(pack)
    })
}

/** Whether a backend failed for what another may have: a device, a feature, memory. */
export function isBackendFailure(cause: unknown): cause is SparsedgeError {
  const codes: readonly string[] = ['backend_unavailable', 'device_lost', 'memory_exhausted']
  return cause instanceof SparsedgeError && codes.includes(cause.code)
}

/** A sequence of whichever backend is in use, and its tokens so far. */
class RetoldSequence implements Sequence {
  length = 0
  readonly capacity: number
  readonly experts: ExpertOptions | undefined
  readonly tokens: Int32Array // [capacity]
  inner: Sequence
  /** Whose `inner` is. */
  owner: Backend
  closed = false

  constructor(owner: Backend, capacity: number, experts: ExpertOptions | undefined) {
    this.inner = owner.open(capacity, experts)
    this.owner = owner
    this.capacity = capacity
    this.experts = experts
    this.tokens = new Int32Array(capacity)
  }

  get usage() {
    return this.inner.usage
  }

  append(tokens: Int32Array): void {
    this.tokens.set(tokens, this.length)
    this.length += tokens.length
  }

  close(): void {
    this.closed = true
    this.inner.close()
  }
}

class FallbackBackend implements Backend {
  #current: Backend
  readonly #build: (reason: SparsedgeError) => Promise<Backend>
  /** The second backend, once it was needed. */
  #second: Promise<Backend> | undefined

  constructor(first: Backend, build: (reason: SparsedgeError) => Promise<Backend>) {
    this.#current = first
    this.#build = build
  }

  get name() {
    return this.#current.name
  }

  get config() {
    return this.#current.config
  }

  get prefillTokens() {
    return this.#current.prefillTokens
  }

  get runs() {
    return this.#current.runs
  }

  get residency() {
    return this.#current.residency
  }

  open(capacity: number, experts?: ExpertOptions): Sequence {
    return new RetoldSequence(this.#current, capacity, experts)
  }

  step(sequence: Sequence, tokens: Int32Array, signal?: AbortSignal): Logits | Promise<Logits> {
    if (!(sequence instanceof RetoldSequence)) throw new TypeError('the sequence is not of this backend')
    if (sequence.owner !== this.#current) return this.#retell(sequence, tokens, signal)
    try {
      const logits = this.#current.step(sequence.inner, tokens, signal)
      if (logits instanceof Promise) return this.#watch(logits, sequence, tokens, signal)
      sequence.append(tokens)
      return logits
    } catch (cause) {
      return this.#recover(cause, sequence, tokens, signal)
    }
  }

  async #watch(
    logits: Promise<Logits>,
    sequence: RetoldSequence,
    tokens: Int32Array,
    signal: AbortSignal | undefined,
  ): Promise<Logits> {
    try {
      const result = await logits
      sequence.append(tokens)
      return result
    } catch (cause) {
      return this.#recover(cause, sequence, tokens, signal)
    }
  }

  async #recover(
    cause: unknown,
    sequence: RetoldSequence,
    tokens: Int32Array,
    signal: AbortSignal | undefined,
  ): Promise<Logits> {
    // A second backend that fails is out of luck.
    if (!isBackendFailure(cause) || this.#second) throw cause
    this.#second = this.#build(cause)
    try {
      this.#current = await this.#second
    } catch (why) {
      this.#second = undefined
      throw why
    }
    return this.#retell(sequence, tokens, signal)
  }

  /** Moves a sequence to the backend in use, then steps. */
  async #retell(
    sequence: RetoldSequence,
    tokens: Int32Array,
    signal: AbortSignal | undefined,
  ): Promise<Logits> {
    if (sequence.closed) throw new RangeError('the sequence is closed')
    const backend = this.#current
    const inner = backend.open(sequence.capacity, sequence.experts)
    try {
      for (let at = 0; at < sequence.length; at += CHUNK) {
        const chunk = sequence.tokens.subarray(at, Math.min(at + CHUNK, sequence.length))
        await backend.step(inner, chunk, signal)
      }
      const logits = await backend.step(inner, tokens, signal)
      sequence.inner.close()
      sequence.inner = inner
      sequence.owner = backend
      sequence.append(tokens)
      return logits
    } catch (cause) {
      inner.close()
      throw cause
    }
  }
}
