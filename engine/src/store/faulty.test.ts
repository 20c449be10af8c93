import fc from 'fast-check'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { type Distance, faultyStore } from './faulty.ts'
import { memoryStore } from './memory.ts'
import { sha256 } from './sha256.ts'
import type { ShardStore } from './store.ts'

beforeEach(() => {
  vi.useFakeTimers()
})
afterEach(() => {
  vi.useRealTimers()
})

const SIZE = 100_000
const inner = memoryStore()
const hashes = await Promise.all(
  Array.from({ length: 400 }, (_, i) => {
    const shard = new Uint8Array(i < 40 ? SIZE : 7).fill(1 + (i % 200))
    shard[6] = 1 + Math.floor(i / 200)
    return inner.putShard(shard)
  }),
)
inner.putManifest('tiny', Uint8Array.of(1, 2, 3))

/** How a read ended, and when. */
interface End {
  readonly outcome: string
  readonly ms: number
  readonly bytes: Uint8Array<ArrayBuffer>
}

/** Reads a shard of 100,000 or, from the 40th on, of 7 bytes. */
async function read(store: ShardStore, index: number, signal?: AbortSignal): Promise<End> {
  const hash = hashes[index]
  const bytes = new Uint8Array(index < 40 ? SIZE : 7)
  const started = performance.now()
  const outcome = await store.read(hash, [{ hash, bytes }], signal).catch(({ code }) => code)
  const ms = performance.now() - started
  const right = outcome !== 'memory' || (await sha256(bytes)) === hash
  return { outcome: right ? outcome : 'wrong bytes', ms, bytes }
}

/** Lets time pass until a promise has settled. */
async function passing<T>(promise: Promise<T>, steps = 20_000): Promise<T> {
  let settled = false
  promise.then(
    () => {
      settled = true
    },
    () => {
      settled = true
    },
  )
  for (let i = 0; i < steps && !settled; i++) await vi.advanceTimersByTimeAsync(1)
  return promise
}

describe('its distance', () => {
  test.each([
    { what: 'the first byte', distance: { firstByteMs: 30 }, reads: 1, ms: 30 },
    { what: 'the bytes', distance: { bytesPerMs: 1000 }, reads: 1, ms: 100 },
    { what: 'both', distance: { firstByteMs: 30, bytesPerMs: 1000 }, reads: 1, ms: 130 },
    { what: 'one line for all', distance: { firstByteMs: 30, bytesPerMs: 1000 }, reads: 5, ms: 530 },
    { what: 'six first bytes at once', distance: { firstByteMs: 30 }, reads: 6, ms: 30 },
    { what: 'the seventh after the first', distance: { firstByteMs: 30 }, reads: 7, ms: 60 },
    { what: 'rounds of six', distance: { firstByteMs: 30 }, reads: 36, ms: 180 },
  ])('$what: $reads reads take $ms ms', async ({ distance, reads, ms }) => {
    const store = faultyStore(inner, { seed: 1, ...distance })
    const ends = await passing(Promise.all(Array.from({ length: reads }, (_, i) => read(store, i))))
    expect(ends.map(({ outcome }) => outcome)).toEqual(ends.map(() => 'memory'))
    expect(Math.max(...ends.map((end) => end.ms))).toBeCloseTo(ms, -0.5)
    expect(store.traffic).toMatchObject({ requests: reads, bytes: reads * SIZE, open: 0 })
    expect(store.traffic.mostOpen).toBe(Math.min(reads, 6))
  })

  test('the line is shared evenly: a small read does not wait for the large ones before it', async () => {
    const store = faultyStore(inner, { seed: 1, bytesPerMs: 100 })
    const ends = await passing(Promise.all([0, 1, 2, 50].map((index) => read(store, index))))
    // Two slices of each of the others, at most.
    expect(ends[3].ms).toBeLessThan((6 * 16_384) / 100)
    expect(ends[2].ms).toBeCloseTo(3000, -1)
  })

  test('first bytes scatter about their median, some far', async () => {
    const store = faultyStore(inner, { seed: 3, firstByteMs: 100, spread: 0.5 })
    const times: number[] = []
    for (let i = 40; i < 400; i++) times.push((await passing(read(store, i))).ms)
    times.sort((a, b) => a - b)
    expect(times[180]).toBeGreaterThan(85)
    expect(times[180]).toBeLessThan(117)
    expect(times[356]).toBeGreaterThan(230)
    expect(times[0]).toBeGreaterThan(10)
  })

  test('a manifest is as far away', async () => {
    const store = faultyStore(inner, { seed: 1, firstByteMs: 30 })
    const started = performance.now()
    expect(await passing(store.manifest('tiny'))).toEqual(Uint8Array.of(1, 2, 3))
    expect(performance.now() - started).toBeCloseTo(30, -0.5)
    await expect(passing(store.manifest('other'))).rejects.toMatchObject({ code: 'unknown_model' })
  })
})

describe('its faults', () => {
  const all = (rate: string): Distance => ({ seed: 5, faults: { [rate]: 1 } })

  test.each([
    { fault: 'failed', outcome: 'store_unavailable' },
    { fault: 'truncated', outcome: 'shard_too_short' },
    { fault: 'corrupted', outcome: 'wrong bytes' },
  ])('$fault reads end with $outcome', async ({ fault, outcome }) => {
    const store = faultyStore(inner, all(fault))
    for (let i = 0; i < 10; i++) expect((await passing(read(store, i))).outcome).toBe(outcome)
    expect(store.traffic.faults).toMatchObject({ [fault]: 10 })
  })

  test('a truncated read leaves what has come; a corrupted one has a single wrong bit', async () => {
    const right = new Uint8Array(SIZE).fill(1)
    const cut = (await read(faultyStore(inner, all('truncated')), 0)).bytes
    const end = cut.indexOf(0)
    expect(cut.subarray(0, end)).toEqual(right.subarray(0, end))
    expect(cut.subarray(end)).toEqual(new Uint8Array(SIZE - end))
    const flipped = (await read(faultyStore(inner, all('corrupted')), 0)).bytes
    const wrong = [...flipped.keys()].filter((at) => flipped[at] !== 1)
    expect(wrong).toHaveLength(1)
    expect(flipped[wrong[0]]).toBe(0)
  })

  test('a stalled read ends only with its signal, and gives its connection back', async () => {
    const store = faultyStore(inner, all('stalled'))
    const stop = new AbortController()
    const ends = Promise.all(Array.from({ length: 8 }, (_, i) => read(store, i, stop.signal)))
    const waiting = Promise.race([ends, vi.advanceTimersByTimeAsync(3_600_000).then(() => 'waiting')])
    expect(await waiting).toBe('waiting')
    expect(store.traffic.open).toBe(6)
    stop.abort()
    expect((await ends).map(({ outcome }) => outcome)).toEqual(Array(8).fill('cancelled'))
    expect(store.traffic).toMatchObject({ open: 0, requests: 6 })
    const next = new AbortController()
    const again = read(store, 0, next.signal)
    await vi.advanceTimersByTimeAsync(1)
    expect(store.traffic.open).toBe(1)
    next.abort()
    expect((await again).outcome).toBe('cancelled')
  })

  test('come as often as asked for, and a second attempt has its own luck', async () => {
    const faults = { failed: 0.05, truncated: 0.02, corrupted: 0.02 }
    const store = faultyStore(inner, { seed: 11, faults })
    const rounds: string[][] = []
    for (let round = 0; round < 5; round++) {
      rounds.push((await Promise.all(hashes.map((_, i) => read(store, i)))).map(({ outcome }) => outcome))
    }
    const share = (count: number) => count / (5 * hashes.length)
    expect(share(store.traffic.faults.failed)).toBeCloseTo(0.05, 1.7)
    expect(share(store.traffic.faults.truncated)).toBeCloseTo(0.02, 1.7)
    expect(share(store.traffic.faults.corrupted)).toBeCloseTo(0.02, 1.7)
    const unlucky = [...rounds[0].keys()].filter((i) => rounds[0][i] !== 'memory')
    expect(unlucky.length).toBeGreaterThan(15)
    expect(unlucky.filter((i) => rounds[1][i] === 'memory').length).toBeGreaterThan(unlucky.length / 2)
  })

  test('are the same for the same seed, whatever the order of reads', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer(),
        fc.shuffledSubarray([...Array(30).keys()].map((i) => i + 40)),
        async (seed, order) => {
          const faults = { failed: 0.2, truncated: 0.2, corrupted: 0.2 }
          const stores = [0, 1].map(() => faultyStore(inner, { seed, faults }))
          const outcomes = await Promise.all(
            [order, order.toSorted()].map((indices, which) =>
              Promise.all(
                indices.map(
                  async (i) => [i, (await read(stores[which], i)).outcome] satisfies [number, string],
                ),
              ),
            ),
          )
          expect(new Map(outcomes[0])).toEqual(new Map(outcomes[1]))
        },
      ),
      { numRuns: 20 },
    )
  })
})
