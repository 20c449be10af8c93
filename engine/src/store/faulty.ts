/**
 * @module
 * A store as far away as the real one, and no better: first bytes that take their time, a line that all reads share, six
 * connections, and reads that fail, end early, bring wrong bytes or stall. What becomes of a read depends on the seed, its
 * key and how often that was asked for, not on the order of things. For tests and benchmarks.
 */
import { SparsedgeError, throwIfCancelled } from '../errors.ts'
import { Xoshiro128 } from '../sampling/xoshiro.ts'
import { storeFailure, wantedBytes } from './fill.ts'
import { MAX_IN_FLIGHT } from './lanes.ts'
import type { Destination, Progress, ShardStore } from './store.ts'

/** What happens to reads, each as a share of them, 0 to 1; the rest goes well. */
export interface FaultRates {
  /** Answered with an error instead of a first byte. */
  readonly failed?: number
  /** Ends amid its bytes. */
  readonly truncated?: number
  /** Has one bit flipped. */
  readonly corrupted?: number
  /** Stops amid its bytes, and never goes on. */
  readonly stalled?: number
}

export type Fault = keyof FaultRates

export interface Distance {
  readonly seed: number
  /** Median milliseconds to the first byte. */
  readonly firstByteMs?: number
  /** How they scatter: the standard deviation of their logarithm. .5 puts one in a hundred at 3.2 times the median. */
  readonly spread?: number
  /** Of the line that all connections share; 1 MB/s is 1000. */
  readonly bytesPerMs?: number
  readonly faults?: FaultRates
}

/** What was asked of the store so far. */
export interface Traffic {
  requests: number
  bytes: number
  /** Connections open now, and the most there ever were. */
  open: number
  mostOpen: number
  readonly faults: Record<Fault, number>
}

export interface FaultyStore extends ShardStore {
  readonly traffic: Readonly<Traffic>
}

/** Bytes that a connection sends before another has its turn on the line. */
const SLICE_BYTES = 16 << 10

/**
 * @example
 * const store = faultyStore(memory, { seed: 1, firstByteMs: 30, bytesPerMs: 100_000, faults: { stalled: 0.01 } })
 */
export function faultyStore(inner: ShardStore, distance: Distance): FaultyStore {
  const { seed, firstByteMs = 0, spread = 0, faults = {} } = distance
  const line = new Line(distance.bytesPerMs ?? Number.POSITIVE_INFINITY)
  const connections = new Connections()
  const asked = new Map<string, number>()
  const none = { failed: 0, truncated: 0, corrupted: 0, stalled: 0 }
  const traffic: Traffic = { requests: 0, bytes: 0, open: 0, mostOpen: 0, faults: none }

  /** A request for an object, on a connection of its own. `send` gets what will become of its bytes. */
  async function request<T>(
    key: string,
    signal: AbortSignal | undefined,
    send: (fate: Fate) => Promise<T>,
  ): Promise<T> {
    const attempt = asked.get(key) ?? 0
    asked.set(key, attempt + 1)
    const fate = new Fate(`${seed} ${key} ${attempt}`, faults)
    await connections.take(signal)
    traffic.requests += 1
    traffic.open += 1
    traffic.mostOpen = Math.max(traffic.mostOpen, traffic.open)
    if (fate.fault) traffic.faults[fate.fault] += 1
    try {
      await until(performance.now() + firstByteMs * Math.exp(spread * fate.deviation), signal)
      if (fate.fault === 'failed') throw new SparsedgeError('store_unavailable', `no answer for ${key}: 503`)
      return await send(fate)
    } finally {
      traffic.open -= 1
      connections.giveBack()
    }
  }

  async function transfer(
    bytes: number,
    signal: AbortSignal | undefined,
    progress?: Progress,
  ): Promise<void> {
    traffic.bytes += bytes
    progress?.()
    await line.send(bytes, signal, progress)
  }

  return {
    traffic,

    async read(hash, into, signal, progress) {
      try {
        return await request(hash, signal, async ({ fault, part }) => {
          const bytes = wantedBytes(into)
          const cut = fault === 'truncated' || fault === 'stalled' ? Math.floor(part * bytes) : bytes
          await transfer(cut, signal, progress)
          if (fault === 'stalled') await until(Number.POSITIVE_INFINITY, signal)
          const tier = await inner.read(hash, into, signal)
          // What has come by now lies there, as behind any connection that breaks.
          if (fault === 'truncated') {
            spoil(into, cut, bytes, (run) => run.fill(0))
            throw new SparsedgeError('shard_too_short', `shard ${hash} ended after ${cut} bytes`, { tier })
          }
          const at = Math.floor(part * bytes)
          if (fault === 'corrupted') spoil(into, at, at + 1, flipBit)
          return tier
        })
      } catch (cause) {
        throw storeFailure(cause, 'http', signal, hash)
      }
    },

    /** A manifest has no hash by which a wrong one would be found out: of the faults it has the errors and the stalls. */
    async manifest(model, signal) {
      try {
        return await request(model, signal, async ({ fault }) => {
          if (fault === 'stalled') await until(Number.POSITIVE_INFINITY, signal)
          const bytes = await inner.manifest(model, signal)
          await transfer(bytes.length, signal)
          return bytes
        })
      } catch (cause) {
        throw storeFailure(cause, 'http', signal)
      }
    },
  }
}

/** What is drawn for one read. */
class Fate {
  readonly fault: Fault | undefined
  /** How much of the bytes the fault lets through, 0 to 1. */
  readonly part: number
  /** Standard normal. */
  readonly deviation: number

  constructor(name: string, { failed = 0, truncated = 0, corrupted = 0, stalled = 0 }: FaultRates) {
    const random = new Xoshiro128(fnv1a(name))
    const drawn = random.uniform()
    const bounds: [Fault, number][] = [
      ['failed', failed],
      ['truncated', failed + truncated],
      ['corrupted', failed + truncated + corrupted],
      ['stalled', failed + truncated + corrupted + stalled],
    ]
    this.fault = bounds.find(([, bound]) => drawn < bound)?.[0]
    this.part = random.uniform()
    // Box and Muller
    const radius = Math.sqrt(-2 * Math.log(1 - random.uniform()))
    this.deviation = radius * Math.cos(2 * Math.PI * random.uniform())
  }
}

/** FNV-1a, 32 bits. */
function fnv1a(text: string): number {
  let hash = 0x811c9dc5
  for (const char of text) hash = Math.imul(hash ^ (char.codePointAt(0) ?? 0), 0x01000193)
  return hash >>> 0
}

/** Six at a time, in order of asking. */
class Connections {
  #free = MAX_IN_FLIGHT
  readonly #line: (() => void)[] = []

  async take(signal: AbortSignal | undefined): Promise<void> {
    throwIfCancelled(signal)
    if (this.#free > 0) {
      this.#free -= 1
      return
    }
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const leave = () => {
      this.#line.splice(this.#line.indexOf(resolve), 1)
      reject(signal?.reason)
    }
    this.#line.push(resolve)
    signal?.addEventListener('abort', leave, { once: true })
    await promise
    signal?.removeEventListener('abort', leave)
  }

  giveBack(): void {
    const next = this.#line.shift()
    if (next) next()
    else this.#free += 1
  }
}

/** Sends slice after slice, those of several connections in turn. */
class Line {
  readonly #bytesPerMs: number
  /** When what was booked so far will have been sent. */
  #free = 0

  constructor(bytesPerMs: number) {
    this.#bytesPerMs = bytesPerMs
  }

  async send(bytes: number, signal: AbortSignal | undefined, progress: Progress | undefined): Promise<void> {
    // A sender does not wait for a receiver that is late to wake up: each slice follows the one before it.
    let sent = performance.now()
    for (let left = bytes; left > 0; left -= SLICE_BYTES) {
      sent = Math.max(sent, this.#free) + Math.min(left, SLICE_BYTES) / this.#bytesPerMs
      this.#free = sent
      await until(sent, signal)
      progress?.()
    }
  }
}

/** Changes the bytes of the destinations, taken as one run, from one place to another. */
function spoil(
  into: readonly Destination[],
  from: number,
  to: number,
  change: (run: Uint8Array) => void,
): void {
  let start = 0
  for (const { bytes } of into) {
    const run = bytes.subarray(Math.max(from - start, 0), Math.max(to - start, 0))
    if (run.length > 0) change(run)
    start += bytes.length
  }
}

function flipBit(run: Uint8Array): void {
  run[0] ^= 1
}

/** Waits until that time of `performance.now()`, to the millisecond, as exact as timers are; rejected if the signal fires. */
async function until(time: number, signal: AbortSignal | undefined): Promise<void> {
  throwIfCancelled(signal)
  const milliseconds = Math.round(time - performance.now())
  if (milliseconds <= 0) return
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  const timer = Number.isFinite(time) ? setTimeout(resolve, milliseconds) : undefined
  const stop = () => reject(signal?.reason)
  signal?.addEventListener('abort', stop, { once: true })
  try {
    await promise
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', stop)
  }
}
