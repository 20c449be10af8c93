/**
 * @module
 * An edge cache before a store: what a data centre has read once, its other isolates need not fetch from afar. It holds
 * whole shards, under keys that never change their meaning, and is trusted no more than any store. Manifests are not
 * cached: they change.
 */
import { abortable } from '../abortable.ts'
import { type ErrorCode, SparsedgeError, throwIfCancelled } from '../errors.ts'
import { wantedBytes } from './fill.ts'
import { type ByteStream, scatter } from './scatter.ts'
import { type Destination, IMMUTABLE, type ShardStore, shardKey } from './store.ts'
import { verify } from './verified.ts'

/** What is used of the Cache API; the runtimes' own types differ in the rest. */
export interface ShardCache {
  match(
    url: string,
  ): Promise<{ readonly body: (ByteStream & { cancel(): Promise<void> }) | null } | undefined>
  put(url: string, response: Response): Promise<void>
  delete(url: string): Promise<boolean>
}

export interface CacheOptions {
  /** The server's own, such as `https://llm.example`: keys must be URLs, and Workers would look up a foreign host's name.
   * Undefined: there is no cache now. */
  readonly origin: () => string | undefined
  /** Lets what is being put outlive its request: `waitUntil`. */
  readonly keepAlive: (work: Promise<unknown>) => void
}

/** Copies of shards on their way into the cache. Where shards come faster than the cache takes them, the others are cached
 * by whoever misses them next. */
const MAX_PENDING_BYTES = 4 << 20
/** A cache that takes longer is not near: the store is asked. */
const NEAR_MS = 2000
/** What a read fails with if the bytes are wrong, rather than slow or not to be had. */
const WRONG_BYTES: ReadonlySet<ErrorCode> = new Set([
  'shard_too_short',
  'shard_too_long',
  'shard_hash_mismatch',
])
/** A put that takes longer was dropped with its request, and its copy with it. */
const PUT_MS = 60_000

/**
 * Reads from the cache what it has, the rest from the store, and puts that into the cache behind the caller's back. A
 * cached body that is not the shard is deleted; one that is slow, or fails midway, is left until it is put again. Either
 * way the store is asked: the cache can make nothing fail.
 *
 * Where the Cache API does nothing (on workers.dev), that is noticed at the first put, and it is left alone.
 */
export function cached(
  cache: ShardCache,
  store: ShardStore,
  { origin, keepAlive }: CacheOptions,
): ShardStore {
  /** Undefined until a put has shown it. */
  let works: boolean | undefined
  const pending = new Set<{ readonly bytes: number; readonly started: number }>()

  /** @returns whether the cache has it; throws if what it has is not the shard. */
  async function readCached(
    url: string,
    hash: string,
    into: readonly Destination[],
    signal: AbortSignal,
  ): Promise<boolean> {
    const found = await find(url, signal)
    if (!found?.body) return false
    await scatter(found.body, undefined, into, hash, 'cache', signal)
    await verify(into, 'cache')
    return true
  }

  function find(url: string, signal: AbortSignal) {
    return abortable(cache.match(url), signal, (late) => late?.body?.cancel())
  }

  function keep(url: string, into: readonly Destination[]): void {
    const bytes = wantedBytes(into)
    // What nobody wanted of a bundle is not there to be kept.
    if (into.some(({ hash }) => hash === null) || !roomFor(bytes)) return
    const put = { bytes, started: performance.now() }
    pending.add(put)
    keepAlive(
      putShard(url, copyOf(into, bytes))
        .catch(() => {})
        .finally(() => pending.delete(put)),
    )
  }

  function roomFor(bytes: number): boolean {
    let sum = 0
    for (const put of pending) {
      if (performance.now() - put.started > PUT_MS) pending.delete(put)
      else sum += put.bytes
    }
    return sum === 0 || sum + bytes <= MAX_PENDING_BYTES
  }

  async function putShard(url: string, shard: Uint8Array<ArrayBuffer>): Promise<void> {
    const headers = { 'Content-Type': 'application/octet-stream', 'Cache-Control': IMMUTABLE }
    await cache.put(url, new Response(shard, { headers }))
    if (works !== undefined) return
    const found = await inTime((signal) => find(url, signal))
    works = found !== undefined
    await found?.body?.cancel()
  }

  return {
    async read(hash, into, signal, progress) {
      const host = origin()
      if (host === undefined || works === false) return await store.read(hash, into, signal, progress)
      const url = `${host}/${shardKey(hash)}`
      try {
        if (await inTime((either) => readCached(url, hash, into, either), signal)) return 'cache'
      } catch (cause) {
        throwIfCancelled(signal)
        if (isWrong(cause)) keepAlive(cache.delete(url).catch(() => {}))
      }
      // Its time begins now, not with the look into the cache.
      progress?.()
      const tier = await store.read(hash, into, signal, progress)
      keep(url, into)
      return tier
    },

    manifest: (model, signal) => store.manifest(model, signal),
    vouchesFor: (tier) => tier === 'cache' || (store.vouchesFor?.(tier) ?? false),
  }
}

function isWrong(cause: unknown): boolean {
  return cause instanceof SparsedgeError && WRONG_BYTES.has(cause.code)
}

/** Gives the work a signal that fires when it has taken longer than a cache may, or when the caller's does. */
async function inTime<T>(work: (signal: AbortSignal) => Promise<T>, caller?: AbortSignal): Promise<T> {
  const late = new AbortController()
  const timer = setTimeout(() => late.abort(), NEAR_MS)
  try {
    return await work(caller ? AbortSignal.any([caller, late.signal]) : late.signal)
  } finally {
    clearTimeout(timer)
  }
}

/** The bytes as they are now: the caller's memory may hold something else in a moment. */
function copyOf(into: readonly Destination[], size: number): Uint8Array<ArrayBuffer> {
  const copy = new Uint8Array(size)
  let at = 0
  for (const { bytes } of into) {
    copy.set(bytes, at)
    at += bytes.length
  }
  return copy
}
