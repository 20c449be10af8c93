/**
 * Making do with the experts that are resident: what runs is exactly what runs when the others do not exist, no step waits
 * for a fetch, and the arena improves behind its back.
 */
import type { ErrorCode } from '@sparsedge/engine/errors'
import type { GateConfig } from '@sparsedge/engine/model/config'
import type { WeightSource } from '@sparsedge/engine/model/weights'
import type { ExpertOptions } from '@sparsedge/engine/request'
import { memoryStore } from '@sparsedge/engine/store/memory'
import { type ShardStore, shardKey } from '@sparsedge/engine/store/store'
import { pack } from '@sparsedge/weights-tool/pack'
import { describe, expect, it } from 'vitest'
import { GATES, type TinyPack, tinyPack, tinySource } from '../fixtures/tiny.ts'
import { tinyTokenizer } from '../fixtures/tiny-tokenizer.ts'
import { divergence, logitsOf, runInSteps, tinyBackend, tinyTokens } from './wasm.ts'

const LAYERS = 24
const EXPERTS = 4
const tokens = tinyTokens(40)
const ONE_BY_ONE = new Array<number>(tokens.length).fill(1)
/** Fetches nothing at all, and waits for nothing. */
const AS_IT_IS: ExpertOptions = { policy: 'resident_first', lookahead: true, maxFetches: 0 }

/** Which experts a pack says are used most: another one in each layer, and another one next to most. */
const profile = Array.from({ length: LAYERS }, (_, layer) =>
  Array.from({ length: EXPERTS }, (_, e) => [1, 0.5, 0.2, 0.1][(layer + e) % EXPERTS]),
)

/** A backend whose arena has room for about half of a pack's experts, and holds those that the profile puts first. */
async function filled(of: Pick<TinyPack, 'manifest'>, store: ShardStore) {
  const pack = { manifest: { ...of.manifest, profile }, store }
  const refused = await tinyBackend(pack, { memoryBytes: 65536 }).catch(String)
  const least = Number(/give the backend (\d+) bytes/.exec(String(refused))?.[1])
  const backend = await tinyBackend(pack, { memoryBytes: least + 2 * 65536 })
  await backend.residency?.prewarm()
  const snapshot = backend.residency?.snapshot()
  if (!snapshot) throw new Error('a WASM backend has a residency')
  expect(snapshot.resident).toBe(snapshot.capacity)
  expect(snapshot.capacity).toBeGreaterThan(LAYERS)
  expect(snapshot.capacity).toBeLessThan(0.8 * LAYERS * EXPERTS)
  return { backend, snapshot }
}

/** The deep model with gates that never choose the experts which are not in the list. */
async function without(gate: GateConfig, isResident: Uint8Array) {
  const whole = tinySource({ layers: LAYERS, gate })
  const source: WeightSource = {
    config: whole.config,
    async tensor(name) {
      const tensor = await whole.tensor(name)
      const layer = /layers\.(\d+)\.mlp\.router\.bias/.exec(name)?.[1]
      if (layer === undefined) return tensor
      const row = Number(layer) * EXPERTS
      return { ...tensor, data: tensor.data.map((bias, e) => (isResident[row + e] === 1 ? bias : -1e4)) }
    },
  }
  const store = memoryStore()
  const manifest = await pack(
    source,
    {
      name: 'less',
      layouts: { embedding: 'q8', attention: 'q4', experts: 'q4' },
      text: { tokenizer: new TextEncoder().encode(JSON.stringify(tinyTokenizer())) },
      provenance: { source: 'random', licence: 'Apache-2.0', tool: 'test' },
    },
    async ({ bytes }) => {
      await store.putShard(bytes)
    },
  )
  return { manifest, store, source }
}

describe('resident_first', () => {
  it.each([
    ['own', GATES.clamped],
    ['previous', GATES.clampedLookAhead],
  ])(
    'runs a clamped gate as if the missing experts were not there (gates read their %s layer)',
    async (_, gate) => {
      const deep = await tinyPack({ layers: LAYERS, gate })
      const { backend, snapshot } = await filled(deep, deep.store)
      const less = await tinyBackend(await without(gate, snapshot.isResident))
      const expected = less.open(tokens.length)
      const actual = backend.open(tokens.length, AS_IT_IS)
      expect(await runInSteps(backend, actual, tokens, ONE_BY_ONE)).toEqual(
        await runInSteps(less, expected, tokens, ONE_BY_ONE),
      )
      expect(actual.usage.activated).toBe(expected.usage.activated)
      expect(actual.usage.honoured).toBe(actual.usage.activated)
      expect(actual.usage.fidelity).toBeGreaterThan(0.2)
      expect(actual.usage.fidelity).toBeLessThan(0.95)
      expect(actual.usage.requests).toBe(0)
      // A prompt is restricted as its tokens alone would be.
      expect(await logitsOf(backend, tokens, [17, 23], AS_IT_IS)).toEqual(await logitsOf(less, tokens))
    },
  )

  it('takes the next best of those that are there where a gate keeps a number of experts', async () => {
    const gate = GATES.renormalisedTopK
    const deep = await tinyPack({ layers: LAYERS, gate })
    const { backend, snapshot } = await filled(deep, deep.store)
    const less = await tinyBackend(await without(gate, snapshot.isResident))
    const actual = backend.open(tokens.length, AS_IT_IS)
    const expected = less.open(tokens.length)
    let sum = 0
    for (const token of tokens) {
      const p = Float32Array.from(await less.step(expected, Int32Array.of(token)))
      sum += divergence(p, await backend.step(actual, Int32Array.of(token)))
    }
    // Sums over other probabilities round in other places.
    expect(sum / tokens.length).toBeLessThan(1e-3)
    const there = (layer: number) =>
      snapshot.isResident.subarray(layer * EXPERTS, (layer + 1) * EXPERTS).reduce((a, b) => a + b, 0)
    const each = Array.from({ length: LAYERS }, (_, layer) => Math.min(there(layer), 2) * tokens.length)
    expect([...actual.usage.layerActivated]).toEqual(each)
    expect(actual.usage.honoured).toBeLessThan(actual.usage.activated)
  })

  it.each([
    ['threshold', GATES.softmaxThreshold],
    ['top k', GATES.softmaxTopK],
    ['always on', GATES.all],
  ])('keeps what is there of a gate by %s, with finite logits', async (_, gate) => {
    const deep = await tinyPack({ layers: LAYERS, gate })
    const { backend } = await filled(deep, deep.store)
    const sequence = backend.open(tokens.length, AS_IT_IS)
    const logits = await runInSteps(backend, sequence, tokens, ONE_BY_ONE)
    expect(logits.every(Number.isFinite)).toBe(true)
    expect(sequence.usage.fidelity).toBeGreaterThan(0.05)
    expect(sequence.usage.fidelity).toBeLessThan(0.95)
  })

  it('gives the exact bits, and full fidelity, where everything is resident', async () => {
    const whole = await tinyPack()
    const backend = await tinyBackend(whole)
    const exact = await logitsOf(backend, tokens)
    await backend.residency?.prewarm()
    const sequence = backend.open(tokens.length, AS_IT_IS)
    expect(await runInSteps(backend, sequence, tokens, ONE_BY_ONE)).toEqual(exact)
    expect(sequence.usage.fidelity).toBe(1)
    expect(sequence.usage.misses).toBe(0)
  })

  it('does not change what exact requests beside it get', async () => {
    const deep = await tinyPack({ layers: LAYERS })
    const expected = await logitsOf(await tinyBackend(deep), tokens)
    const { backend } = await filled(deep, deep.store)
    const [exact, loose] = [backend.open(40), backend.open(40, AS_IT_IS)]
    let logits = new Float32Array(0)
    for (const token of tokens) {
      await backend.step(loose, Int32Array.of(token))
      logits = Float32Array.from(await backend.step(exact, Int32Array.of(token)))
    }
    expect(logits).toEqual(expected)
    expect(exact.usage.fidelity).toBe(1)
    expect(loose.usage.fidelity).toBeLessThan(1)
  })

  it('waits for no fetch while it decodes, starts few, and profits from those that come', async () => {
    const deep = await tinyPack({ layers: LAYERS })
    let open = true
    const held: (() => void)[] = []
    const store: ShardStore = {
      ...deep.store,
      async read(hash, into, signal) {
        if (!open) await new Promise<void>((resolve) => held.push(resolve))
        return deep.store.read(hash, into, signal)
      },
    }
    const { backend, snapshot } = await filled(deep, store)
    open = false
    const sequence = backend.open(256, { policy: 'resident_first', lookahead: true, maxLatencyMs: 0 })
    const run = (part: Int32Array) => {
      const before = { chosen: sequence.usage.chosen, honoured: sequence.usage.honoured }
      for (const token of part) {
        expect(backend.step(sequence, Int32Array.of(token))).toBeInstanceOf(Float32Array)
        expect(held.length).toBeLessThanOrEqual(6)
      }
      const { chosen, honoured } = sequence.usage
      return (honoured - before.honoured) / (chosen - before.chosen)
    }
    // The first token of all is a prompt, and may wait; it has no time for that.
    await backend.step(sequence, tokens.subarray(0, 1))
    const same = Int32Array.of(7, 7, 7, 7)
    const early = run(same)
    for (let i = 0; i < 200; i++) {
      for (const answer of held.splice(0)) answer()
      await new Promise((resolve) => setImmediate(resolve))
      if (i % 4 === 0) run(Int32Array.of(7))
    }
    expect(run(same)).toBeGreaterThan(early)
    expect(sequence.usage.waitMs).toBeLessThan(50)
    expect(backend.residency?.snapshot().isResident).not.toEqual(snapshot.isResident)
    expect(backend.residency?.snapshot().resident).toBeLessThanOrEqual(snapshot.capacity)
  })
})

describe('limits of an exact request', () => {
  it.each<[string, Partial<ExpertOptions>, ErrorCode]>([
    ['fetches', { maxFetches: 3 }, 'expert_fetches_spent'],
    ['bytes', { maxBytes: 20_000 }, 'expert_budget_spent'],
    ['time', { maxLatencyMs: 5 }, 'expert_budget_spent'],
  ])('on %s end it with a typed error, and leave the sequence as it was', async (_, limits, code) => {
    const deep = await tinyPack({ layers: LAYERS })
    const store: ShardStore = {
      ...deep.store,
      async read(...args) {
        await new Promise((resolve) => setTimeout(resolve, 3))
        return deep.store.read(...args)
      },
    }
    const backend = await tinyBackend({ ...deep, store })
    const limited = backend.open(40, { policy: 'exact', lookahead: true, ...limits })
    await expect((async () => backend.step(limited, tokens))()).rejects.toMatchObject({
      code,
      place: { model: 'tiny' },
    })
    expect(limited.length).toBe(0)
    const { usage } = limited
    expect(usage.requests).toBeLessThanOrEqual(limits.maxFetches ?? 99)
    expect(usage.bytes).toBeLessThanOrEqual(limits.maxBytes ?? Number.POSITIVE_INFINITY)
    // The same limits, and no fidelity asked: it goes on.
    const loose = backend.open(40, { policy: 'resident_first', lookahead: true, ...limits })
    expect((await backend.step(loose, tokens)).every(Number.isFinite)).toBe(true)
    expect(loose.usage.fidelity).toBeLessThan(1)
    const roomy = await logitsOf(await tinyBackend(deep), tokens)
    expect(await logitsOf(backend, tokens)).toEqual(roomy)
  })

  it('is not spent by what is resident', async () => {
    const whole = await tinyPack()
    const backend = await tinyBackend(whole)
    await backend.residency?.prewarm()
    const frugal: ExpertOptions = {
      policy: 'exact',
      lookahead: true,
      maxFetches: 0,
      maxBytes: 0,
      maxLatencyMs: 0,
    }
    expect(await logitsOf(backend, tokens, [40], frugal)).toEqual(await logitsOf(backend, tokens))
  })
})

it('a pack whose every expert is missing still answers a request that does not insist', async () => {
  const whole = await tinyPack()
  for (const { bundle, shards } of whole.manifest.experts.layers) {
    for (const hash of [bundle, ...shards]) whole.store.objects.delete(shardKey(hash))
  }
  const backend = await tinyBackend(whole)
  const sequence = backend.open(40, AS_IT_IS)
  expect((await backend.step(sequence, tokens)).every(Number.isFinite)).toBe(true)
  expect(sequence.usage.fidelity).toBe(0)
  expect(sequence.usage.activated).toBe(0)
})
