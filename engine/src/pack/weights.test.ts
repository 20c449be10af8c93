import { describe, expect, it } from 'vitest'
import { GATES, type TinyPackOptions, tinyPack } from '../../../test/fixtures/tiny.ts'
import { type FloatTensor, tensorNames } from '../model/weights.ts'
import { shardKey } from '../store/store.ts'
import { packWeights } from './weights.ts'

/** ‖a - b‖ / ‖b‖ */
function relativeError(a: FloatTensor, b: FloatTensor): number {
  let error = 0
  let size = 0
  for (const [i, value] of b.data.entries()) {
    error += (a.data[i] - value) ** 2
    size += value ** 2
  }
  return Math.sqrt(error / size)
}

describe('packWeights', () => {
  const packs: [string, TinyPackOptions, number][] = [
    ['4 bits', { layouts: { embedding: 'q4' } }, 0.12],
    ['8 bits', { layouts: { embedding: 'q8', attention: 'q8', experts: 'q8' } }, 0.012],
    ['a shared expert', { sharedUnits: 64, layouts: { experts: 'q8', attention: 'q8' } }, 0.012],
    ['an untied head', { tiedHead: false, layouts: { experts: 'q8', attention: 'q8' } }, 0.012],
    ['no router', { gate: GATES.all, layouts: { experts: 'q8', attention: 'q8' } }, 0.012],
  ]
  it.each(packs)('gives back every tensor in place: %s', async (_, options, bound) => {
    const { manifest, store, source } = await tinyPack(options)
    const packed = packWeights(manifest, store)
    for (const name of tensorNames(source.config)) {
      const [theirs, ours] = [await source.tensor(name), await packed.tensor(name)]
      expect(ours.shape, name).toEqual(theirs.shape)
      expect(ours.data.length, name).toBe(theirs.data.length)
      expect(relativeError(ours, theirs), name).toBeLessThan(bound)
    }
  })

  it('keeps float tensors to the bit', async () => {
    const { manifest, store, source } = await tinyPack()
    const packed = packWeights(manifest, store)
    const exact = tensorNames(source.config).filter((name) => /norm|router|rope/.test(name))
    expect(exact.length).toBe(3 * 4 + 2)
    for (const name of exact) expect(await packed.tensor(name)).toEqual(await source.tensor(name))
  })

  it.each(['lm_head.weight', 'model.layers.3.mlp.up_proj.weight', 'model.layers.0.mlp.bias', 'toString'])(
    'refuses the name %s',
    async (name) => {
      const { manifest, store } = await tinyPack()
      await expect(packWeights(manifest, store).tensor(name)).rejects.toMatchObject({
        code: 'manifest_malformed',
      })
    },
  )

  it('names the layer whose bundle is damaged, and gives no weights', async () => {
    const { manifest, store } = await tinyPack()
    const bundle = store.objects.get(shardKey(manifest.experts.layers[1].bundle))
    if (!bundle) throw new Error('the fixture has no bundle')
    bundle[bundle.length - 1] ^= 1
    const packed = packWeights(manifest, store)
    await expect(packed.tensor('model.layers.0.mlp.up_proj.weight')).resolves.toBeDefined()
    await expect(packed.tensor('model.layers.1.mlp.up_proj.weight')).rejects.toMatchObject({
      code: 'shard_hash_mismatch',
      place: { model: 'tiny', layer: 1 },
    })
  })

  it('reads again what could not be read', async () => {
    const { manifest, store } = await tinyPack()
    const packed = packWeights(manifest, store)
    const parts = [
      ['model.norm.weight', manifest.trunk.shards[0].hash],
      ['model.layers.1.mlp.up_proj.weight', manifest.experts.layers[1].bundle],
    ]
    for (const [name, hash] of parts) {
      const shard = store.objects.get(shardKey(hash))
      if (!shard) throw new Error('the fixture has no such shard')
      store.objects.delete(shardKey(hash))
      await expect(packed.tensor(name)).rejects.toMatchObject({ code: 'shard_missing' })
      store.objects.set(shardKey(hash), shard)
      await expect(packed.tensor(name)).resolves.toBeDefined()
    }
  })

  it('stops when it is cancelled', async () => {
    const { manifest, store } = await tinyPack()
    const packed = packWeights(manifest, store, AbortSignal.abort())
    await expect(packed.tensor('model.norm.weight')).rejects.toMatchObject({ code: 'cancelled' })
  })
})
