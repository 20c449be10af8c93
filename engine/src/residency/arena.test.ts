import fc from 'fast-check'
import { afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest'
import { type TinyPack, tinyPack } from '../../../test/fixtures/tiny.ts'
import { SparsedgeError } from '../errors.ts'
import { DEFAULT_EXPERTS, type ExpertOptions } from '../request.ts'
import { withDeadline } from '../store/deadline.ts'
import { memoryStore } from '../store/memory.ts'
import { type Destination, type ShardStore, shardKey, type Tier } from '../store/store.ts'
import { type ArenaResidency, arenaFloor, createResidency } from './arena.ts'
import type { Account, Routing } from './residency.ts'
import { ExpertUsage } from './usage.ts'

const LAYERS = 4
const EXPERTS = 8
/** More than an expert needs, as where slots are aligned. */
const SLOT_PADDING = 64
let pack: TinyPack
/** The true bytes of each expert, by its key. */
let truth: Uint8Array[]

beforeAll(async () => {
  pack = await tinyPack({ layers: LAYERS, experts: EXPERTS })
  truth = pack.manifest.experts.layers.flatMap(({ shards }) =>
    shards.map((hash) => {
      const bytes = pack.store.objects.get(shardKey(hash))
      if (!bytes) throw new Error(`the pack lacks ${hash}`)
      return bytes
    }),
  )
})

/** A read that the store has been asked for and has not answered. */
interface Pending {
  readonly hash: string
  readonly into: readonly Destination[]
  /** Fills the destinations, with one byte changed if `damage` says so, and answers. */
  deliver(damage?: boolean): Promise<void>
  fail(error: Error): void
}

/** A store that answers when the test says so, in any order; it may be deaf to signals. */
function heldStore(objects: ShardStore, heedsAborts = true) {
  const pending: Pending[] = []
  const store: ShardStore = {
    manifest: objects.manifest,
    read(hash, into, signal) {
      const { promise, resolve, reject } = Promise.withResolvers<Tier>()
      const settle = () => {
        if (pending.includes(held)) pending.splice(pending.indexOf(held), 1)
      }
      const held: Pending = {
        hash,
        into,
        async deliver(damage = false) {
          if (!pending.includes(held)) return
          settle()
          const tier = await objects.read(hash, into)
          if (damage) for (const { bytes } of into) bytes[7] ^= 1
          resolve(tier)
        },
        fail(error) {
          settle()
          reject(error)
        },
      }
      pending.push(held)
      if (heedsAborts) {
        signal?.addEventListener('abort', () => held.fail(new SparsedgeError('cancelled', 'given up')))
      }
      return promise
    },
  }
  return { store, pending }
}

const newAccount = (options: Partial<ExpertOptions> = {}): Account => ({
  options: { ...DEFAULT_EXPERTS, ...options },
  usage: new ExpertUsage(LAYERS),
  mayWait: options.policy !== 'resident_first',
})

function setUp(slots: number, store: ShardStore) {
  const slotBytes = pack.manifest.experts.bytes + SLOT_PADDING
  const arena = new Uint8Array(slots * slotBytes)
  const residency = createResidency({ manifest: pack.manifest, store, arena, slotBytes })
  const bytes = (key: number) => {
    const start = residency.slots[key] * slotBytes
    return arena.subarray(start, start + pack.manifest.experts.bytes)
  }
  return { residency, arena, bytes, account: newAccount() }
}

/** A token that routes these. */
const experts = (...indices: number[]): Routing => ({
  routed: Uint16Array.from(indices),
  uses: new Uint16Array(indices.length).fill(1),
  count: indices.length,
  tokens: 1,
})
const first = (count: number) => experts(...Array.from({ length: count }, (_, i) => i))
const ALL = first(EXPERTS)
const turn = () => new Promise<void>((done) => setImmediate(done))

/** Answers everything that is asked for until a promise has settled. */
async function delivering(work: Promise<unknown> | undefined, pending: readonly Pending[]) {
  let settled = false
  const end = Promise.allSettled([work]).then(() => {
    settled = true
  })
  while (!settled) {
    for (const held of [...pending]) await held.deliver()
    await turn()
  }
  await end
  return work
}

describe('acquire', () => {
  test('is synchronous when all experts are resident, and counts hits and misses', async () => {
    const { residency, bytes, account } = setUp(16, pack.store)
    await residency.acquire(0, experts(1, 4), account)
    expect(Buffer.from(bytes(1)).equals(truth[1])).toBe(true)
    expect(Buffer.from(bytes(4)).equals(truth[4])).toBe(true)
    residency.release(0)
    expect(residency.acquire(0, experts(1, 4), account)).toBeUndefined()
    residency.release(0)
    expect(residency.acquire(0, experts(4), account)).toBeUndefined()
    expect(account.usage).toMatchObject({ hits: 3, misses: 2 })
    expect(account.usage.tiers.get('memory')).toEqual({ requests: 2, bytes: 2 * pack.manifest.experts.bytes })
    expect(account.usage.waitMs).toBeGreaterThan(0)
    expect(residency.resident).toBe(2)
  })

  test('reads the bundle when most of a layer is missing, and takes the rest along while there is room', async () => {
    const { store, pending } = heldStore(pack.store)
    const { residency, account } = setUp(18, store)
    const { bundle } = pack.manifest.experts.layers[1]
    const acquired = residency.acquire(1, first(7), account)
    await turn()
    expect(pending.map(({ hash }) => hash)).toEqual([bundle])
    await pending[0].deliver()
    await acquired
    expect(residency.resident).toBe(8)
    expect(account.usage.tiers.get('memory')).toEqual({ requests: 1, bytes: 8 * pack.manifest.experts.bytes })
  })

  test('a bundle leaves resident experts where they are, and evicts nothing for what nobody wants', async () => {
    const { store, pending } = heldStore(pack.store)
    const { residency, bytes, account } = setUp(16, store)
    for (const [layer, routed] of [
      [0, experts(0)],
      [2, experts(0, 1, 2, 3, 4, 5)],
      [3, experts(0, 1)],
    ] as const) {
      const acquired = residency.acquire(layer, routed, account)
      await delivering(acquired, pending)
      residency.release(layer)
    }
    const others = residency.slots.slice(2 * EXPERTS)
    const slot = residency.slots[0]
    const acquired = residency.acquire(0, ALL, account)
    await turn()
    expect(pending).toHaveLength(1)
    expect(pending[0].into.map(({ hash }) => hash === null)).toEqual([true, ...Array(7).fill(false)])
    await pending[0].deliver()
    await acquired
    expect(residency.slots[0]).toBe(slot)
    expect(residency.slots.slice(2 * EXPERTS)).toEqual(others)
    for (let expert = 0; expert < 8; expert++)
      expect(Buffer.from(bytes(expert)).equals(truth[expert])).toBe(true)
    expect(residency.resident).toBe(16)
  })

  test('shares a flight: two steps and a guess that want the same expert read it once', async () => {
    const { store, pending } = heldStore(pack.store)
    const { residency, account } = setUp(16, store)
    const second = newAccount()
    residency.prefetch(0, experts(2), account)
    residency.prefetch(0, experts(2, 3), account)
    const acquired = residency.acquire(0, experts(2), second)
    await turn()
    expect(pending).toHaveLength(2)
    await delivering(acquired, pending)
    await delivering(residency.acquire(0, experts(3), newAccount()), pending)
    expect(account.usage.tiers.get('memory')?.requests).toBe(2)
    expect(second.usage.tiers.size).toBe(0)
    expect(second.usage).toMatchObject({ hits: 0, misses: 1 })
  })

  test('goes before guesses that wait for their turn; at most six reads are under way', async () => {
    const { store, pending } = heldStore(pack.store)
    const { residency, account } = setUp(32, store)
    residency.prefetch(0, experts(0, 1, 2, 3), account)
    residency.prefetch(1, experts(0, 1, 2, 3), account)
    await turn()
    expect(pending).toHaveLength(6)
    const acquired = residency.acquire(2, experts(5), account)
    const last = residency.acquire(1, experts(3), account)
    await pending[0].deliver()
    await turn()
    const [{ shards: guessed }, { shards: needed }] = [1, 2].map((l) => pack.manifest.experts.layers[l])
    await expect.poll(() => pending.map(({ hash }) => hash)).toContain(guessed[3])
    await pending[0].deliver()
    await expect.poll(() => pending.map(({ hash }) => hash)).toContain(needed[5])
    await delivering(Promise.all([acquired, last]), pending)
  })

  test.each([
    { fault: 'a damaged expert', damage: true, code: 'shard_hash_mismatch', tier: 'memory' },
    { fault: 'a store that fails', damage: false, code: 'store_unavailable', tier: 'r2' },
  ])(
    '$fault is named by model, layer, expert, shard and tier, and costs no slot',
    async ({ damage, code, tier }) => {
      const { store, pending } = heldStore(pack.store)
      const { residency, account } = setUp(16, store)
      const acquired = residency.acquire(3, experts(1, 6), account)
      const shard = pack.manifest.experts.layers[3].shards[6]
      await turn()
      for (const held of [...pending]) {
        if (held.hash !== shard) await held.deliver()
        else if (damage) await held.deliver(true)
        else held.fail(new SparsedgeError('store_unavailable', 'gone', { tier: 'r2' }))
      }
      const place = { model: 'tiny', layer: 3, expert: 6, shard, tier }
      await expect(acquired).rejects.toMatchObject({ code, place })
      await expectAllSlotsUsable(residency, pending)
    },
  )

  test.each([
    {
      fault: 'damaged',
      damage: (bytes: Uint8Array) => bytes.fill(7, -1),
      code: 'shard_hash_mismatch',
      expert: 7,
    },
    { fault: 'missing', damage: () => undefined, code: 'shard_missing' },
    { fault: 'truncated', damage: (bytes: Uint8Array) => bytes.slice(1), code: 'shard_too_short' },
    {
      fault: 'extra-long',
      damage: (bytes: Uint8Array) => Uint8Array.of(...bytes, 0),
      code: 'shard_too_long',
    },
  ])('a $fault bundle gives $code; nothing of it becomes resident', async ({ damage, code, expert }) => {
    const { bundle, shards } = pack.manifest.experts.layers[0]
    const store = damagedStore(bundle, damage)
    const { residency, account } = setUp(16, store)
    await expect(residency.acquire(0, ALL, account)).rejects.toMatchObject({
      code,
      place: {
        model: 'tiny',
        layer: 0,
        shard: expert === undefined ? bundle : shards[expert],
        tier: 'memory',
      },
    })
    expect(residency.resident).toBe(0)
    expect(account.usage.tiers.size).toBe(0)
  })

  test('an error of no kind, from a store of the caller’s, becomes one of ours', async () => {
    const store = { ...pack.store, read: () => Promise.reject(new Error('boom')) }
    const { residency, account } = setUp(16, store)
    await expect(residency.acquire(2, experts(3), account)).rejects.toMatchObject({
      code: 'store_unavailable',
      message: expect.stringContaining('boom'),
      place: { model: 'tiny', layer: 2, expert: 3 },
    })
  })

  test('a step that goes away stops waiting; a fetch that nobody waits for is given up and costs no slot', async () => {
    const { store, pending } = heldStore(pack.store)
    const { residency, account } = setUp(16, store)
    const abort = new AbortController()
    const acquired = residency.acquire(0, experts(0, 1, 2), account, abort.signal)
    await turn()
    expect(pending).toHaveLength(3)
    abort.abort()
    await expect(acquired).rejects.toMatchObject({ code: 'cancelled', place: { model: 'tiny', layer: 0 } })
    expect(pending).toHaveLength(0)
    await expectAllSlotsUsable(residency, pending)
  })

  test.each([
    ['has no patience', { maxLatencyMs: 1 }, 'expert_budget_spent'],
    ['goes away', {}, 'cancelled'],
  ])(
    'a step that evicts and then %s leaves something in the place of what it evicted',
    async (_, options, code) => {
      const { store, pending } = heldStore(pack.store)
      const { residency, bytes, account } = setUp(16, store)
      for (const layer of [0, 1]) {
        await delivering(residency.acquire(layer, ALL, account), pending)
        residency.release(layer)
      }
      const abort = new AbortController()
      const acquired = residency.acquire(2, experts(0, 5), newAccount(options), abort.signal)
      // Before the turn, in which a millisecond may be over.
      const refused = expect(acquired).rejects.toMatchObject({ code })
      await turn()
      if (code === 'cancelled') abort.abort()
      await refused
      expect(pending).toHaveLength(2)
      // It can be joined, and brings what it was started for.
      const next = residency.acquire(2, experts(5), account)
      expect(pending).toHaveLength(2)
      await delivering(next, pending)
      residency.release(2)
      await expect.poll(() => residency.resident).toBe(16)
      for (const key of [0, 5]) {
        expect(Buffer.from(bytes(2 * EXPERTS + key)).equals(truth[2 * EXPERTS + key])).toBe(true)
      }
      await expectAllSlotsUsable(residency, pending)
    },
  )

  test('what goes on though its step has left costs no slot if it fails', async () => {
    const { store, pending } = heldStore(pack.store)
    const { residency, account } = setUp(16, store)
    for (const layer of [0, 1]) {
      await delivering(residency.acquire(layer, ALL, account), pending)
      residency.release(layer)
    }
    const acquired = residency.acquire(2, experts(3), newAccount({ maxLatencyMs: 1 }))
    await expect(acquired).rejects.toMatchObject({ code: 'expert_budget_spent' })
    expect(pending).toHaveLength(1)
    pending[0].fail(new SparsedgeError('store_unavailable', 'gone'))
    await expectAllSlotsUsable(residency, pending)
  })

  test('a request that has no time asks for nothing and evicts nothing', async () => {
    const { store, pending } = heldStore(pack.store)
    const { residency, account } = setUp(16, store)
    for (const layer of [0, 1]) {
      await delivering(residency.acquire(layer, ALL, account), pending)
      residency.release(layer)
    }
    const hasty = newAccount({ maxLatencyMs: 0 })
    await expect(residency.acquire(2, experts(0, 5), hasty)).rejects.toMatchObject({
      code: 'expert_budget_spent',
      place: { model: 'tiny', layer: 2 },
    })
    expect(pending).toHaveLength(0)
    expect(hasty.usage.requests).toBe(0)
    expect(residency.resident).toBe(16)
    await expectAllSlotsUsable(residency, pending)
  })

  test('what another step still waits for goes on', async () => {
    const { store, pending } = heldStore(pack.store)
    const { residency, account } = setUp(16, store)
    const abort = new AbortController()
    const leaves = residency.acquire(0, experts(0), account, abort.signal)
    const stays = residency.acquire(0, experts(0), newAccount())
    abort.abort()
    await expect(leaves).rejects.toMatchObject({ code: 'cancelled' })
    expect(pending).toHaveLength(1)
    await delivering(stays, pending)
    expect(account.usage.tiers.get('memory')?.requests).toBe(1)
  })

  test('a guess that stalls is given up with the step that came to wait for it; the next step reads anew', async () => {
    const { store, pending } = heldStore(pack.store)
    const { residency, account } = setUp(16, store)
    const abort = new AbortController()
    residency.prefetch(0, experts(0, 1), account)
    const acquired = residency.acquire(0, experts(0), account, abort.signal)
    await turn()
    const [stalled, other] = pending
    abort.abort()
    await expect(acquired).rejects.toMatchObject({ code: 'cancelled' })
    expect(pending).toEqual([other])
    const next = residency.acquire(0, experts(0), account)
    await expect.poll(() => pending.map(({ hash }) => hash)).toEqual([other.hash, stalled.hash])
    await delivering(next, pending)
    await expectAllSlotsUsable(residency, pending)
  })

  test('a request that is cancelled before it begins asks for nothing', async () => {
    const { store, pending } = heldStore(pack.store)
    const { residency, account } = setUp(16, store)
    const acquired = residency.acquire(0, ALL, account, AbortSignal.abort())
    await expect(acquired).rejects.toMatchObject({ code: 'cancelled' })
    expect(pending).toHaveLength(0)
  })

  test('holding more layers than there is room for is refused, not waited for', async () => {
    const { residency, account } = setUp(16, pack.store)
    await residency.acquire(0, ALL, account)
    await residency.acquire(1, ALL, account)
    await expect(residency.acquire(2, experts(0), account)).rejects.toMatchObject({
      code: 'arena_too_small',
    })
    residency.release(0)
    await residency.acquire(2, experts(0), account)
  })

  test('a guess that became a need must find room only for what is needed', async () => {
    const { store, pending } = heldStore(pack.store)
    const { residency, account } = setUp(22, store)
    for (const layer of [0, 1]) {
      await delivering(residency.acquire(layer, ALL, account), pending)
    }
    residency.prefetch(2, first(6), account)
    residency.prefetch(3, ALL, account)
    await delivering(residency.acquire(3, experts(2, 5), account), pending)
    await expect.poll(() => account.usage.tiers.get('memory')?.requests).toBe(2 + 6 + 1)
    expect(residency.resident).toBe(22)
  })

  test('evicts what was used least lately', async () => {
    const { residency, account } = setUp(16, pack.store)
    // 12 slots are used, by layers 1, 2 and 3, by as many of three tokens as their number says; 8 are needed.
    for (const layer of [3, 1, 2]) {
      const uses = new Uint16Array(4).fill(layer)
      await residency.acquire(layer, { ...first(4), uses, tokens: 3 }, account)
      residency.release(layer)
    }
    await residency.acquire(0, ALL, account)
    const residents = [1, 2, 3].map((layer) =>
      residency.slots.subarray(layer * EXPERTS, (layer + 1) * EXPERTS).filter((slot) => slot >= 0),
    )
    expect(residents.map(({ length }) => length)).toEqual([0, 4, 4])
  })
})

// Any sequence of steps, guesses, cancellations and answers, good and bad, in any order.
test('experts that are always on, in an arena that lacks a few slots, are not fetched anew in every pass', async () => {
  const lacking = 4
  const { residency, account } = setUp(LAYERS * EXPERTS - lacking, pack.store)
  const passes = 10
  for (let pass = -1; pass < passes; pass++) {
    if (pass === 0) account.usage.layerMisses.fill(0)
    for (let layer = 0; layer < LAYERS; layer++) {
      await residency.acquire(layer, ALL, account)
      residency.release(layer)
    }
  }
  // As many must miss as lack a slot; what a scan evicts right before its use would be all of them.
  expect(account.usage.misses / passes).toBeLessThanOrEqual(2 * lacking)
})

describe('a store that stalls', () => {
  beforeEach(() => vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] }))
  afterEach(() => vi.useRealTimers())

  test('fails the step that waits, and its reads give back their turns and their slots', async () => {
    const { store, pending } = heldStore(pack.store)
    const { residency, account } = setUp(16, withDeadline(store))
    residency.prefetch(0, experts(0, 1, 2), account)
    residency.prefetch(1, experts(0, 1, 2), account)
    await turn()
    expect(pending).toHaveLength(6)
    const joined = residency.acquire(0, experts(1), account)
    const queued = residency.acquire(2, experts(4), account)
    vi.advanceTimersByTime(60_000)
    const place = { model: 'tiny', layer: 0, expert: 1 }
    await expect(joined).rejects.toMatchObject({ code: 'store_unavailable', place })
    await delivering(queued, pending)
    residency.release(2)
    await expectAllSlotsUsable(residency, pending)
  })

  test('and is deaf to its signal keeps the slots until it has answered, and spoils none', async () => {
    const { store, pending } = heldStore(pack.store, false)
    const { residency, bytes, account } = setUp(16, withDeadline(store))
    const abort = new AbortController()
    const stalled = residency.acquire(0, experts(0, 1), account, abort.signal)
    await turn()
    const late = [...pending]
    vi.advanceTimersByTime(60_000)
    abort.abort()
    await expect(stalled).rejects.toMatchObject({ code: 'cancelled' })
    pending.length = 0
    for (const layer of [1, 2]) {
      await delivering(residency.acquire(layer, first(4), account), pending)
      residency.release(layer)
    }
    await delivering(residency.acquire(0, first(6), account), pending)
    // Two of the sixteen slots are not to be had: something still writes there.
    expect(residency.resident).toBe(14)
    pending.push(...late)
    await delivering(Promise.all(late.map((held) => held.deliver(true))), pending)
    for (const [key, slot] of residency.slots.entries()) {
      if (slot >= 0) expect(Buffer.from(bytes(key)).equals(truth[key])).toBe(true)
    }
    residency.release(0)
    await expectAllSlotsUsable(residency, pending)
  })
})

describe('whatever happens', () => {
  const layer = fc.nat(LAYERS - 1)
  const subset = fc
    .uniqueArray(fc.nat(EXPERTS - 1), { minLength: 1 })
    .map((list) => list.sort((a, b) => a - b))
  const which = fc.nat(20)
  const action = fc.oneof(
    { weight: 4, arbitrary: fc.record({ do: fc.constant('acquire' as const), layer, routed: subset }) },
    { weight: 3, arbitrary: fc.record({ do: fc.constant('release' as const), layer }) },
    { weight: 2, arbitrary: fc.record({ do: fc.constant('prefetch' as const), layer, routed: subset }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant('cancel' as const), layer }) },
    { weight: 8, arbitrary: fc.record({ do: fc.constant('deliver' as const), which }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant('damage' as const), which }) },
    { weight: 1, arbitrary: fc.record({ do: fc.constant('fail' as const), which }) },
  )

  test('pinned experts stay, bytes are right, reads are few and apart, no slot is lost', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(action, { minLength: 10, maxLength: 100, size: 'max' }),
        fc.integer({ min: 16, max: 24 }),
        fc.boolean(),
        async (actions, slots, heedsAborts) => {
          const { store, pending } = heldStore(pack.store, heedsAborts)
          const { residency, arena, bytes, account } = setUp(slots, store)
          /** Layers that a step has asked for, until they are released or have failed. */
          const steps = new Map<number, Step>()

          const check = () => {
            expect(pending.length).toBeLessThanOrEqual(6)
            if (heedsAborts) expect(new Set(pending.map(({ hash }) => hash)).size).toBe(pending.length)
            const used: [number, number][] = []
            for (const [key, slot] of residency.slots.entries()) {
              if (slot < 0) continue
              expect(Buffer.from(bytes(key)).equals(truth[key])).toBe(true)
              used.push([bytes(key).byteOffset, bytes(key).length])
            }
            expect(used.length).toBe(residency.resident)
            for (const { into } of pending) {
              for (const { hash, bytes } of into) {
                if (hash !== null) used.push([bytes.byteOffset, bytes.length])
              }
            }
            used.sort(([a], [b]) => a - b)
            for (let i = 1; i < used.length; i++) {
              expect(used[i][0]).toBeGreaterThanOrEqual(used[i - 1][0] + used[i - 1][1])
            }
            expect((used.at(-1)?.[0] ?? 0) + (used.at(-1)?.[1] ?? 0)).toBeLessThanOrEqual(arena.length)
            for (const [layer, { routed, where }] of steps) {
              // Where the step has not got its experts yet, nothing is promised but what is checked above.
              if (where) expect(slotsOf(residency, layer, routed)).toEqual(where)
            }
          }

          for (const step of actions) {
            const held = 'which' in step ? pending[step.which % Math.max(1, pending.length)] : undefined
            if (step.do === 'acquire' && !steps.has(step.layer) && steps.size < 2) {
              const { layer, routed } = step
              const resident = slotsOf(residency, layer, routed).every((slot) => slot >= 0)
              const abort = new AbortController()
              const acquired = residency.acquire(layer, experts(...routed), account, abort.signal)
              expect(acquired === undefined).toBe(resident)
              const mine: Step = { routed, abort, where: undefined, acquired }
              steps.set(layer, mine)
              if (resident) mine.where = slotsOf(residency, layer, routed)
              acquired?.then(
                () => {
                  mine.where = slotsOf(residency, layer, routed)
                  expect(mine.where).not.toContain(-1)
                },
                () => steps.delete(layer),
              )
            } else if (step.do === 'release' && steps.get(step.layer)?.where) {
              steps.delete(step.layer)
              residency.release(step.layer)
            } else if (step.do === 'prefetch') {
              residency.prefetch(step.layer, experts(...step.routed), account)
            } else if (step.do === 'cancel') {
              steps.get(step.layer)?.abort.abort()
            } else if (step.do === 'deliver') {
              await held?.deliver()
            } else if (step.do === 'damage') {
              await held?.deliver(true)
            } else if (step.do === 'fail') {
              held?.fail(new SparsedgeError('store_unavailable', 'gone'))
            }
            check()
            await turn()
            check()
          }
          const all = Promise.allSettled([...steps.values()].map(({ acquired }) => acquired))
          await delivering(all, pending)
          check()
          for (const [layer, { where }] of steps) {
            expect(where).toBeDefined()
            residency.release(layer)
          }
          await expectAllSlotsUsable(residency, pending)
        },
      ),
      { numRuns: 80 },
    )
  })

  interface Step {
    readonly routed: readonly number[]
    readonly abort: AbortController
    /** The slots of its experts, once it has them. */
    where: number[] | undefined
    readonly acquired: Promise<void> | undefined
  }

  const slotsOf = ({ slots }: ArenaResidency, layer: number, routed: readonly number[]) =>
    routed.map((expert) => slots[layer * EXPERTS + expert])
})

describe('createResidency', () => {
  test('refuses an arena below two layers, and says what would do', () => {
    const slotBytes = pack.manifest.experts.bytes + SLOT_PADDING
    expect(arenaFloor(pack.manifest)).toBe(16)
    expect(() => setUp(15, pack.store)).toThrow(
      expect.objectContaining({
        code: 'arena_too_small',
        message: expect.stringContaining(`${16 * slotBytes}`),
      }),
    )
  })

  test('a model of one layer needs only that', async () => {
    const { manifest, store } = await tinyPack({ layers: 1, experts: 4 })
    const slotBytes = manifest.experts.bytes
    const arena = new Uint8Array(4 * slotBytes)
    const residency = createResidency({ manifest, store, arena, slotBytes })
    await residency.acquire(0, first(4), newAccount())
    expect(residency.resident).toBe(4)
  })

  test('takes no more slots than there are experts', () => {
    expect(setUp(100, pack.store).residency.capacity).toBe(LAYERS * EXPERTS)
  })
})

/** After whatever happened, once nothing is pinned: the arena can be filled to the last slot. */
async function expectAllSlotsUsable(residency: ArenaResidency, pending: readonly Pending[]) {
  // A read that was given up may hold its slot for a little longer.
  await expect
    .poll(async () => {
      for (let layer = 0; layer < LAYERS; layer++) {
        await delivering(residency.acquire(layer, ALL, newAccount()), pending)
        residency.release(layer)
      }
      return residency.resident
    })
    .toBe(residency.capacity)
}

/** The pack's store with one object replaced, or removed. */
function damagedStore(hash: string, damage: (bytes: Uint8Array) => Uint8Array | undefined): ShardStore {
  const store = memoryStore()
  for (const [key, bytes] of pack.store.objects) store.objects.set(key, bytes)
  const damaged = damage(Uint8Array.from(store.objects.get(shardKey(hash)) ?? []))
  if (damaged) store.objects.set(shardKey(hash), Uint8Array.from(damaged))
  else store.objects.delete(shardKey(hash))
  return store
}
