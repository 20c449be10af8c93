/**
 * Thousands of reads from a store that fails in every way it can: no wrong bit, no hang, no lost slot. Time is faked, so
 * that stalls and pauses cost none.
 */
import { setImmediate } from 'node:timers/promises'
import { createEngine, type Engine, type GenerateRequest } from '@sparsedge/engine'
import { wasmBackend } from '@sparsedge/engine/backends/wasm/index'
import { align, planMemory, WASM_PAGE } from '@sparsedge/engine/backends/wasm/plan'
import { arenaFloor } from '@sparsedge/engine/residency/arena'
import { type FaultRates, type FaultyStore, faultyStore } from '@sparsedge/engine/store/faulty'
import type { ShardStore } from '@sparsedge/engine/store/store'
import { verified } from '@sparsedge/engine/store/verified'
import { afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest'
import { GATES, type TinyPack, tinyPack } from '../fixtures/tiny.ts'
import { EOS, IM_END } from '../fixtures/tiny-tokenizer.ts'
import { MODULES } from '../wasm/wasm.ts'

const LAYERS = 8
const EXPERTS = 16
const CONTEXT = 512
/** The issue's: 5 % errors, 2 % cut off, 2 % damaged, 1 % that never end. */
const FAULTS: FaultRates = { failed: 0.05, truncated: 0.02, corrupted: 0.02, stalled: 0.01 }
/** Attempts that a read has. */
const ATTEMPTS = 5

let pack: TinyPack
let clean: Engine
beforeAll(async () => {
  pack = await tinyPack({ layers: LAYERS, experts: EXPERTS, gate: GATES.softmaxLookAhead, context: CONTEXT })
  clean = await open(pack.store, 32 << 20)
})
beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] })
})
afterEach(() => {
  vi.useRealTimers()
})

function open(store: ShardStore, memoryBytes: number): Promise<Engine> {
  const backend = wasmBackend({ modules: MODULES['plain only'], contextTokens: CONTEXT, memoryBytes })
  return createEngine({ store, model: 'tiny', backend })
}

/** With the smallest arena: nearly every step fetches. */
function openSmall(store: ShardStore): Promise<Engine> {
  const { arena } = planMemory(pack.manifest, 32 << 20, CONTEXT)
  return open(store, align(arena.offset + arenaFloor(pack.manifest) * arena.slotBytes, WASM_PAGE))
}

const far = (seed: number, faults: FaultRates): FaultyStore =>
  faultyStore(pack.store, { seed, firstByteMs: 30, spread: 0.5, bytesPerMs: 100_000, faults })

/** Lets time pass, a millisecond a turn of the event loop, until the work is done. */
async function passing<T>(work: Promise<T>): Promise<T> {
  let done = false
  const end = () => {
    done = true
  }
  work.then(end, end)
  while (!done) {
    await vi.advanceTimersByTimeAsync(1)
    await setImmediate()
  }
  return work
}

const request = (seed: number, maxTokens: number): GenerateRequest => ({
  prompt: { tokens: Array.from({ length: 9 }, (_, i) => 1 + ((seed * 31 + i * 7) % 200)) },
  maxTokens,
  sampling: {
    temperature: 1,
    topK: 0,
    topP: 1,
    minP: 0,
    repetitionPenalty: 1,
    presencePenalty: 0,
    frequencyPenalty: 0,
    // A wrong bit anywhere shows in a draw sooner or later, and no answer ends early.
    logitBias: new Map([
      [EOS, -100],
      [IM_END, -100],
    ]),
    seed,
  },
  stop: [],
})

async function textOf(engine: Engine, asked: GenerateRequest, signal?: AbortSignal): Promise<string> {
  let text = ''
  for await (const event of engine.generate(asked, signal)) if (event.type === 'text') text += event.text
  return text
}

/** Every slot can be filled again: a slot that a failed flight kept would be missing. */
async function expectNoLostSlots(engine: Engine, store: FaultyStore): Promise<void> {
  await passing(engine.prewarm())
  const { resident, capacity } = engine.experts()
  expect(resident).toBe(capacity)
  expect(store.traffic.open).toBe(0)
}

describe('5 % errors, 2 % cut off, 2 % damaged, 1 % stalled', () => {
  test.each([1, 2, 3])('over 2,000 fetches and more change no token, seed %i', async (seed) => {
    const store = far(seed, FAULTS)
    const engine = await passing(openSmall(store))
    for (let i = 0; store.traffic.requests < 2000; i++) {
      // Some alone, some at once.
      const asked = Array.from({ length: 1 + (i % 3) }, (_, j) => request(100 * i + j, 24))
      const expected = await passing(Promise.all(asked.map((one) => textOf(clean, one))))
      expect(await passing(Promise.all(asked.map((one) => textOf(engine, one))))).toEqual(expected)
    }
    const { faults } = store.traffic
    for (const count of Object.values(faults)) expect(count).toBeGreaterThan(4)
    await expectNoLostSlots(engine, store)
  })

  test('nor do clients that go away in between', async () => {
    const store = far(4, FAULTS)
    const engine = await passing(openSmall(store))
    for (let i = 0; i < 12; i++) {
      const gone = new AbortController()
      const left = textOf(engine, request(900 + i, 100), gone.signal)
      const stays = request(i, 12)
      const staying = textOf(engine, stays)
      setTimeout(() => gone.abort(), 200 * i)
      await expect(passing(left)).rejects.toMatchObject({ code: 'cancelled' })
      expect(await passing(staying)).toBe(await passing(textOf(clean, stays)))
    }
    await expectNoLostSlots(engine, store)
  })
})

describe('a store that is nearly down', () => {
  test('fails with a named error once every attempt is spent, and not before; mended, it serves', async () => {
    const bad = far(5, { failed: 0.3, truncated: 0.15, corrupted: 0.15 })
    const good = far(6, {})
    /** Failures in a row of a shard's reads. */
    const inARow = new Map<string, number>()
    let store: ShardStore = good
    const engine = await passing(
      openSmall({
        manifest: (...args) => store.manifest(...args),
        async read(hash, into, ...rest) {
          inARow.set(hash, (inARow.get(hash) ?? 0) + 1)
          // Wrong bytes are a failure here already.
          const tier = await verified(store).read(hash, into, ...rest)
          inARow.delete(hash)
          return tier
        },
      }),
    )
    store = bad
    let failed = 0
    for (let i = 0; i < 40; i++) {
      const asked = request(i, 24)
      const expected = await passing(textOf(clean, asked))
      // A fetch that has evicted goes on without its request: its attempts are not those of the next.
      await passing(new Promise((done) => setTimeout(done, 60_000)))
      inARow.clear()
      const outcome = await passing(textOf(engine, asked).catch((error: unknown) => error))
      if (typeof outcome === 'string') expect(outcome).toBe(expected)
      else {
        failed += 1
        expect(outcome).toMatchObject({
          code: expect.stringMatching(/^(store_unavailable|shard_too_short|shard_hash_mismatch)$/),
          place: { model: 'tiny', layer: expect.any(Number), shard: expect.any(String) },
        })
        // More, where a guess had failed already.
        expect(Math.max(...inARow.values())).toBeGreaterThanOrEqual(ATTEMPTS)
      }
    }
    expect(failed).toBeGreaterThan(5)
    store = good
    const asked = request(77, 24)
    expect(await passing(textOf(engine, asked))).toBe(await passing(textOf(clean, asked)))
    await expectNoLostSlots(engine, good)
  })

  test('while the model loads, is told as well, and the load can be tried again', async () => {
    const bad = far(7, { failed: 1 })
    await expect(passing(openSmall(bad))).rejects.toMatchObject({ code: 'store_unavailable' })
    expect(bad.traffic.open).toBe(0)
    const engine = await passing(openSmall(far(8, FAULTS)))
    const asked = request(3, 24)
    expect(await passing(textOf(engine, asked))).toBe(await passing(textOf(clean, asked)))
  })
})

describe('a trunk shard', () => {
  /** Makes a shard of the embedding that may take longer, all in all, than anyone has patience for. */
  const VOCAB = 40_000

  test('that stalls amid its bytes is given up after six seconds of silence, and read again', async () => {
    const large = await tinyPack({ vocab: VOCAB })
    const [shard] = large.manifest.trunk.shards
    expect(shard.bytes).toBeGreaterThan(2 << 20)
    let reads = 0
    const good = faultyStore(large.store, { seed: 9, firstByteMs: 30, bytesPerMs: 100_000 })
    const stalling = faultyStore(large.store, {
      seed: 9,
      firstByteMs: 30,
      bytesPerMs: 1000,
      faults: { stalled: 1 },
    })
    const store: ShardStore = {
      manifest: (...args) => good.manifest(...args),
      read: (hash, ...rest) => (hash === shard.hash && reads++ === 0 ? stalling : good).read(hash, ...rest),
    }
    const backend = wasmBackend({ modules: MODULES['plain only'] })
    const started = performance.now()
    const engine = await passing(createEngine({ store, model: 'tiny', backend }))
    expect(reads).toBe(2)
    expect(stalling.traffic).toMatchObject({ open: 0, faults: { stalled: 1 } })
    const seconds = (performance.now() - started) / 1000
    expect(seconds).toBeGreaterThan(6)
    expect(seconds).toBeLessThan(12)
    const asked = request(1, 8)
    const untroubled = await createEngine({ store: large.store, model: 'tiny', backend })
    expect(await passing(textOf(engine, asked))).toBe(await passing(textOf(untroubled, asked)))
  })
})
