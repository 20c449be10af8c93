/**
 * What a step must leave behind when it fails, how memory is shared, and that a small arena costs time only.
 */
import { measureWasm } from '@sparsedge/engine/backends/wasm/measure'
import { SparsedgeError } from '@sparsedge/engine/errors'
import { MemoryBudget } from '@sparsedge/engine/memory-budget'
import type { GateConfig } from '@sparsedge/engine/model/config'
import { shardKey } from '@sparsedge/engine/store/store'
import { beforeAll, describe, expect, it, vi } from 'vitest'
import { GATES, type TinyPack, tinyPack } from '../fixtures/tiny.ts'
import { logitsOf, MODULES, runInSteps, tinyBackend, tinyTokens } from './wasm.ts'

const tokens = tinyTokens(40)
let pack: TinyPack
let expected: Float32Array

beforeAll(async () => {
  pack = await tinyPack()
  expected = await logitsOf(await tinyBackend(pack), tokens)
})

async function codeOf(promise: Promise<unknown>): Promise<string> {
  return promise.then(
    () => 'no error',
    (error: unknown) => (error instanceof SparsedgeError ? error.code : String(error)),
  )
}

const thrownBy = (run: () => unknown) => codeOf(Promise.resolve().then(run))

/** A pack with a store that answers later, or not at all once `broken` is set. */
function slowed(fast: TinyPack) {
  const state = { broken: false, reads: 0 }
  const read: typeof fast.store.read = async (hash, into, signal) => {
    state.reads += 1
    await new Promise((resolve) => setTimeout(resolve, 1))
    signal?.throwIfAborted()
    if (state.broken) throw new SparsedgeError('store_unavailable', 'the store is down')
    return fast.store.read(hash, into, signal)
  }
  return { pack: { ...fast, store: { ...fast.store, read } }, state }
}

/** The least memory with which a backend for the pack starts, as it says itself. */
async function smallestMemory(of: TinyPack): Promise<number> {
  const refused = await tinyBackend(of, { memoryBytes: 65536 }).catch((error: unknown) => error)
  expect(refused).toMatchObject({ code: 'arena_too_small' })
  return Number(/give the backend (\d+) bytes/.exec(String(refused))?.[1])
}

/** Sixteen layers of experts: several times what the smallest memory holds, although that is rounded up to 64 KiB. */
const deepPack = (gate: GateConfig) => tinyPack({ layers: 16, gate })

describe('a step that fails', () => {
  it('leaves the sequence as it was when the store is down, and goes on when it is back', async () => {
    const slow = slowed(pack)
    const backend = await tinyBackend(slow.pack)
    const sequence = backend.open(tokens.length)
    slow.state.broken = true
    for (let attempt = 0; attempt < 3; attempt++) {
      expect(await thrownBy(() => backend.step(sequence, tokens))).toBe('store_unavailable')
      expect(sequence.length).toBe(0)
    }
    slow.state.broken = false
    expect(await runInSteps(backend, sequence, tokens, [40])).toEqual(expected)
  })

  it('leaves the sequence as it was when it is cancelled while it waits', async () => {
    const backend = await tinyBackend(slowed(pack).pack)
    const sequence = backend.open(tokens.length)
    const controller = new AbortController()
    const step = backend.step(sequence, tokens, controller.signal)
    expect(step).toBeInstanceOf(Promise)
    controller.abort()
    expect(await codeOf(Promise.resolve(step))).toBe('cancelled')
    expect(sequence.length).toBe(0)
    expect(await runInSteps(backend, sequence, tokens, [7, 33])).toEqual(expected)
  })

  it('leaves the sequence as it was when it is cancelled between two of its misses', async () => {
    const slow = slowed(pack)
    const controller = new AbortController()
    const backend = await tinyBackend(slow.pack)
    const sequence = backend.open(tokens.length)
    const before = slow.state.reads
    const step = backend.step(sequence, tokens, controller.signal)
    while (slow.state.reads < before + 3) await new Promise((resolve) => setTimeout(resolve, 0))
    controller.abort()
    expect(await codeOf(Promise.resolve(step))).toBe('cancelled')
    expect(await runInSteps(backend, sequence, tokens, [40])).toEqual(expected)
  })

  it('does nothing at all where the signal has fired before', async () => {
    const backend = await tinyBackend(pack)
    const sequence = backend.open(tokens.length)
    expect(await thrownBy(() => backend.step(sequence, tokens, AbortSignal.abort()))).toBe('cancelled')
    expect(sequence.length).toBe(0)
    expect(sequence.usage.possible).toBe(0)
  })

  it('keeps the tokens of the steps before it', async () => {
    const deep = await deepPack(GATES.clampedLookAhead)
    const whole = await logitsOf(await tinyBackend(deep), tokens)
    const slow = slowed(deep)
    const backend = await tinyBackend(slow.pack, { memoryBytes: await smallestMemory(deep) })
    const sequence = backend.open(tokens.length)
    await backend.step(sequence, tokens.subarray(0, 10))
    slow.state.broken = true
    expect(await thrownBy(() => backend.step(sequence, tokens.subarray(10)))).toBe('store_unavailable')
    expect(sequence.length).toBe(10)
    slow.state.broken = false
    expect(await runInSteps(backend, sequence, tokens.subarray(10), [30])).toEqual(whole)
  })

  it('names the expert whose shard is damaged', async () => {
    const damaged = await tinyPack()
    for (const { bundle, shards } of damaged.manifest.experts.layers.slice(1, 2)) {
      for (const hash of [bundle, ...shards]) {
        const object = damaged.store.objects.get(shardKey(hash))
        if (object) object[0] ^= 1
      }
    }
    const backend = await tinyBackend(damaged)
    const sequence = backend.open(tokens.length)
    const failure = await Promise.resolve()
      .then(() => backend.step(sequence, tokens))
      .catch((error: unknown) => error)
    expect(failure).toMatchObject({ code: 'shard_hash_mismatch', place: { model: 'tiny', layer: 1 } })
    expect(sequence.length).toBe(0)
  })
})

describe('memory', () => {
  it('refuses to start below the floor, and starts with the number it names', async () => {
    const enough = await smallestMemory(pack)
    expect(await codeOf(tinyBackend(pack, { memoryBytes: enough - 65536 }))).toBe('arena_too_small')
    expect(await logitsOf(await tinyBackend(pack, { memoryBytes: enough }), tokens)).toEqual(expected)
  })

  it.each([
    ['own', GATES.clamped],
    ['previous', GATES.clampedLookAhead],
  ])(
    'gives the same bits with an arena that evicts all the time (gates read their %s layer)',
    async (_, gate) => {
      const deep = await deepPack(gate)
      const roomy = await logitsOf(await tinyBackend(deep), tokens)
      const tight = await tinyBackend(deep, { memoryBytes: await smallestMemory(deep) })
      const sequence = tight.open(tokens.length)
      expect(await runInSteps(tight, sequence, tokens, new Array(40).fill(1))).toEqual(roomy)
      const experts = 6 * deep.manifest.config.experts
      expect(sequence.usage.misses).toBeGreaterThan(experts)
      expect(await logitsOf(tight, tokens, [13, 27])).toEqual(roomy)
    },
  )

  it('shares a budget with other models, and gives back what a failed load had taken', async () => {
    const least = await smallestMemory(pack)
    const budget = new MemoryBudget(2 * least + 65536)
    const other = { ...pack, manifest: { ...pack.manifest, name: 'other' } }
    const third = { ...pack, manifest: { ...pack.manifest, name: 'third' } }
    const first = await tinyBackend(pack, { budget, memoryBytes: least })
    const broken = slowed(other)
    broken.state.broken = true
    expect(await codeOf(tinyBackend(broken.pack, { budget }))).toBe('store_unavailable')
    expect(budget.leftFor('other')).toBe(least + 65536)
    const second = await tinyBackend(other, { budget })
    expect(budget.leftFor('third')).toBeLessThanOrEqual(65536)
    expect(await codeOf(tinyBackend(third, { budget }))).toBe('arena_too_small')
    expect(await logitsOf(first, tokens)).toEqual(expected)
    expect(await logitsOf(second, tokens)).toEqual(expected)
    // The same model again takes its own share anew.
    expect(await logitsOf(await tinyBackend(pack, { budget, memoryBytes: least }), tokens)).toEqual(expected)
  })

  it('takes no more than it was given, to the byte, and shares a budget of any size', async () => {
    const deep = await deepPack(GATES.clamped)
    const least = await smallestMemory(deep)
    for (const more of [1, 40_000, 65_535, 65_536]) {
      const budget = new MemoryBudget(least + more)
      await tinyBackend(deep, { budget })
      expect(budget.leftFor('other')).toBe(more % 65_536)
    }
  })

  it('holds nothing of a budget where there are no kernels, or no memory', async () => {
    const budget = new MemoryBudget(32 << 20)
    const modules = { plain: new WebAssembly.Module(Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0)) }
    expect(await codeOf(tinyBackend(pack, { budget, modules }))).toBe('backend_unavailable')
    expect(budget.leftFor('other')).toBe(budget.bytes)
    const memory = vi.spyOn(WebAssembly, 'Memory').mockImplementation(function none() {
      throw new RangeError('could not allocate memory')
    })
    try {
      expect(await codeOf(tinyBackend(pack, { budget }))).toBe('memory_exhausted')
      const measured = thrownBy(() => measureWasm(MODULES['plain only'], pack.manifest, budget.bytes, 1))
      expect(await measured).toBe('memory_exhausted')
    } finally {
      memory.mockRestore()
    }
    expect(budget.leftFor('other')).toBe(budget.bytes)
  })

  it('lends its pages to sequences and takes them back', async () => {
    const backend = await tinyBackend(pack, { contextTokens: 128 })
    for (let round = 0; round < 20; round++) {
      const first = backend.open(64)
      const second = backend.open(33)
      expect(await thrownBy(() => backend.open(1))).toBe('queue_full')
      first.close()
      first.close()
      expect(await thrownBy(() => backend.open(65))).toBe('queue_full')
      backend.open(64).close()
      second.close()
    }
    backend.open(128).close()
    expect(await thrownBy(() => backend.open(129))).toBe('memory_exhausted')
  })

  it('keeps sequences apart, whatever was in their pages before', async () => {
    const backend = await tinyBackend(pack, { contextTokens: 128 })
    const other = backend.open(64)
    const mine = backend.open(64)
    for (let i = 0; i < 40; i++) {
      await backend.step(other, tinyTokens(60).subarray(20 + i, 21 + i))
      await backend.step(mine, tokens.subarray(i, i + 1))
    }
    other.close()
    mine.close()
    const [again, beside] = [backend.open(64), backend.open(64)]
    expect(await runInSteps(backend, again, tokens, [11, 29])).toEqual(expected)
    expect(await runInSteps(backend, beside, tokens, [40])).toEqual(expected)
  })

  it('refuses a sequence of another backend, whose pages it may not have', async () => {
    const backend = await tinyBackend(pack, { contextTokens: 64 })
    const large = await tinyBackend(pack, { contextTokens: 256 })
    large.open(128)
    expect(() => backend.step(large.open(40), tokens)).toThrow(TypeError)
    expect(await logitsOf(backend, tokens)).toEqual(expected)
  })

  it('refuses more tokens than the sequence was opened for', async () => {
    const backend = await tinyBackend(pack)
    const sequence = backend.open(40)
    await backend.step(sequence, tokens)
    expect(await thrownBy(() => backend.step(sequence, tokens.subarray(0, 1)))).toBe('prompt_too_long')
    expect(sequence.length).toBe(40)
  })

  it('takes one step at a time, and no token that there is not', async () => {
    const backend = await tinyBackend(slowed(pack).pack)
    const sequence = backend.open(40)
    const waiting = backend.step(sequence, tokens.subarray(0, 5))
    expect(() => backend.step(sequence, tokens.subarray(5))).toThrow(/still running/)
    await waiting
    const { vocab } = pack.manifest.config
    expect(() => backend.step(sequence, Int32Array.of(vocab))).toThrow(RangeError)
    expect(() => backend.step(sequence, Int32Array.of(-1))).toThrow(RangeError)
    expect(() => backend.step(sequence, new Int32Array(0))).toThrow(RangeError)
    sequence.close()
    expect(() => backend.step(sequence, tokens.subarray(0, 1))).toThrow(RangeError)
  })
})

it('is synchronous once everything that is routed is resident', async () => {
  const backend = await tinyBackend(pack, { modules: MODULES['plain only'] })
  await logitsOf(backend, tokens)
  const sequence = backend.open(tokens.length)
  for (const token of tokens)
    expect(backend.step(sequence, Int32Array.of(token))).toBeInstanceOf(Float32Array)
  expect(sequence.usage).toMatchObject({ misses: 0 })
  expect(sequence.usage.tiers.size).toBe(0)
})
