import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { SparsedgeError } from '../errors.ts'
import { withDeadline } from './deadline.ts'
import { memoryStore } from './memory.ts'
import type { ShardStore, Tier } from './store.ts'
import { verified } from './verified.ts'

beforeEach(() => vi.useFakeTimers())
afterEach(() => vi.useRealTimers())

/** A store that never answers, but for `late`, and ends when its signal fires unless it is deaf. */
function stalled({ deaf = false, late }: { deaf?: boolean; late?: Promise<Tier> } = {}): ShardStore {
  const wait = (signal?: AbortSignal) =>
    new Promise<never>((_, reject) => {
      if (!deaf)
        signal?.addEventListener('abort', () => reject(new SparsedgeError('cancelled', '', { tier: 'r2' })))
    })
  return {
    read: (_hash, _into, signal) => Promise.race([wait(signal), ...(late ? [late] : [])]),
    manifest: (_model, signal) => wait(signal),
  }
}

/** What has become of a promise by now. */
async function now(promise: Promise<unknown>) {
  const pending = Symbol('pending')
  const outcome = promise.catch((cause: unknown) => cause)
  await vi.advanceTimersByTimeAsync(0)
  const result = await Promise.race([outcome, Promise.resolve(pending)])
  return result === pending ? 'pending' : result
}

const HASH = 'ab'.repeat(32)
const read = (store: ShardStore, size: number, signal?: AbortSignal) =>
  store.read(HASH, [{ hash: HASH, bytes: new Uint8Array(size).fill(7) }], signal)

describe('a read that stalls', () => {
  test.each([
    { what: 'a small shard, silent', size: 1000, bytesFor: 0, seconds: 6 },
    { what: 'a trunk shard, silent', size: 4 << 20, bytesFor: 0, seconds: 6 },
    { what: 'a trunk shard, silent after 10 s', size: 4 << 20, bytesFor: 10, seconds: 16 },
    { what: 'a trunk shard that trickles', size: 4 << 20, bytesFor: 1000, seconds: 38 },
    { what: 'a large bundle that trickles', size: 64 << 20, bytesFor: 1000, seconds: 518 },
  ])('of $what, fails after $seconds s', async ({ size, bytesFor, seconds }) => {
    const store = stalled()
    const trickling: ShardStore = {
      ...store,
      read(hash, into, signal, progress) {
        for (let second = 1; second <= bytesFor; second++) setTimeout(() => progress?.(), 1000 * second)
        return store.read(hash, into, signal)
      },
    }
    const reading = read(withDeadline(trickling), size)
    reading.catch(() => {})
    await vi.advanceTimersByTimeAsync(seconds * 1000 - 1000)
    expect(await now(reading)).toBe('pending')
    await vi.advanceTimersByTimeAsync(2000)
    expect(await now(reading)).toMatchObject({
      code: 'store_unavailable',
      message: expect.stringMatching(new RegExp(`did not deliver shard abab.* within ${seconds} s`)),
      place: { tier: 'r2' },
    })
  })

  test('of a manifest fails after 6 s', async () => {
    const reading = withDeadline(stalled()).manifest('tiny')
    reading.catch(() => {})
    await vi.advanceTimersByTimeAsync(5999)
    expect(await now(reading)).toBe('pending')
    await vi.advanceTimersByTimeAsync(1)
    expect(await now(reading)).toMatchObject({
      code: 'store_unavailable',
      message: 'the store did not deliver the manifest within 6 s; try again',
    })
  })

  test('is still the caller’s to cancel', async () => {
    const abort = new AbortController()
    const reading = read(withDeadline(stalled()), 1000, abort.signal)
    reading.catch(() => {})
    abort.abort()
    expect(await now(reading)).toMatchObject({ code: 'cancelled' })
    expect(vi.getTimerCount()).toBe(0)
  })

  test('leaves zeros in a store that is verified', async () => {
    const bytes = new Uint8Array(1000).fill(7)
    const reading = verified(withDeadline(stalled())).read(HASH, [{ hash: HASH, bytes }])
    reading.catch(() => {})
    await vi.advanceTimersByTimeAsync(30_000)
    expect(await now(reading)).toMatchObject({ code: 'store_unavailable' })
    expect(bytes).toEqual(new Uint8Array(1000))
  })

  test('is not over while a store that is deaf to its signal may still write', async () => {
    const { promise, resolve } = Promise.withResolvers<Tier>()
    const reading = read(withDeadline(stalled({ deaf: true, late: promise })), 1000)
    await vi.advanceTimersByTimeAsync(60_000)
    expect(await now(reading)).toBe('pending')
    resolve('fs')
    expect(await now(reading)).toBe('fs')
  })
})

test('a store that answers is passed on, failures too, and leaves no timer behind', async () => {
  const inner = memoryStore()
  const hash = await inner.putShard(Uint8Array.of(1, 2, 3))
  inner.putManifest('tiny', Uint8Array.of(4))
  const store = withDeadline(inner)
  const bytes = new Uint8Array(3)
  expect(await store.read(hash, [{ hash, bytes }])).toBe('memory')
  expect(bytes).toEqual(Uint8Array.of(1, 2, 3))
  expect(await store.manifest('tiny')).toEqual(Uint8Array.of(4))
  await expect(read(store, 3)).rejects.toMatchObject({ code: 'shard_missing' })
  await expect(store.manifest('other')).rejects.toMatchObject({ code: 'unknown_model' })
  expect(vi.getTimerCount()).toBe(0)
})
