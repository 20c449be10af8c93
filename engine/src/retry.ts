/**
 * @module
 * Trying again where that may help: storage that does not answer, answers with too little, or with bytes that something
 * on the way has damaged. What is missing or misshapen stays so, and fails at once.
 */
import { type ErrorCode, SparsedgeError, throwIfCancelled } from './errors.ts'

/** The longest pause before the second attempt; it doubles each time. */
const PAUSE_MS = 50
/** No third attempt begins so long after the first: whoever waits has waited enough. A large shard on a slow line may take
 * longer than that before it stalls, and deserves its second. */
const PATIENCE_MS = 15_000

const PASSING: readonly ErrorCode[] = ['store_unavailable', 'shard_too_short', 'shard_hash_mismatch']

/**
 * Runs a read until it succeeds, at most `attempts` times, with pauses in between that double and vary, so that those who
 * failed together do not come back together.
 *
 * @throws the last failure; `cancelled`
 */
export async function retried<T>(attempts: number, read: () => Promise<T>, signal?: AbortSignal): Promise<T> {
  const started = performance.now()
  for (let attempt = 1; ; attempt++) {
    try {
      return await read()
    } catch (cause) {
      const lasting = cause instanceof SparsedgeError && !PASSING.includes(cause.code)
      const late = attempt > 1 && performance.now() - started > PATIENCE_MS
      if (lasting || late || attempt === attempts || signal?.aborted) throw cause
      await pause(PAUSE_MS * 2 ** (attempt - 1) * (0.5 + Math.random() / 2), signal)
    }
  }
}

async function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  const end = () => resolve()
  const timer = setTimeout(end, ms)
  signal?.addEventListener('abort', end)
  await promise
  signal?.removeEventListener('abort', end)
  clearTimeout(timer)
  throwIfCancelled(signal)
}
