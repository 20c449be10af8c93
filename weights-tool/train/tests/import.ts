/**
 * @module
 * The packer's view of a checkpoint directory that the trainer wrote: opens it as `weights-tool pack` would, reads every
 * tensor the configuration implies, and prints what it found.
 */
import { tensorNames } from '@sparsedge/engine/model/weights'
import { openHuggingFace } from '../../src/checkpoint/huggingface.ts'

const checkpoint = await openHuggingFace(process.argv[2], {})
const { config } = checkpoint.weights
const tensors: Record<string, { shape: readonly number[]; sum: number }> = {}
for (const name of tensorNames(config)) {
  const { shape, data } = await checkpoint.weights.tensor(name)
  tensors[name] = { shape, sum: data.reduce((sum, value) => sum + value, 0) }
}
const hasTemplate = checkpoint.text.chatTemplate !== undefined
await checkpoint.close()
process.stdout.write(JSON.stringify({ config, tensors, hasTemplate }))
