import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { tensorNames } from '@sparsedge/engine/model/weights'
import type { ShardRef } from '@sparsedge/engine/pack/manifest'
import { packWeights } from '@sparsedge/engine/pack/weights'
import type { ShardStore } from '@sparsedge/engine/store/store'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { relativeError } from '../../test/fixtures/relative-error.ts'
import { GATES, type TinyPack, type TinyPackOptions, tinyPack } from '../../test/fixtures/tiny.ts'
import { openCheckpoint } from './checkpoint/open.ts'
import { type PackOptions, pack } from './pack.ts'
import { readShard } from './pack-directory.ts'
import { unpack } from './unpack.ts'

let directory: string
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'unpack-'))
})
afterEach(() => rm(directory, { recursive: true }))

/** Unpacks a pack and packs the checkpoint that comes of it. */
async function again({ manifest, store }: TinyPack, dtype: 'F32' | 'F16' = 'F32') {
  await unpack({ path: '', manifest, store }, directory, { dtype })
  const checkpoint = await openCheckpoint(directory)
  try {
    const embed = manifest.trunk.tensors.find(({ name }) => name === 'embed')
    const layouts: PackOptions['layouts'] = {
      embedding: embed?.layout === 'q8' ? 'q8' : 'q4',
      ...(embed?.fineRows !== undefined && { fineRows: embed.fineRows }),
      attention: 'q4',
      experts: manifest.experts.layout,
    }
    const { text, provenance } = checkpoint
    const origin = { ...provenance, licence: provenance.licence ?? '', tool: manifest.provenance.tool }
    return await pack(
      checkpoint.weights,
      { name: manifest.name, layouts, text, provenance: origin },
      async ({ bytes }) => void (await store.putShard(bytes)),
    )
  } finally {
    await checkpoint.close()
  }
}

const KINDS: [string, TinyPackOptions][] = [
  ['look-ahead gates', {}],
  ['a dense FFN', { gate: GATES.all }],
  [
    'a shared expert and a head of its own',
    { gate: GATES.softmaxThreshold, sharedUnits: 32, tiedHead: false },
  ],
  ['no begin token, scaled rotations', { bosToken: undefined, ropeScale: 1.25 }],
]

describe.each(KINDS)('a pack with %s', (_, options) => {
  it('comes back from its checkpoint with the same weights, text and configuration', async () => {
    const before = await tinyPack({ ...options, layouts: { embedding: 'q4' } })
    const after = await again(before)
    // Hashes may differ: the same weights can be written in several ways, as can the same JSON.
    const { config, name, provenance, text } = before.manifest
    expect(after).toMatchObject({ config, name, provenance, text: { chatTemplate: text.chatTemplate } })
    expect(await json(before.store, after.text.tokenizer)).toEqual(await json(before.store, text.tokenizer))
    const [old, young] = [packWeights(before.manifest, before.store), packWeights(after, before.store)]
    const quantised = new Set(after.quantisation.map(({ name }) => name))
    for (const name of tensorNames(after.config)) {
      const [{ data: expected }, { data: found }] = [await old.tensor(name), await young.tensor(name)]
      if (quantised.has(name)) expect(relativeError(found, expected), name).toBeLessThan(0.002)
      else expect(found, name).toEqual(expected)
    }
  })
})

it.each([
  ['8-bit planes', {}],
  ['a second plane that ends early', { fineRows: 96 }],
])('drifts by no more than its own rounding in %s and half floats', async (_, layouts) => {
  const before = await tinyPack({ layouts: { embedding: 'q8', experts: 'q8', ...layouts } })
  const after = await again(before, 'F16')
  expect(after.trunk.tensors).toEqual(before.manifest.trunk.tensors)
  for (const { name, relativeError: error } of after.quantisation) expect(error, name).toBeLessThan(0.01)
})

it('writes the files of a Hugging Face checkpoint', async () => {
  const { manifest, store } = await tinyPack()
  const seen: string[] = []
  await unpack({ path: '', manifest, store }, directory, {
    dtype: 'F32',
    onTensor: (name) => seen.push(name),
  })
  expect(seen).toEqual(tensorNames(manifest.config))
  const config: unknown = JSON.parse(await readFile(join(directory, 'config.json'), 'utf8'))
  expect(config).toMatchObject({ model_type: 'ds_moe', num_experts: 4, expert_units: 32, shared_units: 0 })
  for (const file of ['model.safetensors', 'tokenizer.json', 'chat_template.jinja']) {
    expect((await readFile(join(directory, file))).length).toBeGreaterThan(20)
  }
})

it('stops at a damaged shard', async () => {
  const { manifest, store } = await tinyPack()
  const bundle = store.objects.get(`shards/${manifest.experts.layers[1].bundle}`)
  if (bundle) bundle[100] ^= 1
  await expect(unpack({ path: '', manifest, store }, directory, { dtype: 'F32' })).rejects.toMatchObject({
    code: 'shard_hash_mismatch',
  })
})

async function json(store: ShardStore, ref: ShardRef): Promise<unknown> {
  return JSON.parse(new TextDecoder().decode(await readShard(store, ref)))
}
