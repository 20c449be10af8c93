/**
 * A store that notes what it is asked for, and answers when it is told to.
 */
import type { ShardStore } from '@sparsedge/engine/store/store'

export interface HeldStore {
  readonly store: ShardStore
  /** The hashes that were read, in order. */
  readonly asked: readonly string[]
  /** Answers what was asked, and from now on at once. */
  release(): void
  /** Fails what was asked. */
  fail(): void
}

export function heldStore(inner: ShardStore): HeldStore {
  const asked: string[] = []
  const held: PromiseWithResolvers<void>[] = []
  let open = false
  return {
    asked,
    store: {
      ...inner,
      async read(hash, into, signal) {
        asked.push(hash)
        if (!open) {
          const turn = Promise.withResolvers<void>()
          held.push(turn)
          signal?.addEventListener('abort', () => turn.reject(signal.reason))
          await turn.promise
        }
        return inner.read(hash, into, signal)
      },
    },
    release() {
      open = true
      for (const turn of held.splice(0)) turn.resolve()
    },
    fail() {
      for (const turn of held.splice(0)) turn.reject(new Error('the store is down'))
    },
  }
}
