/**
 * @module
 * The packs that every runtime reads: tiny ones that between them have each kind of gate, layout and head, and the model
 * that ships.
 */
import { mkdir, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { GATES, type TinyPackOptions, tinyPack } from '../fixtures/tiny.ts'
import type { ProbeTask } from './probe.ts'

const TINY: readonly TinyPackOptions[] = [
  { name: 'tiny-dense', gate: GATES.all },
  { name: 'tiny-top-k', gate: GATES.softmaxTopK, sharedUnits: 32, tiedHead: false },
  { name: 'tiny-threshold', gate: GATES.softmaxThreshold, layouts: { attention: 'q8', experts: 'q8' } },
  { name: 'tiny-look-ahead', gate: GATES.clampedLookAhead, seed: 2 },
]

export const TASKS: readonly ProbeTask[] = TINY.map(({ name = '' }) => ({
  model: name,
  prompt: [1, 5, 9, 20, 33],
  steps: 24,
}))

/** Writes all packs into a directory, as `shards/…` and `models/…`. */
export async function writePacks(directory: string): Promise<void> {
  for (const options of TINY) {
    const { store } = await tinyPack(options)
    for (const [key, bytes] of store.objects) {
      await mkdir(dirname(join(directory, key)), { recursive: true })
      await writeFile(join(directory, key), bytes)
    }
  }
}
