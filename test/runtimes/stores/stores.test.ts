import { createServer, type ServerResponse } from 'node:http'
import { fileURLToPath } from 'node:url'
import type { R2Bucket } from '@cloudflare/workers-types'
import { sha256 } from '@sparsedge/engine/store/sha256'
import { manifestKey, shardKey } from '@sparsedge/engine/store/store'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { createTestHarness } from 'wrangler'
import { type TinyPack, tinyPack } from '../../fixtures/tiny.ts'
import type {
  AcquireResult,
  AcquireTask,
  LoadTask,
  ReadResult,
  ReadTask,
  SetUpTask,
  SpoilTask,
} from './worker.ts'

// What Node's streams and promises cannot show: the stores and the residency inside workerd itself.
const harness = createTestHarness({
  workers: [{ configPath: fileURLToPath(new URL('wrangler.toml', import.meta.url)) }],
})
let bucket: R2Bucket

beforeAll(async () => {
  await harness.listen()
  bucket = (await harness.getWorker<{ SHARDS: R2Bucket }>().getEnv()).SHARDS
})
afterAll(() => harness.close())

async function ask<Result>(path: string, task: object): Promise<Result> {
  const response = await harness.fetch(path, { method: 'POST', body: JSON.stringify(task) })
  if (!response.ok) throw new Error(`the Worker answered ${response.status}: ${await response.text()}`)
  return (await response.json()) as Result
}

describe('R2, read in workerd', () => {
  // Larger than the buffer that the bytes come through, and not a multiple of anything.
  const experts = [70_001, 3, 130_007].map((size, i) =>
    Uint8Array.from({ length: size }, (_, at) => (at * (i + 3) + (at >> 8)) & 255),
  )
  const bundle = Uint8Array.from(Buffer.concat(experts))
  const zeros = (size: number) => sha256(new Uint8Array(size))
  let hashes: string[]
  let hash: string
  let task: ReadTask

  beforeAll(async () => {
    hashes = await Promise.all(experts.map(sha256))
    hash = await sha256(bundle)
    task = {
      hash,
      slots: experts.map(({ length }, i) => ({ hash: hashes[i], size: length })),
      gap: 37,
    }
  })

  test('scatters a bundle over slots of a WASM memory', async () => {
    await bucket.put(shardKey(hash), bundle)
    expect(await ask<ReadResult>('/read', task)).toEqual({ tier: 'r2', hashes })
  })

  test.each([false, true])('says that bytes come, behind a cache (%s) too', async (cached) => {
    const bytes = new Uint8Array(300_000).fill(cached ? 1 : 2)
    const hash = await sha256(bytes)
    await bucket.put(shardKey(hash), bytes)
    const one = { hash, slots: [{ hash, size: bytes.length }], gap: 0, cached, count: true }
    // Once when it begins, then with each buffer of 64 KiB at most.
    expect((await ask<ReadResult>('/read', one)).told).toBeGreaterThan(5)
  })

  test('reads of several requests at once do not mix', async () => {
    const shards = await Promise.all(
      Array.from({ length: 24 }, async (_, i) => {
        const bytes = new Uint8Array(60_000 + i * 1111).fill(i)
        const hash = await sha256(bytes)
        await bucket.put(shardKey(hash), bytes)
        return { hash, size: bytes.length }
      }),
    )
    const results = await Promise.all(
      shards.map((slot) => ask<ReadResult>('/read', { hash: slot.hash, slots: [slot], gap: 0 })),
    )
    expect(results).toEqual(shards.map(({ hash }) => ({ tier: 'r2', hashes: [hash] })))
  })

  test.each([
    { fault: 'truncated', damage: () => bundle.slice(1), code: 'shard_too_short', shard: () => hash },
    { fault: 'empty', damage: () => new Uint8Array(), code: 'shard_too_short', shard: () => hash },
    {
      fault: 'extra-long',
      damage: () => Buffer.concat([bundle, Uint8Array.of(0)]),
      code: 'shard_too_long',
      shard: () => hash,
    },
    {
      fault: 'damaged',
      damage: () => bundle.map((byte, at) => (at === 70_003 ? byte ^ 16 : byte)),
      code: 'shard_hash_mismatch',
      shard: () => hashes[1],
    },
    { fault: 'missing', damage: () => undefined, code: 'shard_missing', shard: () => hash },
  ])('a $fault object gives $code and leaves zeros', async ({ damage, code, shard }) => {
    const bytes = damage()
    if (bytes) await bucket.put(shardKey(hash), bytes)
    else await bucket.delete(shardKey(hash))
    expect(await ask<ReadResult>('/read', task)).toEqual({
      error: { code, place: { shard: shard(), tier: 'r2' } },
      hashes: await Promise.all(experts.map(({ length }) => zeros(length))),
    })
  })

  test('a read that is cancelled ends as such', async () => {
    await bucket.put(shardKey(hash), bundle)
    expect(await ask<ReadResult>('/read', { ...task, cancel: true })).toMatchObject({
      error: { code: 'cancelled' },
    })
    expect(await ask<ReadResult>('/read', task)).toEqual({ tier: 'r2', hashes })
  })

  describe('behind the Cache API', () => {
    const read = () => ask<ReadResult>('/read', { ...task, cached: true } satisfies ReadTask)

    test('comes from the bucket once', async () => {
      await bucket.put(shardKey(hash), bundle)
      expect(await read()).toEqual({ tier: 'r2', hashes })
      expect(await read()).toEqual({ tier: 'cache', hashes })
      await bucket.delete(shardKey(hash))
      expect(await read()).toEqual({ tier: 'cache', hashes })
    })

    test.each([
      { fault: 'is cut off', body: 'too short' },
      { fault: 'is too long', body: 'x'.repeat(300_000) },
      { fault: 'has other bytes', body: 'x'.repeat(200_011) },
      { fault: 'is empty', body: '' },
    ])('a cached body that $fault is replaced from the bucket', async ({ body }) => {
      await bucket.put(shardKey(hash), bundle)
      await ask('/spoil', { hash, body } satisfies SpoilTask)
      expect(await read()).toEqual({ tier: 'r2', hashes })
      expect(await read()).toEqual({ tier: 'cache', hashes })
    })
  })

  test('a manifest is read; one that is not there is told', async () => {
    await bucket.put(manifestKey('tiny'), '{"format":"…"}')
    expect(await ask('/manifest', { model: 'tiny' })).toEqual({ text: '{"format":"…"}' })
    for (const model of ['nobody', '../tiny']) {
      expect(await ask('/manifest', { model })).toMatchObject({ error: { code: 'unknown_model' } })
    }
  })
})

// workerd drops whatever a request left running when it ends: not even its `finally` runs. Its promises never settle, and
// those who wait for one in another request see it rejected.
describe('residency over the lives of requests', () => {
  const LAYERS = 4
  const ALL = [0, 1, 2, 3, 4, 5, 6, 7]
  let tiny: TinyPack
  /** Answers that the server keeps back while `held` is set. */
  let held: ServerResponse[] | undefined
  const server = createServer((request, response) => {
    const object = tiny.store.objects.get((request.url ?? '').slice(1))
    if (held && request.url?.startsWith('/shards/')) held.push(response)
    else response.writeHead(object ? 200 : 404).end(object)
  })

  beforeAll(async () => {
    tiny = await tinyPack({ layers: LAYERS, experts: ALL.length })
    await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening))
  })
  afterAll(() => {
    server.closeAllConnections()
    server.close()
  })
  const setUp = async (options: Partial<SetUpTask> = {}) => {
    const address = server.address()
    const port = address !== null && typeof address === 'object' ? address.port : 0
    await ask('/set-up', {
      model: 'tiny',
      url: `http://127.0.0.1:${port}`,
      slots: 2 * ALL.length,
      ...options,
    } satisfies SetUpTask)
  }
  beforeEach(async () => {
    held = undefined
    await setUp()
  })

  const acquire = (task: AcquireTask) => ask<AcquireResult>('/acquire', task)

  async function expectAllSlotsUsable() {
    for (let layer = 0; layer < LAYERS; layer++) {
      expect(await acquire({ layer, routed: ALL })).not.toHaveProperty('error')
    }
    const { resident, capacity } = await acquire({ layer: 0, routed: [] })
    expect(resident).toBe(capacity)
  }

  test('experts stay from one request to the next', async () => {
    expect(await acquire({ layer: 1, routed: [2, 3] })).toMatchObject({ hits: 0, misses: 2, resident: 2 })
    expect(await acquire({ layer: 1, routed: [2, 3] })).toMatchObject({ hits: 2, misses: 0 })
    await expectAllSlotsUsable()
  })

  test.each([
    { what: 'guesses', when: 'at once', path: '/prefetch', leaveAfter: 0 },
    { what: 'guesses', when: 'while they fly', path: '/prefetch', leaveAfter: 200 },
    { what: 'fetches', when: 'at once', path: '/acquire', leaveAfter: 0 },
    { what: 'fetches', when: 'while they fly', path: '/acquire', leaveAfter: 200 },
  ])(
    '$what whose request ended $when are fetched again by the next that needs them',
    async ({ path, leaveAfter }) => {
      held = []
      // Six fly, the seventh and the eighth wait for their turn.
      const leaving = Promise.all([
        ask(path, { layer: 0, routed: [0, 1, 2, 3, 4], leaveAfter } satisfies AcquireTask),
        ask(path, { layer: 1, routed: [5, 6, 7], leaveAfter } satisfies AcquireTask),
      ])
      if (leaveAfter > 0) await expect.poll(() => held?.length).toBe(6)
      await leaving
      held = undefined
      expect(await acquire({ layer: 0, routed: [0, 1, 6] })).toMatchObject({ misses: 3 })
      expect(await acquire({ layer: 1, routed: [5, 6, 7] })).not.toHaveProperty('error')
      await expectAllSlotsUsable()
    },
  )

  test('requests that wait for nothing find their lanes free again, though nobody waits for those that were lost', async () => {
    held = []
    const lost = ask('/prefetch', {
      layer: 0,
      routed: [0, 1, 2, 3, 4],
      leaveAfter: 200,
    } satisfies AcquireTask)
    await ask('/prefetch', { layer: 1, routed: [5], leaveAfter: 200 } satisfies AcquireTask)
    await expect.poll(() => held?.length).toBe(6)
    await lost
    held = undefined
    const loose = { layer: 2, routed: [1, 4], waits: false, leaveAfter: 100 }
    await expect.poll(async () => (await acquire(loose)).hits, { timeout: 5000 }).toBe(2)
    await expectAllSlotsUsable()
  })

  test('a request that waits behind the fetches of one that ends goes on', async () => {
    held = []
    const ending = ask('/prefetch', {
      layer: 2,
      routed: [0, 1, 2, 3, 4, 5],
      leaveAfter: 300,
    } satisfies AcquireTask)
    await expect.poll(() => held?.length).toBe(6)
    held = undefined
    const waiting = acquire({ layer: 3, routed: [7] })
    await ending
    expect(await waiting).toMatchObject({ misses: 1, resident: 1 })
    await expectAllSlotsUsable()
  })

  test('two requests share a flight, and the second does not depend on the first to stay', async () => {
    held = []
    const first = acquire({ layer: 0, routed: [4] })
    await expect.poll(() => held?.length).toBe(1)
    const second = acquire({ layer: 0, routed: [4] })
    const [response] = held
    held = undefined
    response.end(tiny.store.objects.get(shardKey(tiny.manifest.experts.layers[0].shards[4])))
    expect(await Promise.all([first, second])).toEqual([
      expect.objectContaining({ misses: 1, resident: 1 }),
      expect.objectContaining({ resident: 1 }),
    ])
  })
  test.each([
    { whose: 'still runs', leaveAfter: 2000 },
    { whose: 'has ended', leaveAfter: 0 },
  ])(
    'a guess whose request $whose is given up with the request that waits for it',
    async ({ leaveAfter }) => {
      held = []
      const guess = ask('/prefetch', { layer: 0, routed: [2], leaveAfter } satisfies AcquireTask)
      if (leaveAfter > 0) await expect.poll(() => held?.length).toBe(1)
      else await guess
      const leaving = acquire({ layer: 0, routed: [2], cancelAfter: 300 })
      expect(await leaving).toMatchObject({ error: { code: 'cancelled' } })
      held = undefined
      expect(await acquire({ layer: 0, routed: [2] })).toMatchObject({ misses: 1, resident: 1 })
      await guess
      await expectAllSlotsUsable()
    },
  )

  test.each([
    { where: 'before the headers', send: () => {} },
    {
      where: 'within the body',
      send: (response: ServerResponse) => response.writeHead(200).write(new Uint8Array(100)),
    },
  ])('reads that stall $where fail, and give back their turns and their slots', async ({ send }) => {
    await setUp({ answerMs: 500 })
    held = []
    const guesses = ask('/prefetch', {
      layer: 1,
      routed: [0, 1, 2, 3],
      leaveAfter: 1500,
    } satisfies AcquireTask)
    const waiting = acquire({ layer: 0, routed: [3, 5] })
    await expect.poll(() => held?.length).toBe(6)
    for (const response of held) send(response)
    held = undefined
    expect(await waiting).toMatchObject({
      error: { code: 'store_unavailable', place: { model: 'tiny', layer: 0, tier: 'http' } },
    })
    await guesses
    await expectAllSlotsUsable()
  })

  test('a load that stalls fails, and the next request starts a new one', async () => {
    await setUp({ answerMs: 500 })
    held = []
    const [first, second] = await Promise.all([ask('/load', {}), ask('/load', {})])
    const failed = { state: 'failed', error: expect.objectContaining({ code: 'store_unavailable' }) }
    expect([first, second]).toEqual([failed, failed])
    held = undefined
    expect(await ask('/load', {})).toEqual({ state: 'ready' })
  })

  test('a load whose request ended is started anew by those that wait for it, once', async () => {
    held = []
    const ending = ask('/load', { leaveAfter: 500 } satisfies LoadTask)
    await expect.poll(() => held?.length).toBeGreaterThan(0)
    const waiting = [ask('/load', {}), ask('/load', {})]
    held = undefined
    expect(await ending).toEqual({ state: 'loading' })
    expect(await Promise.all(waiting)).toEqual([{ state: 'ready' }, { state: 'ready' }])
    expect(await ask('/load', {})).toEqual({ state: 'ready' })
  })

  test('and by the first that comes later', async () => {
    held = []
    expect(await ask('/load', { leaveAfter: 100 } satisfies LoadTask)).toEqual({ state: 'loading' })
    held = undefined
    expect(await ask('/load', {})).toEqual({ state: 'ready' })
  })
})
