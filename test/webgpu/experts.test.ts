/**
 * How experts come to the GPU: what is fetched, for whom, and who waits. The GPU here takes them and does nothing.
 */
import { webgpuBackend } from '@sparsedge/engine/backends/webgpu'
import { Experts } from '@sparsedge/engine/backends/webgpu/experts'
import type { GpuWeights } from '@sparsedge/engine/backends/webgpu/weights'
import { DEFAULT_EXPERTS, type ExpertOptions } from '@sparsedge/engine/request'
import type { Account } from '@sparsedge/engine/residency/residency'
import { ExpertUsage } from '@sparsedge/engine/residency/usage'
import { describe, expect, test } from 'vitest'
import { tinyPack } from '../fixtures/tiny.ts'
import { heldStore } from './held-store.ts'

const LAYERS = 4
const EXPERTS = 8
const ALL = LAYERS * EXPERTS
const pack = await tinyPack({ layers: LAYERS, experts: EXPERTS })
/** Two experts of each layer, which are fetched one by one: more than there are lanes. */
const PAIRS = Array.from({ length: 2 * LAYERS }, (_, i) => (i >> 1) * EXPERTS + (i & 1))

function setUp() {
  const held = heldStore(pack.store)
  const weights = { placeExpert() {} } as unknown as GpuWeights
  return { ...held, experts: new Experts(pack.manifest, held.store, weights) }
}

function account(options: Partial<ExpertOptions> = {}): Account {
  return { options: { ...DEFAULT_EXPERTS, ...options }, usage: new ExpertUsage(LAYERS), mayWait: true }
}

describe('what is on its way', () => {
  test('is waited for by every warm-up, and fetched once', async () => {
    const { experts, asked, release } = setUp()
    const warming = [experts.prewarm(), experts.prewarm(), experts.prewarm()]
    await expect.poll(() => asked.length).toBeGreaterThanOrEqual(LAYERS)
    release()
    const bytes = ALL * pack.manifest.experts.bytes
    const [first, ...others] = await Promise.all(warming)
    expect(first).toEqual({ loaded: ALL, bytes, requests: LAYERS })
    for (const other of others) expect(other).toEqual({ loaded: ALL, bytes: 0, requests: 0 })
    expect(asked).toEqual(pack.manifest.experts.layers.map(({ bundle }) => bundle))
    expect(await experts.prewarm()).toEqual({ loaded: 0, bytes: 0, requests: 0 })
  })

  test('with a warm-up is not fetched for a step, and comes though the warm-up is cancelled', async () => {
    const { experts, asked, release } = setUp()
    const abort = new AbortController()
    const warming = experts.prewarm({}, abort.signal)
    await expect.poll(() => asked.length).toBe(LAYERS)
    const mine = account()
    const loaded = experts.load([3], mine, undefined)
    abort.abort()
    await expect(warming).rejects.toMatchObject({ code: 'cancelled' })
    release()
    await loaded
    expect(experts.has(3)).toBe(true)
    expect(asked).toHaveLength(LAYERS)
    expect(mine.usage).toMatchObject({ requests: 0, bytes: 0 })
    expect(mine.usage.waitMs).toBeGreaterThan(0)
    // What nobody waits for any more is given up, and can be had again.
    expect(await experts.prewarm()).toMatchObject({ loaded: ALL - EXPERTS, requests: LAYERS - 1 })
  })

  test('fails for all who wait for it, and can be asked for again', async () => {
    const { experts, asked, fail, release } = setUp()
    const waiting = [experts.load([3], account(), undefined), experts.load([3], account(), undefined)]
    await expect.poll(() => asked.length).toBeGreaterThan(0)
    fail()
    const place = { model: pack.manifest.name, layer: 0, expert: 3 }
    for (const wait of waiting) await expect(wait).rejects.toMatchObject({ code: 'store_unavailable', place })
    release()
    await experts.load([3], account(), undefined)
    expect(asked).toHaveLength(2)
  })
})

describe('a request is booked', () => {
  test('nothing once its signal has fired', async () => {
    const { experts, asked } = setUp()
    const mine = account()
    await expect(experts.load(PAIRS, mine, AbortSignal.abort())).rejects.toMatchObject({ code: 'cancelled' })
    expect(mine.usage).toMatchObject({ requests: 0, bytes: 0 })
    expect(asked).toEqual([])
  })

  test.each(['exact', 'resident_first'] as const)('what has flown when time is up: %s', async (policy) => {
    const { experts, asked } = setUp()
    const mine = account({ policy, maxLatencyMs: 20 })
    const loaded = experts.load(PAIRS, mine, undefined)
    if (policy === 'resident_first') await loaded
    else await expect(loaded).rejects.toMatchObject({ code: 'expert_budget_spent' })
    expect(asked).toHaveLength(6)
    expect(mine.usage).toMatchObject({ requests: 6, bytes: 6 * pack.manifest.experts.bytes })
    const again = experts.load(PAIRS, mine, undefined)
    if (policy === 'resident_first') await again
    else await expect(again).rejects.toMatchObject({ code: 'expert_budget_spent' })
    expect(asked).toHaveLength(6)
  })

  test('up to its limits, and waits for that', async () => {
    const { experts, release } = setUp()
    release()
    const mine = account({ policy: 'resident_first', maxFetches: 3 })
    await experts.load(PAIRS, mine, undefined)
    expect(PAIRS.filter((key) => experts.has(key))).toEqual(PAIRS.slice(0, 3))
    const exact = account({ maxFetches: 3 })
    await expect(experts.load(PAIRS.slice(3), exact, undefined)).rejects.toMatchObject({
      code: 'expert_fetches_spent',
      place: { model: pack.manifest.name },
    })
    expect(exact.usage.requests).toBe(3)
  })
})

test.each([0, -1, 1.5, Number.NaN])('%d tokens ahead are refused', (tokensAhead) => {
  expect(() => webgpuBackend({ tokensAhead })).toThrow(RangeError)
})
