/**
 * @module
 * Prints how the reference reproduces what PyTorch found on the shipped model's checkpoint: on the pack, and, where the
 * checkpoint's directory is given, on its exact weights. There logits must agree to 0.01, and routed experts but for
 * scores |z| < 1e-3.
 *
 *     node test/parity/checkpoint.ts [<checkpoint>]
 */
import { referenceOf } from '@sparsedge/engine/backends/reference/index'
import type { WeightSource } from '@sparsedge/engine/model/weights'
import { packWeights } from '@sparsedge/engine/pack/weights'
import { openCheckpoint } from '@sparsedge/weights-tool/checkpoint/open'
import { checkpointGoldens, compareCheckpoint } from './checkpoint-golden.ts'
import { openShipped } from './shipped.ts'

const { manifest, store } = await openShipped()
await print('shipped pack', packWeights(manifest, store))
if (process.argv[2] !== undefined) {
  const checkpoint = await openCheckpoint(process.argv[2])
  await print('exact weights', checkpoint.weights)
  await checkpoint.close()
}

async function print(title: string, weights: WeightSource): Promise<void> {
  const backend = await referenceOf(weights)
  const rows = (await checkpointGoldens()).map((golden) => {
    const result = compareCheckpoint(backend, golden)
    return {
      positions: result.positions,
      'max |Δ| of top-20': Math.max(...result.differences.map((it) => it.difference)).toExponential(1),
      'same top-1': result.agreeing,
      'layers x positions': result.sets,
      'same experts': result.equalSets,
      'disputed experts': result.decisions - result.equalDecisions,
      'largest |z| of them': result.largestDisputed.toExponential(1),
    }
  })
  console.log(title)
  console.table(rows)
}
