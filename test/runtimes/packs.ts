/**
 * @module
 * The packs that every runtime reads: tiny ones that between them have each kind of gate, layout and head, and the model
 * that ships.
 */
import { verified } from '@sparsedge/engine/store/verified'
import { directoryTarget } from '@sparsedge/weights-tool/push/directory'
import { localTarget } from '@sparsedge/weights-tool/push/local'
import { push } from '@sparsedge/weights-tool/push/push'
import { GATES, type TinyPackOptions, tinyPack } from '../fixtures/tiny.ts'
import { ROOT } from '../processes.ts'
import { MODEL } from '../shipped.ts'
import type { ProbeTask } from './probe.ts'

const TINY: readonly TinyPackOptions[] = [
  { name: 'tiny-dense', gate: GATES.all },
  {
    name: 'tiny-top-k',
    gate: GATES.softmaxTopK,
    sharedUnits: 32,
    tiedHead: false,
    layouts: { fineRows: 96 },
  },
  { name: 'tiny-threshold', gate: GATES.softmaxThreshold, layouts: { attention: 'q8', experts: 'q8' } },
  { name: 'tiny-look-ahead', gate: GATES.clampedLookAhead, seed: 2 },
]

export const TASKS: readonly ProbeTask[] = [
  ...TINY.map(({ name = '' }) => ({ model: name, prompt: 'one and two', steps: 24 })),
  { model: MODEL, prompt: 'The capital of France is', steps: 24 },
]

/** Adds the tiny packs to a directory and to the bucket in wrangler's state. */
export async function addTinyPacks(directory: string, state: string): Promise<void> {
  const targets = [directoryTarget(directory), await localTarget({ root: ROOT, state })]
  for (const options of TINY) {
    const { manifest, store } = await tinyPack(options)
    for (const target of targets) await push({ path: '', manifest, store: verified(store) }, target)
  }
  for (const target of targets) await target.close()
}
