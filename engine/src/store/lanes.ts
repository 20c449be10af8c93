/**
 * @module
 * Many pieces of work, a few at a time.
 */
import { throwIfCancelled } from '../errors.ts'

/** A Worker may wait for the headers of six responses at once; a seventh request would only queue there. */
export const MAX_IN_FLIGHT = 6

/**
 * Runs `work` on every item, in order, at most `limit` at a time. The first failure aborts what is under way. Settles
 * only when nothing runs any more, so that memory handed to `work` is the caller's again.
 *
 * @throws the first failure; `cancelled` if the signal fired
 */
export async function inLanes<T>(
  items: Iterable<T> | AsyncIterable<T>,
  limit: number,
  work: (item: T, signal: AbortSignal) => Promise<void>,
  signal?: AbortSignal,
): Promise<void> {
  const stop = new AbortController()
  const either = signal ? AbortSignal.any([signal, stop.signal]) : stop.signal
  let failure: { cause: unknown } | undefined
  const running = new Set<Promise<void>>()
  const fail = (cause: unknown) => {
    failure ??= { cause }
    stop.abort(cause)
  }
  try {
    for await (const item of items) {
      throwIfCancelled(either)
      const task: Promise<void> = work(item, either)
        .catch(fail)
        .finally(() => running.delete(task))
      running.add(task)
      if (running.size >= limit) await Promise.race(running)
    }
  } catch (cause) {
    fail(cause)
  }
  await Promise.all(running)
  if (failure) throw failure.cause
}
