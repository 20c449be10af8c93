/**
 * @module
 * The wrapper that makes a store answer in time or fail: a read that stalls must not hold up the load or the step that
 * waits for it, nor its slots and its turn among the reads, for longer than a user would.
 */
import { SparsedgeError } from '../errors.ts'
import { wantedBytes } from './fill.ts'
import type { Progress, ShardStore } from './store.ts'

/** The longest silence, before the answer begins or amid its bytes: far above the slowest of object storage, and an
 * expert's read, tried again, still fails within the 30 s that Workers leave a request whose client has gone. */
const SILENCE_MS = 6000
/** All in all 8 s more for every MiB: six reads at once on a line of 6 Mbit/s are in time. */
const BYTES_PER_MS = 131

/**
 * Fires the signal of a read from which nothing has come for 6 s, and of one that takes longer than 6 s and 8 s for every
 * MiB, though it trickles. What such a read still does with the memory is the inner store's to say: this one settles when
 * that has settled, as {@link ShardStore.read} promises.
 *
 * @param silenceMs in place of the 6 s
 * @throws SparsedgeError `store_unavailable` where it was too late; what the inner store throws
 */
export function withDeadline(store: ShardStore, silenceMs = SILENCE_MS): ShardStore {
  return {
    read(hash, into, signal, progress) {
      const limits = { silenceMs, totalMs: silenceMs + wantedBytes(into) / BYTES_PER_MS }
      return within(limits, `shard ${hash}`, signal, (either, heard) => {
        const both = () => {
          heard()
          progress?.()
        }
        return store.read(hash, into, either, both)
      })
    },
    manifest(model, signal) {
      const limits = { silenceMs, totalMs: silenceMs }
      return within(limits, 'the manifest', signal, (either) => store.manifest(model, either))
    },
    vouchesFor: (tier) => store.vouchesFor?.(tier) ?? false,
  }
}

async function within<T>(
  { silenceMs, totalMs }: { readonly silenceMs: number; readonly totalMs: number },
  what: string,
  signal: AbortSignal | undefined,
  work: (either: AbortSignal, heard: Progress) => Promise<T>,
): Promise<T> {
  const late = new AbortController()
  const started = performance.now()
  let heard = started
  // Bytes come far more often than anyone is late: they note the time, and the timer looks at it when it fires.
  const look = () => {
    const left = Math.min(heard + silenceMs, started + totalMs) - performance.now()
    if (left <= 0) late.abort()
    else timer = setTimeout(look, Math.ceil(left))
  }
  let timer = setTimeout(look, silenceMs)
  try {
    return await work(signal ? AbortSignal.any([signal, late.signal]) : late.signal, () => {
      heard = performance.now()
    })
  } catch (cause) {
    if (!late.signal.aborted || signal?.aborted) throw cause
    const place = cause instanceof SparsedgeError ? cause.place : {}
    const seconds = Math.max(Math.round((performance.now() - started) / 1000), 1)
    const message = `the store did not deliver ${what} within ${seconds} s; try again`
    throw new SparsedgeError('store_unavailable', message, place, { cause })
  } finally {
    clearTimeout(timer)
  }
}
