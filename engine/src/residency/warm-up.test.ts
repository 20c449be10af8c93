import { setImmediate } from 'node:timers/promises'
import { beforeAll, describe, expect, test } from 'vitest'
import { type TinyPack, tinyPack } from '../../../test/fixtures/tiny.ts'
import { DEFAULT_EXPERTS, type ExpertOptions } from '../request.ts'
import type { ShardStore } from '../store/store.ts'
import { createResidency } from './arena.ts'
import type { Account, Routing } from './residency.ts'
import { ExpertUsage } from './usage.ts'

const LAYERS = 4
const EXPERTS = 8
let pack: TinyPack
let bytes: number

beforeAll(async () => {
  pack = await tinyPack({ layers: LAYERS, experts: EXPERTS })
  bytes = pack.manifest.experts.bytes
})

/** A residency over a store that notes what it is asked for, and that may be held back. */
function setUp(slots: number, profile?: number[][]) {
  const asked: string[] = []
  const held: (() => void)[] = []
  const state = { open: true }
  const store: ShardStore = {
    ...pack.store,
    async read(hash, into, signal) {
      asked.push(hash)
      if (!state.open) {
        await new Promise<void>((resolve, reject) => {
          held.push(resolve)
          signal?.addEventListener('abort', () => reject(signal.reason))
        })
      }
      return pack.store.read(hash, into, signal)
    },
  }
  const manifest = { ...pack.manifest, ...(profile && { profile }) }
  const residency = createResidency({
    manifest,
    store,
    arena: new Uint8Array(slots * bytes),
    slotBytes: bytes,
  })
  return { residency, asked, held, state }
}

const account = (options: Partial<ExpertOptions> = {}): Account => ({
  options: { ...DEFAULT_EXPERTS, ...options },
  usage: new ExpertUsage(LAYERS),
  mayWait: true,
})
const routing = (...routed: number[]): Routing => ({
  routed: Uint16Array.from(routed),
  uses: new Uint16Array(routed.length).fill(1),
  count: routed.length,
  tokens: 1,
})

describe('prewarm', () => {
  test('brings all there is room for, by bundles, in the order of a forward pass', async () => {
    const { residency, asked } = setUp(LAYERS * EXPERTS)
    expect(await residency.prewarm()).toEqual({
      loaded: LAYERS * EXPERTS,
      bytes: LAYERS * EXPERTS * bytes,
      requests: LAYERS,
    })
    expect(asked).toEqual(pack.manifest.experts.layers.map(({ bundle }) => bundle))
    expect(await residency.prewarm()).toEqual({ loaded: 0, bytes: 0, requests: 0 })
  })

  test('where room is short, brings those that the profile says are used most', async () => {
    const often = (e: number, layer: number) => (e % 2 === layer % 2 ? 0.9 : 0.3)
    const profile = Array.from({ length: LAYERS }, (_, layer) =>
      Array.from({ length: EXPERTS }, (_, e) => often(e, layer)),
    )
    const { residency } = setUp((LAYERS * EXPERTS) / 2, profile)
    await residency.prewarm()
    const { isResident, frequency, capacity, resident } = residency.snapshot()
    expect([...isResident]).toEqual(profile.flat().map((rate) => (rate > 0.5 ? 1 : 0)))
    expect(frequency).toEqual(Float32Array.from(profile.flat()))
    expect(resident).toBe(capacity)
  })

  test('evicts nothing, and stops at its limits', async () => {
    const { residency } = setUp(20)
    await residency.acquire(1, routing(2, 5), account())
    residency.release(1)
    const warmUp = await residency.prewarm({ maxFetches: 1 })
    expect(warmUp).toMatchObject({ requests: 1 })
    const more = await residency.prewarm({ maxBytes: bytes * 9 })
    expect(more.bytes).toBeLessThanOrEqual(bytes * 9)
    expect(more.loaded).toBeGreaterThan(0)
    expect((await residency.prewarm({ maxBytes: bytes - 1 })).loaded).toBe(0)
    await residency.prewarm()
    const { isResident, resident } = residency.snapshot()
    expect(resident).toBe(20)
    expect(isResident[EXPERTS + 2] + isResident[EXPERTS + 5]).toBe(2)
  })

  test('lets everything else go first', async () => {
    const { residency, asked, held, state } = setUp(LAYERS * EXPERTS)
    state.open = false
    // Seven single experts: one more than can be read at once. Then a guess, then what a step waits for.
    const profile = routing(0, 1, 2)
    residency.prefetch(0, profile, account())
    residency.prefetch(1, profile, account())
    const warming = residency.prewarm()
    residency.prefetch(2, routing(4), account())
    const needed = residency.acquire(3, routing(6), account())
    const { layers } = pack.manifest.experts
    await setImmediate()
    expect(asked).toHaveLength(6)
    const next = async () => {
      held.shift()?.()
      await setImmediate()
      await expect.poll(() => held.length).toBe(6)
      return asked.at(-1)
    }
    // What it waits for is in a bundle that the warm-up has asked for: that one comes first now.
    expect(await next()).toBe(layers[3].bundle)
    state.open = true
    for (const answer of held.splice(0)) answer()
    await needed
    await warming
    expect(residency.resident).toBe(LAYERS * EXPERTS)
  })

  test('ends with its signal; what it had queued is forgotten, and costs no slot', async () => {
    const { residency, asked, state } = setUp(LAYERS * EXPERTS)
    state.open = false
    const abort = new AbortController()
    const warming = residency.prewarm({}, abort.signal)
    await setImmediate()
    abort.abort()
    await expect(warming).rejects.toMatchObject({ code: 'cancelled' })
    const before = asked.length
    state.open = true
    await expect.poll(async () => (await residency.prewarm()) && residency.resident).toBe(LAYERS * EXPERTS)
    expect(asked.length).toBe(before + LAYERS)
  })
})

describe('anticipate', () => {
  test('asks for what is missing of the layers behind the next, once', async () => {
    const { residency, asked, state } = setUp(LAYERS * EXPERTS)
    await residency.acquire(3, routing(0, 1, 2, 3, 4, 5, 6), account())
    state.open = false
    asked.length = 0
    const mine = account()
    residency.anticipate(0, mine)
    residency.anticipate(0, mine)
    residency.anticipate(1, mine)
    await setImmediate()
    const { layers } = pack.manifest.experts
    expect(residency.snapshot().resident).toBe(EXPERTS)
    expect(asked).toEqual([layers[2].bundle])
    expect(mine.usage).toMatchObject({ prefetched: EXPERTS, requests: 1 })
  })

  test('leaves two layers their room', async () => {
    const { residency, asked } = setUp(3 * EXPERTS - 1)
    residency.anticipate(0, account())
    await setImmediate()
    expect(asked).toEqual([])
  })
})

describe('accounting', () => {
  test('counts per layer, and what look-ahead brought and was good for', async () => {
    const { residency } = setUp(LAYERS * EXPERTS)
    const mine = account()
    residency.prefetch(1, routing(0, 3), mine)
    await residency.acquire(0, routing(1), mine)
    await residency.acquire(1, routing(3, 4), mine)
    await residency.acquire(1, routing(3, 4), mine)
    const { usage } = mine
    // Whether the guess for expert 3 had landed by then is a matter of luck; the last two were there.
    expect(usage.layerHits[1] + usage.layerMisses[1]).toBe(4)
    expect(usage.layerHits[1]).toBeGreaterThanOrEqual(2)
    expect([usage.layerMisses[0], usage.layerHits[0]]).toEqual([1, 0])
    expect(usage).toMatchObject({ prefetched: 2, prefetchedUsed: 1, requests: 4, bytes: 4 * bytes })
    expect(usage.waitMs).toBe(usage.layerWaitMs[0] + usage.layerWaitMs[1])
  })

  test('gives back what was booked for a fetch that never flew', async () => {
    const { residency, state } = setUp(LAYERS * EXPERTS)
    state.open = false
    const abort = new AbortController()
    const mine = account()
    const acquired = residency.acquire(0, routing(0, 1, 2), mine, abort.signal)
    const late = account()
    const other = new AbortController()
    const second = residency.acquire(1, routing(0, 1, 2), late, abort.signal)
    const third = residency.acquire(2, routing(0, 1), late, other.signal)
    await setImmediate()
    expect(late.usage.requests).toBe(5)
    other.abort()
    await expect(third).rejects.toMatchObject({ code: 'cancelled' })
    expect(late.usage).toMatchObject({ requests: 3, bytes: 3 * bytes })
    abort.abort()
    await expect(acquired).rejects.toMatchObject({ code: 'cancelled' })
    await expect(second).rejects.toMatchObject({ code: 'cancelled' })
  })

  test('look-ahead takes no more than the request allows', async () => {
    const { residency } = setUp(LAYERS * EXPERTS)
    const frugal = account({ maxFetches: 2 })
    residency.prefetch(1, routing(0, 3, 5), frugal)
    await expect.poll(() => residency.resident).toBe(2)
    expect(frugal.usage.requests).toBe(2)
    await expect(residency.acquire(2, routing(1), frugal)).rejects.toMatchObject({
      code: 'expert_fetches_spent',
    })
    // Nothing stays pinned, and others are not concerned.
    await residency.acquire(2, routing(1), account())
  })
})
