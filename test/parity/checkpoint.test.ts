/**
 * @module
 * The shipped pack against what PyTorch found on the weights that it was made from. Packing moves them a little, and the
 * embedding's rows of 4 bits more than that, so the bounds are wider than those of
 * `node test/parity/checkpoint.ts <checkpoint>` (0.01, |z| < 1e-3).
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
  const fineRows = manifest.trunk.tensors.find(({ name }) => name === 'embed')?.fineRows ?? 0
  expect(fineRows).toBeGreaterThan(0)
  const largest = (isFine: boolean) => {
    const differences = results.flatMap((it) => it.differences)
    const chosen = differences.filter(({ token }) => token < fineRows === isFine)
    expect(chosen.length).toBeGreaterThan(4)
    return Math.max(...chosen.map(({ difference }) => difference))
  }
  expect(largest(true)).toBeLessThan(0.2)
  expect(largest(false)).toBeLessThan(1.5)
  expect(sum((it) => it.agreeing)).toBeGreaterThanOrEqual(62)
  expect(sum((it) => it.equalDecisions) / sum((it) => it.decisions)).toBeGreaterThan(0.998)
  // An expert is only ever disputed where its gate is not far from closed (open gates go up to 1, scores beyond).
  expect(Math.max(...results.map((it) => it.largestDisputed))).toBeLessThan(0.5)
})
