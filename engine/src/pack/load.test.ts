import { describe, expect, it } from 'vitest'
import { editTrunk } from '../../../test/fixtures/edited-trunk.ts'
import { tinyPack } from '../../../test/fixtures/tiny.ts'
import { shardKey } from '../store/store.ts'
import { loadTrunk } from './load.ts'
import { trunkBytes } from './manifest.ts'

const pack = await tinyPack({ sharedUnits: 32, tiedHead: false })
const floats = pack.manifest.trunk.tensors.filter(({ layout }) => layout === 'f32')

describe('loadTrunk', () => {
  it('lays the shards end to end', async () => {
    const { manifest, store } = pack
    const image = new Uint8Array(trunkBytes(manifest))
    await loadTrunk(manifest, store, image)
    const shards = manifest.trunk.shards.map(({ hash }) => store.objects.get(shardKey(hash)))
    expect(Buffer.from(image).equals(Buffer.concat(shards.flatMap((bytes) => bytes ?? [])))).toBe(true)
  })

  it('knows every float tensor of a model', () => {
    expect(floats).toHaveLength(1 + 1 + 3 * 9 + 1 + 1)
  })

  it.each(floats)('refuses $name with a number that is not finite, first or last', async ({ name }) => {
    for (const value of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
      for (const at of [0, -1]) {
        const { manifest, store } = await editTrunk(pack, name, (data) => data.fill(value, at))
        await expect(loadTrunk(manifest, store, new Uint8Array(trunkBytes(manifest)))).rejects.toMatchObject({
          code: 'weights_not_finite',
          message: expect.stringContaining(`of tensor ${name} is ${value}`),
          place: { model: 'tiny' },
        })
      }
    }
  })

  it('takes the largest numbers that there are', async () => {
    const { manifest, store } = await editTrunk(pack, 'norm', (data) => data.fill(-3.4028234663852886e38))
    await loadTrunk(manifest, store, new Uint8Array(trunkBytes(manifest)))
  })
})
