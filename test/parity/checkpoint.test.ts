/**
 * @module
 * The shipped pack against what an independent decoder found on the weights that it was made from. Packing moves them a
 * little, and so the bounds are wider than those of `node test/parity/checkpoint.ts <checkpoint>` (0.01, |z| < 1e-3).
 */
import { referenceOf } from '@sparsedge/engine/backends/reference/index'
import { packWeights } from '@sparsedge/engine/pack/weights'
import { expect, it } from 'vitest'
import { checkpointGoldens, compareCheckpoint } from './checkpoint-golden.ts'
import { openShipped } from './shipped.ts'

it('expects the same tokens and routes to the same experts as the checkpoint', async () => {
  const { manifest, store } = await openShipped()
  const backend = await referenceOf(packWeights(manifest, store))
  const results = (await checkpointGoldens()).map((golden) => compareCheckpoint(backend, golden))
  const sum = (pick: (result: (typeof results)[number]) => number) =>
    results.reduce((total, result) => total + pick(result), 0)

  expect(sum((it) => it.positions)).toBe(64)
  expect(Math.max(...results.map((it) => it.difference))).toBeLessThan(0.15)
  expect(sum((it) => it.agreeing)).toBeGreaterThanOrEqual(62)
  expect(sum((it) => it.equalDecisions) / sum((it) => it.decisions)).toBeGreaterThan(0.999)
  // An expert is only ever disputed where its gate hardly opens.
  expect(Math.max(...results.map((it) => it.largestDisputed))).toBeLessThan(0.05)
})
