/**
 * @module
 * A value that is expensive to make, made at most once at a time and kept.
 */

export interface Once<T> {
  /**
   * Makes the value on the first call. Callers that come while it is being made share that one attempt; after a failure
   * the next caller starts a new one.
   */
  get(): Promise<T>
  readonly state: 'cold' | 'loading' | 'ready' | 'failed'
}

class Attempt<T> {
  state: 'loading' | 'ready' | 'failed' = 'loading'
  readonly value: Promise<T>

  constructor(make: () => Promise<T>) {
    this.value = this.#run(make)
  }

  async #run(make: () => Promise<T>): Promise<T> {
    try {
      const value = await make()
      this.state = 'ready'
      return value
    } catch (error) {
      this.state = 'failed'
      throw error
    }
  }
}

/**
 * @example
 * const engine = once(() => createEngine({ store, model, backend }))
 * const { manifest } = await engine.get()
 */
export function once<T>(make: () => Promise<T>): Once<T> {
  let latest: Attempt<T> | undefined
  return {
    async get() {
      if (!latest || latest.state === 'failed') latest = new Attempt(make)
      for (;;) {
        const attempt: Attempt<T> = latest
        try {
          return await attempt.value
        } catch (error) {
          if (attempt.state === 'failed') throw error
          // A rejection that the attempt itself knows nothing of: the request that made it has ended, and Workers have
          // dropped all that it left behind. The first to notice makes a new attempt, in its own request.
          if (latest === attempt) latest = new Attempt(make)
        }
      }
    },
    get state() {
      return latest?.state ?? 'cold'
    },
  }
}
