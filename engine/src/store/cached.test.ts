import { beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest'
import { cached, type ShardCache } from './cached.ts'
import { withDeadline } from './deadline.ts'
import { type MemoryStore, memoryStore } from './memory.ts'
import { shardKey } from './store.ts'
import { verified } from './verified.ts'

// The real Cache API is in test/runtimes/stores; here is one that can be told to misbehave.

const ORIGIN = 'https://llm.example'
const shard = Uint8Array.from({ length: 100_000 }, (_, i) => (i * 7 + (i >> 8)) & 255)
let inner: MemoryStore
let hash: string
let bodies: Map<string, Uint8Array<ArrayBuffer>>
let headers: Headers
let work: Promise<unknown>[]
let calls: string[]

beforeEach(async () => {
  inner = memoryStore()
  hash = await inner.putShard(shard)
  bodies = new Map()
  work = []
  calls = []
})

function cache(overrides: Partial<ShardCache> = {}): ShardCache {
  const counted = <T>(name: string, act: () => Promise<T>) => {
    calls.push(name)
    return act()
  }
  const whole: ShardCache = {
    async match(url) {
      const body = bodies.get(url)
      return body && new Response(body)
    },
    async put(url, response) {
      headers = response.headers
      bodies.set(url, new Uint8Array(await response.arrayBuffer()))
    },
    delete: async (url) => bodies.delete(url),
    ...overrides,
  }
  return {
    match: (url) => counted('match', () => whole.match(url)),
    put: (url, response) => counted('put', () => whole.put(url, response)),
    delete: (url) => counted('delete', () => whole.delete(url)),
  }
}

const KEY = () => `${ORIGIN}/${shardKey(hash)}`
const open = (given: ShardCache, origin: () => string | undefined = () => ORIGIN) =>
  cached(given, inner, { origin, keepAlive: (promise) => work.push(promise) })

/** Reads the shard in two runs; the second's hash may be null. */
async function read(store: ReturnType<typeof open>, wanted = true, signal?: AbortSignal) {
  const bytes = new Uint8Array(shard.length)
  const tier = await store.read(hash, [{ hash: wanted ? hash : null, bytes }], signal)
  expect(bytes).toEqual(shard)
  await Promise.all(work)
  return tier
}

describe('a shard', () => {
  test('comes from the store once, and from the cache from then on', async () => {
    const store = open(cache())
    expect(await read(store)).toBe('memory')
    expect([...bodies]).toEqual([[KEY(), shard]])
    expect(headers.get('Cache-Control')).toBe('public, max-age=31536000, immutable')
    inner.objects.clear()
    expect(await read(store)).toBe('cache')
    expect(await read(open(cache()))).toBe('cache')
  })

  test('is put as it was read, whatever becomes of the memory that it was read into', async () => {
    const bytes = new Uint8Array(shard.length)
    await open(cache()).read(hash, [{ hash, bytes }])
    bytes.fill(0)
    await Promise.all(work)
    expect(bodies.get(KEY())).toEqual(shard)
  })

  test('of which a part was read past is not put', async () => {
    expect(await read(open(cache()), false)).toBe('memory')
    expect(bodies.size).toBe(0)
  })

  test('that is missing everywhere is the store’s to tell, and not kept', async () => {
    inner.objects.clear()
    await expect(read(open(cache()))).rejects.toMatchObject({
      code: 'shard_missing',
      place: { tier: 'memory' },
    })
    expect(bodies.size).toBe(0)
  })

  test('is not put beyond a bound of bytes on their way, but for one that is larger alone', async () => {
    const go = Promise.withResolvers<void>()
    const store = open(cache({ put: (url) => go.promise.then(() => void bodies.set(url, shard)) }))
    const put = async (size: number) => {
      const bytes = new Uint8Array(size).fill(size)
      await store.read(await inner.putShard(bytes.slice()), [{ hash, bytes }])
      return calls.filter((call) => call === 'put').length
    }
    expect(await put(5 << 20)).toBe(1)
    expect(await put(1)).toBe(1)
    go.resolve()
    await Promise.all(work)
    expect(await put(2)).toBe(2)
  })
})

describe('a cached body that is not the shard', () => {
  const flipped = shard.with(70_001, shard[70_001] ^ 4)

  test.each([
    ['wrong in one bit', flipped],
    ['cut off', shard.slice(0, -1)],
    ['too long', Uint8Array.of(...shard.subarray(0, 100), ...shard)],
    ['empty', new Uint8Array()],
  ])('%s, is replaced, and the store asked', async (_, body) => {
    bodies.set(KEY(), body)
    const store = open(cache())
    expect(await read(store)).toBe('memory')
    expect(calls).toContain('delete')
    expect(await read(store)).toBe('cache')
  })

  test('is given up even where what is wrong is not wanted again', async () => {
    bodies.set(KEY(), shard.slice(0, -1))
    expect(await read(open(cache()), false)).toBe('memory')
    expect(bodies.size).toBe(0)
  })

  test('came from a store that was wrong: found out by whoever reads it next', async () => {
    const store = verified(open(cache()))
    inner.objects.set(shardKey(hash), flipped)
    await expect(read(store)).rejects.toMatchObject({
      code: 'shard_hash_mismatch',
      place: { tier: 'memory' },
    })
    await Promise.all(work)
    inner.objects.set(shardKey(hash), shard)
    expect(await read(store)).toBe('memory')
    expect(await read(store)).toBe('cache')
  })
})

describe('a cache that fails', () => {
  const fails = async () => {
    throw new Error('the cache is out of order')
  }

  test.each([
    ['match', { match: fails }],
    ['put', { put: fails }],
    ['match and delete', { match: fails, delete: fails }],
    ['everything', { match: fails, put: fails, delete: fails }],
    ['midway', { match: async () => new Response(new ReadableStream({ pull: fails })) }],
  ])('at %s makes nothing fail', async (_, overrides) => {
    const store = open(cache(overrides))
    expect(await read(store)).toBe('memory')
    expect(await read(store)).toBe('memory')
  })

  test.each([
    ['to answer', () => new Promise<never>(() => {})],
    ['midway', async () => new Response(new ReadableStream({ pull: () => new Promise(() => {}) }))],
  ])('%s is not waited for', async (_, match) => {
    vi.useFakeTimers()
    onTestFinished(() => void vi.useRealTimers())
    const reading = read(open(cache({ match })))
    // Once for the read, once for the look whether what was put is there.
    await vi.advanceTimersByTimeAsync(4000)
    expect(await reading).toBe('memory')
    expect(vi.getTimerCount()).toBe(0)
  })

  test('to be fast keeps what it has: it is sound', async () => {
    vi.useFakeTimers()
    onTestFinished(() => void vi.useRealTimers())
    bodies.set(KEY(), shard)
    const stalls = () => new Response(new ReadableStream({ pull: () => new Promise(() => {}) }))
    const reading = open(cache({ match: async () => stalls() })).read(hash, [
      { hash, bytes: new Uint8Array(shard.length) },
    ])
    await vi.advanceTimersByTimeAsync(2000)
    expect(await reading).toBe('memory')
    expect(calls).not.toContain('delete')
    vi.useRealTimers()
    expect(await read(open(cache()))).toBe('cache')
  })

  test('to answer is left with the request', async () => {
    const stop = new AbortController()
    const reading = read(open(cache({ match: () => new Promise(() => {}) })), true, stop.signal)
    stop.abort()
    await expect(reading).rejects.toMatchObject({ code: 'cancelled' })
  })

  test('to keep anything is left alone after its first put', async () => {
    const store = open(cache({ put: async () => {} }))
    await read(store)
    expect(calls).toEqual(['match', 'put', 'match'])
    await read(store)
    expect(calls).toHaveLength(3)
  })
})

test('what comes from it is digested once', async () => {
  const digest = vi.spyOn(crypto.subtle, 'digest')
  onTestFinished(() => digest.mockRestore())
  const store = verified(withDeadline(open(cache())))
  for (const tier of ['memory', 'cache', 'cache']) {
    digest.mockClear()
    expect(await read(store)).toBe(tier)
    expect(digest).toHaveBeenCalledTimes(1)
  }
})

test('where there is no origin, there is no cache', async () => {
  let origin: string | undefined
  const store = open(cache(), () => origin)
  expect(await read(store)).toBe('memory')
  expect(calls).toEqual([])
  origin = ORIGIN
  await read(store)
  expect(await read(store)).toBe('cache')
})

test('manifests are not cached', async () => {
  inner.putManifest('tiny', Uint8Array.of(1))
  const store = open(cache())
  expect(await store.manifest('tiny')).toEqual(Uint8Array.of(1))
  inner.putManifest('tiny', Uint8Array.of(2))
  expect(await store.manifest('tiny')).toEqual(Uint8Array.of(2))
  expect(calls).toEqual([])
})
