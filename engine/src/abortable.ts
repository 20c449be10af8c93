/**
 * @module
 * Waiting that can be called off.
 */
import { throwIfCancelled } from './errors.ts'

/**
 * Waits for a promise that knows no signal, until the signal fires. The work behind it goes on.
 *
 * @param discard takes a result that comes too late, so that what it holds is let go
 * @throws SparsedgeError `cancelled`; whatever the promise is rejected with
 */
export async function abortable<T>(
  promise: Promise<T>,
  signal: AbortSignal | undefined,
  discard?: (late: T) => void,
): Promise<T> {
  if (!signal) return promise
  let stop = () => {}
  const stopped = new Promise<never>((_, reject) => {
    stop = () => reject(signal.reason)
    if (signal.aborted) stop()
    else signal.addEventListener('abort', stop, { once: true })
  })
  try {
    return await Promise.race([promise, stopped])
  } catch (cause) {
    if (signal.aborted) promise.then(discard, () => {})
    throwIfCancelled(signal)
    throw cause
  } finally {
    signal.removeEventListener('abort', stop)
  }
}
