/**
 * @module
 * Prints what each step from float weights to integer kernels costs: the divergence between two backends after every
 * token of test/goldens/texts.json, over the full vocabulary. The first of the two is the truth.
 *
 *     node test/parity/kl.ts                              WASM (both builds) against the reference, on the shipped pack
 *     node test/parity/kl.ts --checkpoint <path>          the shipped pack against the checkpoint that it was made from
 *     node test/parity/kl.ts --pack <path>                a checkpoint, packed as `weights-tool pack` does, against itself
 */
import { parseArgs } from 'node:util'
import type { Backend } from '@sparsedge/engine/backends/backend'
import { referenceOf } from '@sparsedge/engine/backends/reference/index'
import { wasmBackend } from '@sparsedge/engine/backends/wasm/index'
import { packWeights } from '@sparsedge/engine/pack/weights'
import { memoryStore } from '@sparsedge/engine/store/memory'
import type { Checkpoint } from '@sparsedge/weights-tool/checkpoint/checkpoint'
import { openCheckpoint } from '@sparsedge/weights-tool/checkpoint/open'
import { pack } from '@sparsedge/weights-tool/pack'
import { argmax, divergence, logProbabilities } from './divergence.ts'
import { openShipped, type Pack, wasmModules } from './shipped.ts'
import { mean, textGoldens } from './texts.ts'

const { values } = parseArgs({ options: { checkpoint: { type: 'string' }, pack: { type: 'string' } } })

if (values.pack !== undefined) {
  const checkpoint = await openCheckpoint(values.pack)
  const packed = await packInMemory(checkpoint)
  await compare('packed against its source', await referenceOf(checkpoint.weights), {
    packed: await reference(packed),
    ...(await wasm(packed)),
  })
  await checkpoint.close()
} else if (values.checkpoint !== undefined) {
  const checkpoint = await openCheckpoint(values.checkpoint)
  const shipped = await reference(await openShipped())
  await compare('shipped pack against its checkpoint', await referenceOf(checkpoint.weights), { shipped })
  await checkpoint.close()
} else {
  const shipped = await openShipped()
  await compare('WASM against the reference', await reference(shipped), await wasm(shipped))
}

function reference({ manifest, store }: Pack): Promise<Backend> {
  return referenceOf(packWeights(manifest, store))
}

async function wasm(pack: Pack): Promise<Record<string, Backend>> {
  const { plain, relaxed } = await wasmModules()
  const memoryBytes = 256 * 2 ** 20 // the size of the arena changes no result, only the time
  const backends = [await wasmBackend({ modules: { plain }, memoryBytes })(pack)]
  if (relaxed) backends.push(await wasmBackend({ modules: { plain, relaxed }, memoryBytes })(pack))
  return Object.fromEntries(backends.map((backend) => [backend.name, backend]))
}

/** With the layouts that `weights-tool pack` chooses by itself. */
async function packInMemory({ weights, text }: Checkpoint): Promise<Pack> {
  const store = memoryStore()
  const manifest = await pack(
    weights,
    {
      name: 'measured',
      layouts: { embedding: 'auto', attention: 'q4', experts: 'q4' },
      text,
      provenance: { source: 'a measurement', licence: 'not stated', tool: 'test/parity/kl.ts' },
    },
    async ({ bytes }) => {
      await store.putShard(bytes)
    },
  )
  return { manifest, store }
}

interface Sample {
  readonly backend: string
  readonly text: string
  readonly divergence: number
  readonly sameTop: boolean
}

/** Feeds all texts to all backends, token by token, and prints one line per backend and text. */
async function compare(title: string, truth: Backend, others: Record<string, Backend>): Promise<void> {
  const samples: Sample[] = []
  const texts = await textGoldens()
  for (const { name: text, ids } of texts) {
    const expected = truth.open(ids.length)
    const found = Object.entries(others).map(([backend, it]) => ({
      backend,
      it,
      sequence: it.open(ids.length),
    }))
    for (const id of ids) {
      const token = Int32Array.of(id)
      const p = logProbabilities(await truth.step(expected, token))
      for (const { backend, it, sequence } of found) {
        const q = logProbabilities(await it.step(sequence, token))
        samples.push({ backend, text, divergence: divergence(p, q), sameTop: argmax(p) === argmax(q) })
      }
    }
    for (const { sequence } of [...found, { sequence: expected }]) sequence.close()
  }
  console.log(title)
  console.table(
    Object.keys(others).flatMap((backend) => [
      ...texts.map(({ name }) => summary(backend, name, samples)),
      summary(backend, 'all', samples),
    ]),
  )
}

function summary(backend: string, text: string, samples: readonly Sample[]): Record<string, unknown> {
  const mine = samples.filter((it) => it.backend === backend && (text === 'all' || it.text === text))
  const divergences = mine.map((it) => it.divergence)
  return {
    backend,
    text,
    positions: mine.length,
    'mean KL': mean(divergences).toExponential(2),
    'max KL': Math.max(...divergences).toExponential(1),
    'same top-1': `${(100 * mean(mine.map(({ sameTop }) => (sameTop ? 1 : 0)))).toFixed(1)} %`,
  }
}
