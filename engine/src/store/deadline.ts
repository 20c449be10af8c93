/**
 * @module
 * The wrapper that makes a store answer in time or fail: a read that stalls must not hold up the load or the step that
 * waits for it, nor its slots and its turn among the reads, for longer than a user would.
 */
import { SparsedgeError } from '../errors.ts'
import { wantedBytes } from './fill.ts'
import type { ShardStore } from './store.ts'

/** For an answer to begin: far above the slowest of object storage, and an expert's read, tried again, still fails within
 * the 30 s that Workers leave a request whose client has gone. */
const ANSWER_MS = 6000
/** Then 8 s for every MiB: six reads at once on a line of 6 Mbit/s are in time. */
const BYTES_PER_MS = 131

/**
 * Fires the signal of a read that takes longer than 6 s and 8 s for every MiB. What such a read still does with the
 * memory is the inner store's to say: this one settles when that has settled, as {@link ShardStore.read} promises.
 *
 * @param answerMs in place of the 6 s
 * @throws SparsedgeError `store_unavailable` where it was too late; what the inner store throws
 */
export function withDeadline(store: ShardStore, answerMs = ANSWER_MS): ShardStore {
  return {
    read(hash, into, signal) {
      const ms = answerMs + wantedBytes(into) / BYTES_PER_MS
      return within(ms, `shard ${hash}`, signal, (either) => store.read(hash, into, either))
    },
    manifest(model, signal) {
      return within(answerMs, 'the manifest', signal, (either) => store.manifest(model, either))
    },
    vouchesFor: (tier) => store.vouchesFor?.(tier) ?? false,
  }
}

async function within<T>(
  ms: number,
  what: string,
  signal: AbortSignal | undefined,
  work: (either: AbortSignal) => Promise<T>,
): Promise<T> {
  const late = new AbortController()
  const timer = setTimeout(() => late.abort(), ms)
  try {
    return await work(signal ? AbortSignal.any([signal, late.signal]) : late.signal)
  } catch (cause) {
    if (!late.signal.aborted || signal?.aborted) throw cause
    const place = cause instanceof SparsedgeError ? cause.place : {}
    const message = `the store did not deliver ${what} within ${Math.ceil(ms / 1000)} s; try again`
    throw new SparsedgeError('store_unavailable', message, place, { cause })
  } finally {
    clearTimeout(timer)
  }
}
