/**
 * @module
 * A value that is expensive to make, made at most once at a time and kept.
 */

export interface Once<T> {
  /** Makes the value on the first call. Callers that come while it is being made share that one attempt; after a failure
   * the next caller starts a new one. */
  get(): Promise<T>
  readonly state: 'cold' | 'loading' | 'ready' | 'failed'
}

/**
 * @example
 * const engine = once(() => createEngine({ store, model, backend }))
 * const { manifest } = await engine.get()
 */
export function once<T>(make: () => Promise<T>): Once<T> {
  let attempt: Promise<T> | undefined
  let state: Once<T>['state'] = 'cold'
  return {
    get() {
      if (!attempt) {
        state = 'loading'
        attempt = make().then(
          (value) => {
            state = 'ready'
            return value
          },
          (error) => {
            state = 'failed'
            attempt = undefined
            throw error
          },
        )
      }
      return attempt
    },
    get state() {
      return state
    },
  }
}
