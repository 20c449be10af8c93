/**
 * @module
 * A Worker that reads from R2 as it is told, and that holds experts and an engine from a slow server over the lives of its
 * requests.
 */
import type { R2Bucket } from '@cloudflare/workers-types'
import { createEngine, type Engine } from '@sparsedge/engine'
import { SparsedgeError } from '@sparsedge/engine/errors'
import { parseManifest } from '@sparsedge/engine/pack/manifest'
import { referenceBackend } from '@sparsedge/engine/reference'
import { DEFAULT_EXPERTS } from '@sparsedge/engine/request'
import { type ArenaResidency, createResidency } from '@sparsedge/engine/residency/arena'
import type { Account, Routing } from '@sparsedge/engine/residency/residency'
import { ExpertUsage } from '@sparsedge/engine/residency/usage'
import { cached, type ShardCache } from '@sparsedge/engine/store/cached'
import { withDeadline } from '@sparsedge/engine/store/deadline'
import { httpStore } from '@sparsedge/engine/store/http'
import { r2Store } from '@sparsedge/engine/store/r2'
import { sha256 } from '@sparsedge/engine/store/sha256'
import { shardKey } from '@sparsedge/engine/store/store'
import { verified } from '@sparsedge/engine/store/verified'
import { type Once, once } from '../../../functions/src/once.ts'

/** Reads a shard into slots of a WASM memory, which are `gap` bytes apart. */
export interface ReadTask {
  readonly hash: string
  readonly slots: readonly { readonly hash: string | null; readonly size: number }[]
  readonly gap: number
  /** Cancels the read at once. */
  readonly cancel?: boolean
  /** Has the Cache API before the bucket, and waits for what is put there. */
  readonly cached?: boolean
  /** Counts how often the store says that the read goes on. */
  readonly count?: boolean
}

export interface ReadResult {
  readonly tier?: string
  /** Of each slot's bytes, afterwards. */
  readonly hashes: readonly string[]
  /** How often the store has said that the read goes on. */
  readonly told?: number
  readonly error?: { readonly code: string; readonly place: object }
}

/** Puts something else in a shard's place in the cache. */
export interface SpoilTask {
  readonly hash: string
  readonly body: string
}

/** Makes the residency anew, and forgets the engine. */
export interface SetUpTask {
  readonly model: string
  readonly url: string
  readonly slots: number
  /** The store's deadline. */
  readonly answerMs?: number
}

export interface AcquireTask {
  readonly layer: number
  readonly routed: readonly number[]
  /** Answers after so many milliseconds, though the experts have not come: the request ends over its fetches. */
  readonly leaveAfter?: number
  /** False: makes do with what is resident, as `resident_first` does while it decodes. */
  readonly waits?: boolean
  /** Gives up waiting after so many milliseconds. */
  readonly cancelAfter?: number
}

export interface LoadTask {
  /** Answers after so many milliseconds, though the engine is not there: the request ends over its loading. */
  readonly leaveAfter?: number
}

export interface AcquireResult {
  readonly resident: number
  readonly capacity: number
  readonly hits: number
  readonly misses: number
  readonly error?: { readonly code: string; readonly place: object }
}

const ORIGIN = 'https://stores.example'
declare const caches: { readonly default: ShardCache }

let residency: ArenaResidency
let engine: Once<Engine>
let layers: number

const handlers: Record<string, (task: never, bucket: R2Bucket) => Promise<unknown>> = {
  '/read': async (task: ReadTask, bucket): Promise<ReadResult> => {
    const bytes = task.slots.reduce((sum, { size }) => sum + size + task.gap, 0)
    const memory = new WebAssembly.Memory({ initial: Math.ceil(bytes / 65536) })
    let offset = 0
    const into = task.slots.map(({ hash, size }) => {
      const slot = { hash, bytes: new Uint8Array(memory.buffer, offset, size) }
      offset += size + task.gap
      return slot
    })
    const abort = new AbortController()
    const background: Promise<unknown>[] = []
    const bucketStore = r2Store(bucket)
    const options = { origin: () => ORIGIN, keepAlive: (work: Promise<unknown>) => background.push(work) }
    const store = task.cached ? cached(caches.default, bucketStore, options) : bucketStore
    let told = 0
    const progress = () => {
      told += 1
    }
    const reading = verified(store).read(task.hash, into, abort.signal, progress)
    if (task.cancel) abort.abort()
    const result = await reading.then((tier) => ({ tier }), failure)
    await Promise.all(background)
    const hashes = await Promise.all(into.map((slot) => sha256(slot.bytes)))
    return { ...result, hashes, ...(task.count && { told }) }
  },

  '/spoil': async ({ hash, body }: SpoilTask) => {
    const headers = { 'Cache-Control': 'max-age=60' }
    await caches.default.put(`${ORIGIN}/${shardKey(hash)}`, new Response(body, { headers }))
    return {}
  },

  '/manifest': async ({ model }: { model: string }, bucket) =>
    r2Store(bucket)
      .manifest(model)
      .then((bytes) => ({ text: new TextDecoder().decode(bytes) }), failure),

  '/set-up': async ({ model, url, slots, answerMs }: SetUpTask) => {
    const store = withDeadline(httpStore(url), answerMs)
    const manifest = parseManifest(await store.manifest(model))
    const slotBytes = manifest.experts.bytes
    layers = manifest.config.layers
    residency = createResidency({ manifest, store, arena: new Uint8Array(slots * slotBytes), slotBytes })
    engine = once(() => createEngine({ store, model, backend: referenceBackend() }))
    return {}
  },

  '/load': async ({ leaveAfter }: LoadTask) => {
    const loaded = engine.get().then(() => ({}), failure)
    const result = await (leaveAfter === undefined ? loaded : sleep(leaveAfter))
    return { state: engine.state, ...result }
  },

  '/acquire': async (task: AcquireTask): Promise<AcquireResult> => {
    const { layer, routed, leaveAfter, waits = true, cancelAfter } = task
    const account = newAccount(waits)
    const signal = cancelAfter === undefined ? undefined : AbortSignal.timeout(cancelAfter)
    const acquired = residency.acquire(layer, routing(routed), account, signal)
    const result = await (leaveAfter === undefined ? acquired?.then(() => ({}), failure) : sleep(leaveAfter))
    residency.release(layer)
    const { resident, capacity } = residency
    return { resident, capacity, hits: account.usage.hits, misses: account.usage.misses, ...result }
  },

  '/prefetch': async ({ layer, routed, leaveAfter = 0 }: AcquireTask) => {
    residency.prefetch(layer, routing(routed), newAccount())
    await sleep(leaveAfter)
    return {}
  },
}

const newAccount = (mayWait = true): Account => ({
  options: { ...DEFAULT_EXPERTS, policy: mayWait ? 'exact' : 'resident_first' },
  usage: new ExpertUsage(layers),
  mayWait,
})

const routing = (routed: readonly number[]): Routing => ({
  routed: Uint16Array.from(routed),
  uses: new Uint16Array(routed.length).fill(1),
  count: routed.length,
  tokens: 1,
})

const sleep = (milliseconds: number) => new Promise<void>((done) => setTimeout(done, milliseconds))

function failure(error: unknown) {
  if (!(error instanceof SparsedgeError)) throw error
  return { error: { code: error.code, place: error.place } }
}

export default {
  async fetch(request: Request, env: { readonly SHARDS: R2Bucket }): Promise<Response> {
    const handler = handlers[new URL(request.url).pathname]
    return Response.json(await handler((await request.json()) as never, env.SHARDS))
  },
}
