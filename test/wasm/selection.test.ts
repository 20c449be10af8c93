/**
 * What a request may change about its gates: the WASM backend does as the reference does, and a request that changes
 * nothing does not notice one that does.
 */

import type { GateConfig } from '@sparsedge/engine/model/config'
import { referenceBackend } from '@sparsedge/engine/reference'
import { DEFAULT_EXPERTS, type ExpertSelection } from '@sparsedge/engine/request'
import { describe, expect, it } from 'vitest'
import { GATES, tinyPack } from '../fixtures/tiny.ts'
import { divergence, logitsOf, tinyBackend, tinyTokens } from './wasm.ts'

const tokens = tinyTokens(70)
const LAYERS = 3
const even = (level: number) => new Array<number>(LAYERS).fill(level)
const offsets = { '0.2': [-0.2, -0.4, -0.3], '0.7': even(0.3), '1': even(1e4) }
const elastic = (gate: GateConfig): GateConfig => ({ ...gate, offsets })
const softmax = (gate: GateConfig): GateConfig => ({
  ...gate,
  offsets: { '0.3': [1.2, 0.9, 1.1], '1': even(0) },
})
const asked = (selection: ExpertSelection) => ({ ...DEFAULT_EXPERTS, selection })

/** Each with the share of experts that it must reach, where that is a certain one. */
const CASES: [string, GateConfig, ExpertSelection, number?][] = [
  ['a smaller share', elastic(GATES.clamped), { share: 0.2 }],
  ['a larger share', elastic(GATES.clamped), { share: 0.7 }],
  ['the whole share', elastic(GATES.clamped), { share: 1 }, 1],
  ['a smaller share, look-ahead', elastic(GATES.clampedLookAhead), { share: 0.2 }],
  ['the whole share, look-ahead', elastic(GATES.clampedLookAhead), { share: 1 }, 1],
  ['a share of a threshold gate', softmax(GATES.softmaxThreshold), { share: 0.3 }],
  ['the whole share of a threshold gate', softmax(GATES.softmaxThreshold), { share: 1 }, 1],
  ['a threshold', GATES.softmaxThreshold, { threshold: 1.3 }],
  ['one expert', GATES.softmaxTopK, { topK: 1 }, 1 / 4],
  ['three experts, renormalised', GATES.renormalisedTopK, { topK: 3 }, 3 / 4],
  ['three experts, look-ahead', GATES.softmaxLookAhead, { topK: 3 }, 3 / 4],
]

describe.each(CASES)('%s', (_, gate, selection, share) => {
  it('has the reference’s distribution after every token, and uses about as many experts', async () => {
    const pack = await tinyPack({ gate })
    const reference = await referenceBackend()(pack)
    const wasm = await tinyBackend(pack)
    const expected = reference.open(tokens.length, asked(selection))
    const actual = wasm.open(tokens.length, asked(selection))
    const own = reference.open(tokens.length)
    let sum = 0
    let change = 0
    for (let i = 0; i < tokens.length; i++) {
      const token = tokens.subarray(i, i + 1)
      const truth = Float32Array.from(await reference.step(expected, token))
      sum += divergence(truth, await wasm.step(actual, token))
      change += divergence(truth, await reference.step(own, token))
    }
    expect(sum / tokens.length).toBeLessThan(6e-3)
    expect(change / tokens.length).toBeGreaterThan(0.02)
    expect(Math.abs(actual.usage.activeShare - expected.usage.activeShare)).toBeLessThan(0.01)
    expect(actual.usage.fidelity).toBe(1)
    if (share !== undefined) expect(actual.usage.activeShare).toBe(share)
  })

  it('stays with its own request, however steps alternate', async () => {
    const pack = await tinyPack({ gate })
    const backend = await tinyBackend(pack)
    const cuts = [3, 1, 30, 1, 1, 34]
    const alone = {
      own: await logitsOf(backend, tokens, cuts),
      asked: await logitsOf(backend, tokens, cuts, asked(selection)),
    }
    expect(alone.own).not.toEqual(alone.asked)
    const sequences = { own: backend.open(70), asked: backend.open(70, asked(selection)) }
    let at = 0
    let last = {}
    for (const size of cuts) {
      const part = tokens.subarray(at, at + size)
      at += size
      const first = Float32Array.from(await backend.step(sequences.asked, part))
      last = { asked: first, own: Float32Array.from(await backend.step(sequences.own, part)) }
    }
    expect(last).toEqual(alone)
  })
})

it.each([
  ['the reference', referenceBackend()],
  ['WASM', (pack: Awaited<ReturnType<typeof tinyPack>>) => tinyBackend(pack)],
])(
  '%s refuses what the pack cannot do when the sequence is opened, and keeps no memory',
  async (_, create) => {
    const pack = await tinyPack({ gate: GATES.clamped })
    const backend = await create(pack)
    for (let attempt = 0; attempt < 20; attempt++) {
      expect(() => backend.open(200, asked({ share: 0.5 }))).toThrow(
        expect.objectContaining({ code: 'unsupported_selection' }),
      )
    }
    backend.open(200).close()
  },
)
