/**
 * The graph that the WebGPU backend runs, against the reference backend: with float weights, on onnxruntime's CPU kernels.
 */
import type { GateConfig } from '@sparsedge/engine/model/config'
import { gateRule } from '@sparsedge/engine/model/selection'
import { packWeights } from '@sparsedge/engine/pack/weights'
import { referenceBackend } from '@sparsedge/engine/reference'
import { DEFAULT_EXPERTS, type ExpertSelection } from '@sparsedge/engine/request'
import { describe, expect, it } from 'vitest'
import { GATES, type TinyPackOptions, tinyPack } from '../fixtures/tiny.ts'
import { tinyTokens } from '../wasm/wasm.ts'
import { oracleLogits } from './oracle.ts'

const VARIANTS: Record<string, TinyPackOptions> = {
  ...Object.fromEntries(Object.entries(GATES).map(([name, gate]) => [`gate ${name}`, { gate }])),
  'a shared expert': { sharedUnits: 64, gate: GATES.softmaxTopK },
  'a head of its own': { tiedHead: false },
  'everything q8': { sharedUnits: 32, layouts: { attention: 'q8', experts: 'q8' } },
  'a second plane for some rows': { layouts: { fineRows: 96 } },
  'one key head for six': { heads: 6, kvHeads: 1, headDim: 80, hidden: 96 },
  'one layer': { layers: 1 },
  'scaled rotations': { ropeScale: 1.2 },
}
/** What requests may ask of a gate. */
const SELECTIONS: [string, GateConfig, ExpertSelection][] = [
  ['a share', { ...GATES.clampedLookAhead, offsets: { '0.2': [-0.2, -0.4, -0.3] } }, { share: 0.2 }],
  ['a threshold', GATES.softmaxThreshold, { threshold: 1.3 }],
  ['one expert', GATES.softmaxTopK, { topK: 1 }],
  ['three experts, renormalised', GATES.renormalisedTopK, { topK: 3 }],
]
const tokens = tinyTokens(70)
const sizes = [33, 1, 1, 34, 1]

describe.each(Object.entries(VARIANTS))('a tiny model with %s', (_, options) => {
  it('gives the reference’s logits to 1e-4, with the cache carried on', async () => {
    const pack = await tinyPack(options)
    const reference = await referenceBackend()(pack)
    const sequence = reference.open(tokens.length)
    const actual = await oracleLogits(packWeights(pack.manifest, pack.store), tokens, sizes)
    let at = 0
    for (const [i, size] of sizes.entries()) {
      const expected = await reference.step(sequence, tokens.subarray(at, at + size))
      expect(largestDifference(expected, actual[i])).toBeLessThan(1e-4)
      at += size
    }
  })
})

it.each(SELECTIONS)('does as the reference does when a request asks for %s', async (_, gate, selection) => {
  const { manifest, store } = await tinyPack({ gate })
  const reference = await referenceBackend()({ manifest, store })
  const sequence = reference.open(tokens.length, { ...DEFAULT_EXPERTS, selection })
  const expected = Float32Array.from(await reference.step(sequence, tokens))
  const rule = gateRule(manifest.config, selection)
  const [actual] = await oracleLogits(packWeights(manifest, store), tokens, [tokens.length], rule)
  expect(largestDifference(expected, actual)).toBeLessThan(1e-4)
})

function largestDifference(a: Float32Array, b: Float32Array): number {
  expect(b.length).toBe(a.length)
  return a.reduce((most, value, i) => Math.max(most, Math.abs(value - b[i])), 0)
}
