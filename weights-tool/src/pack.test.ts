import type { ModelConfig } from '@sparsedge/engine/model/config'
import { tensorNames } from '@sparsedge/engine/model/weights'
import { planeBytes } from '@sparsedge/engine/pack/layout'
import { FORMAT, MAX_TRUNK_SHARD, type Manifest, trunkBytes } from '@sparsedge/engine/pack/manifest'
import { packWeights } from '@sparsedge/engine/pack/weights'
import { sha256 } from '@sparsedge/engine/store/sha256'
import { shardKey } from '@sparsedge/engine/store/store'
import { describe, expect, it } from 'vitest'
import { relativeError } from '../../test/fixtures/relative-error.ts'
import { GATES, packOf, type TinyPackOptions, tinyPack, tinySource } from '../../test/fixtures/tiny.ts'
import { TINY_VOCAB, tinyTokenizer } from '../../test/fixtures/tiny-tokenizer.ts'
import { manifestBytes, type PackObject, type PackOptions, pack } from './pack.ts'

const KINDS: [string, TinyPackOptions][] = [
  ['look-ahead gates', {}],
  ['a dense FFN', { gate: GATES.all }],
  ['a shared expert', { gate: GATES.softmaxTopK, sharedUnits: 64 }],
  ['a head of its own', { tiedHead: false }],
  ['8-bit experts', { layouts: { experts: 'q8' }, sharedUnits: 32 }],
  ['8-bit attention', { layouts: { attention: 'q8', embedding: 'q4' } }],
  ['an embedding whose second plane ends early', { layouts: { fineRows: 96 } }],
  ['the same and a head of its own', { tiedHead: false, layouts: { fineRows: 96 } }],
  ['one wide expert', { experts: 1, expertUnits: 96, gate: GATES.all }],
]

describe.each(KINDS)('a pack with %s', (_, options) => {
  it('holds every tensor where the engine looks for it', async () => {
    const { manifest, store, source } = await tinyPack(options)
    const packed = packWeights(manifest, store)
    const stated = new Map(manifest.quantisation.map((row) => [row.name, row.relativeError]))
    for (const name of tensorNames(source.config)) {
      const { data: expected } = await source.tensor(name)
      const { data: found } = await packed.tensor(name)
      if (!stated.has(name)) expect(found, name).toEqual(expected)
      else expect(relativeError(found, expected), name).toBeCloseTo(stated.get(name) ?? Number.NaN, 4)
    }
  })

  it('is the same bytes every time', async () => {
    const [one, two] = [await tinyPack(options), await tinyPack(options)]
    expect(manifestBytes(one.manifest)).toEqual(manifestBytes(two.manifest))
    expect([...one.store.objects.keys()]).toEqual([...two.store.objects.keys()])
  })
})

describe('the objects of a pack', () => {
  it('are named by their hash, and a bundle is its experts end to end', async () => {
    const { manifest, store } = await tinyPack()
    for (const [key, bytes] of store.objects) {
      if (key.startsWith('shards/')) expect(shardKey(await sha256(bytes))).toBe(key)
    }
    for (const { bundle, shards } of manifest.experts.layers) {
      const joined = Buffer.concat(shards.map((hash) => store.objects.get(shardKey(hash)) ?? Buffer.of()))
      expect(await sha256(new Uint8Array(joined))).toBe(bundle)
    }
  })

  it('come in an order that lets them be written as they come', async () => {
    const kinds: PackObject['kind'][] = []
    await packTiny({ layers: 2 }, async ({ kind }) => void kinds.push(kind))
    const layer = ['expert', 'expert', 'expert', 'expert', 'bundle']
    expect(kinds).toEqual([...layer, ...layer, 'trunk', 'text'])
  })

  it('keep to 4 MiB a trunk shard, cut where one is full', async () => {
    const source = tinySource({ vocab: 40_000, hidden: 256, layers: 1 })
    // Zeros, since they are quick to make and to quantise.
    const embedding = { shape: [40_000, 256], data: new Float32Array(40_000 * 256) }
    const tensor = (name: string) =>
      name.includes('embed') ? Promise.resolve(embedding) : source.tensor(name)
    const manifest = await packFrom({ ...source, tensor })
    const sizes = manifest.trunk.shards.map(({ bytes }) => bytes)
    expect(sizes.length).toBeGreaterThan(1)
    expect(sizes.slice(0, -1).every((bytes) => bytes === MAX_TRUNK_SHARD)).toBe(true)
    expect(trunkBytes(manifest)).toBe(sizes.reduce((sum, n) => sum + n, 0))
  })
})

describe('the embedding', () => {
  it('is 8-bit by default, and 4-bit where its source was', async () => {
    const auto = await tinyPack({ layouts: { embedding: 'auto' } })
    expect(layoutOf(auto, 'embed')).toBe('q8')
    const coarse = await tinyPack({ layouts: { embedding: 'q4' } })
    const again = await packFrom(packWeights(coarse.manifest, coarse.store))
    expect(again.trunk.tensors.find(({ name }) => name === 'embed')?.layout).toBe('q4')
  })
})

describe('a second plane for the first rows only', () => {
  it('holds them as 8 bits do, the others as 4 bits do, and takes as much less', async () => {
    const [some, q8, q4] = await Promise.all(
      [{ fineRows: 96 }, {}, { embedding: 'q4' as const }].map((layouts) => tinyPack({ layouts })),
    )
    const embedding = async ({ manifest, store }: typeof some) => {
      const { data, shape } = await packWeights(manifest, store).tensor('model.embed_tokens.weight')
      const border = 96 * shape[1]
      return [data.subarray(0, border), data.subarray(border)]
    }
    const [fine, coarse] = await embedding(some)
    expect(fine).toEqual((await embedding(q8))[0])
    expect(coarse).toEqual((await embedding(q4))[1])
    const { vocab, hidden } = some.manifest.config
    const left = planeBytes(vocab, hidden) - planeBytes(96, hidden)
    expect(trunkBytes(q8.manifest) - trunkBytes(some.manifest)).toBe(left)
  })

  it('is not stated where it covers all rows, or where there is one plane', async () => {
    for (const layouts of [{ fineRows: 1024 }, { embedding: 'q4' as const, fineRows: 96 }]) {
      const { manifest } = await tinyPack({ layouts })
      expect(manifest.trunk.tensors.some((tensor) => 'fineRows' in tensor)).toBe(false)
    }
  })

  it('is what `auto` gives where its source was not 4-bit', async () => {
    const auto = { embedding: 'auto' as const, fineRows: 96 }
    const embedOf = (manifest: Manifest) => manifest.trunk.tensors.find(({ name }) => name === 'embed')
    const some = await tinyPack({ layouts: auto })
    expect(embedOf(some.manifest)).toMatchObject({ layout: 'q8', fineRows: 96 })
    const again = await packOf(packWeights(some.manifest, some.store), { layouts: auto })
    expect(embedOf(again.manifest)).toEqual(embedOf(some.manifest))
    const coarse = await tinyPack({ layouts: { embedding: 'q4' } })
    const { manifest } = await packOf(packWeights(coarse.manifest, coarse.store), { layouts: auto })
    expect(embedOf(manifest)).toEqual(embedOf(coarse.manifest))
  })
})

describe('what cannot be packed', () => {
  it('names the tensor with a weight that is not finite', async () => {
    const source = tinySource()
    const broken = (victim: string) => ({
      ...source,
      tensor: async (name: string) => {
        const tensor = await source.tensor(name)
        if (name === victim) tensor.data[3] = Number.NaN
        return tensor
      },
    })
    for (const victim of [
      'model.norm.weight',
      'model.layers.1.mlp.router.weight',
      'model.embed_tokens.weight',
    ]) {
      await expect(packFrom(broken(victim))).rejects.toMatchObject({
        code: 'checkpoint_malformed',
        message: expect.stringContaining(victim),
      })
    }
  })

  it('refuses text files that the engine cannot use', async () => {
    const nothing = async () => {}
    const jinja = { chatTemplate: encoder.encode('{% for %}') }
    const json = { tokenizer: encoder.encode('{"model":{"type":"BPE"}}') }
    for (const text of [jinja, json]) {
      await expect(packFrom(tinySource(), nothing, text)).rejects.toMatchObject({
        code: 'checkpoint_malformed',
      })
    }
    await expect(packFrom(tinySource({ vocab: 100 }))).rejects.toMatchObject({ code: 'checkpoint_malformed' })
    await expect(packFrom(tinySource({ eosTokens: [TINY_VOCAB] }))).rejects.toThrow('token 279 is said to')
  })

  it.each(['', 'Upper', '../up', 'a b', 'x'.repeat(65)])('refuses the name %j', async (name) => {
    await expect(tinyPack({ name })).rejects.toMatchObject({ code: 'invalid_request' })
  })

  it('lets a failure to write through, and stops', async () => {
    let writes = 0
    const failing = packTiny({}, async () => {
      writes++
      throw new Error('disk full')
    })
    await expect(failing).rejects.toThrow('disk full')
    expect(writes).toBe(1)
  })
})

const encoder = new TextEncoder()

function packFrom(
  source: ReturnType<typeof tinySource>,
  write: (object: PackObject) => Promise<void> = async () => {},
  text: Partial<PackOptions['text']> = {},
) {
  return pack(
    source,
    {
      name: 'tiny',
      layouts: { embedding: 'auto', attention: 'q4', experts: 'q4' },
      text: { tokenizer: encoder.encode(JSON.stringify(tinyTokenizer())), ...text },
      provenance: { source: FORMAT, licence: 'none', tool: 'test' },
    },
    write,
  )
}

const packTiny = (config: Partial<ModelConfig>, write: (object: PackObject) => Promise<void>) =>
  packFrom(tinySource(config), write)

function layoutOf({ manifest }: Awaited<ReturnType<typeof tinyPack>>, name: string) {
  return manifest.trunk.tensors.find((tensor) => tensor.name === name)?.layout
}
