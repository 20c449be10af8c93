/**
 * Residency never changes a result: any arena from the floor up, look-ahead or none, limits that are not reached, steps of
 * any size, several requests in turns, and a store that fails in every way but for good.
 */
import type { GateConfig } from '@sparsedge/engine/model/config'
import type { ExpertOptions } from '@sparsedge/engine/request'
import { withDeadline } from '@sparsedge/engine/store/deadline'
import { faultyStore } from '@sparsedge/engine/store/faulty'
import { verified } from '@sparsedge/engine/store/verified'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { GATES, tinyPack } from '../fixtures/tiny.ts'
import { logitsOf, tinyBackend, tinyTokens } from './wasm.ts'

/** So many that none of the arenas below holds the experts of all. */
const LAYERS = 24
const RUNS = 5
const tokens = tinyTokens(24)
const KINDS: [string, GateConfig][] = [
  ['its own layer', GATES.clamped],
  ['the layer before', GATES.clampedLookAhead],
  ['its own layer, softmax', GATES.softmaxTopK],
]

/** Sizes of steps that are `tokens` together. */
const cuts = fc
  .array(fc.oneof(fc.constant(1), fc.integer({ min: 1, max: 12 })), { minLength: 24, maxLength: 24 })
  .map((sizes) => {
    const list: number[] = []
    let left = tokens.length
    for (const size of sizes) {
      if (left === 0) break
      list.push(Math.min(size, left))
      left -= list.at(-1) ?? 0
    }
    return list
  })

const run = fc.record({
  lookahead: fc.boolean(),
  cuts,
  extraMemory: fc.integer({ min: 0, max: 4 }),
  seed: fc.nat(1000),
  failing: fc.boolean(),
})

describe.each(KINDS)('with gates that read %s', (_, gate) => {
  it('two requests in turns get the bits that each would get with everything in memory', async () => {
    const pack = await tinyPack({ layers: LAYERS, gate })
    const expected = await logitsOf(await tinyBackend(pack), tokens)
    const refused = await tinyBackend(pack, { memoryBytes: 65536 }).catch(String)
    const least = Number(/give the backend (\d+) bytes/.exec(String(refused))?.[1])
    let evicting = 0
    await fc.assert(
      fc.asyncProperty(run, run, async ({ lookahead, cuts, extraMemory, seed, failing }, other) => {
        const faults = failing ? { failed: 0.05, truncated: 0.03, corrupted: 0.03, stalled: 0.01 } : {}
        const far = faultyStore(pack.store, { seed, firstByteMs: failing ? 1 : 0, spread: 1, faults })
        const store = verified(withDeadline(far, 30), 8)
        const backend = await tinyBackend(
          { manifest: pack.manifest, store },
          { memoryBytes: least + extraMemory * 65536 },
        )
        const open = (lookahead: boolean) => {
          const options: ExpertOptions = { policy: 'exact', lookahead, maxFetches: 1e6, maxLatencyMs: 1e6 }
          return {
            lookahead,
            sequence: backend.open(tokens.length, options),
            at: 0,
            logits: new Float32Array(0),
          }
        }
        const [mine, theirs] = [open(lookahead), open(other.lookahead)]
        for (let i = 0; i < Math.max(cuts.length, other.cuts.length); i++) {
          for (const [state, sizes] of [
            [mine, cuts],
            [theirs, other.cuts],
          ] as const) {
            if (i >= sizes.length) continue
            const part = tokens.subarray(state.at, state.at + sizes[i])
            state.at += sizes[i]
            state.logits = Float32Array.from(await backend.step(state.sequence, part))
          }
        }
        expect(mine.logits).toEqual(expected)
        expect(theirs.logits).toEqual(expected)
        for (const { lookahead, sequence } of [mine, theirs]) {
          expect(sequence.usage.fidelity).toBe(1)
          if (!lookahead) expect(sequence.usage.prefetched).toBe(0)
        }
        const { resident, capacity } = backend.residency?.snapshot() ?? { resident: 0, capacity: 0 }
        expect(resident).toBeLessThanOrEqual(capacity)
        const brought = [mine, theirs].reduce(
          (sum, { sequence: { usage } }) => sum + usage.misses + usage.prefetched,
          0,
        )
        if (brought > capacity) evicting += 1
      }),
      { numRuns: RUNS, endOnFailure: true },
    )
    // It would be no test if everything had stayed.
    expect(evicting).toBeGreaterThan(0)
  })
})
