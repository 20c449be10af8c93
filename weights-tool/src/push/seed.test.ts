import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { R2Bucket } from '@cloudflare/workers-types'
import { parseManifest } from '@sparsedge/engine/pack/manifest'
import { r2Store } from '@sparsedge/engine/store/r2'
import { shardKey } from '@sparsedge/engine/store/store'
import { verified } from '@sparsedge/engine/store/verified'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { getPlatformProxy } from 'wrangler'
import { writePack } from '../../../test/fixtures/pack-directory.ts'
import { tinyPack } from '../../../test/fixtures/tiny.ts'
import { openPackDirectory } from '../pack-directory.ts'
import { localModels, pushLocal, seedLocal } from './seed.ts'

// The real local bucket: wrangler and workerd, in a project of its own.
const CONFIG = `
name = "seeded"
compatibility_date = "2026-11-17"
[[r2_buckets]]
binding = "SHARDS"
bucket_name = "sparsedge-shards"
`
let root: string

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'sparsedge-seed-'))
  await writeFile(join(root, 'wrangler.toml'), CONFIG)
})
afterAll(() => rm(root, { recursive: true }))

/** Opens the bucket as a Worker under `wrangler dev` would. */
async function withBucket<T>(use: (bucket: R2Bucket) => Promise<T>): Promise<T> {
  const proxy = await getPlatformProxy<{ SHARDS: R2Bucket }>({
    configPath: join(root, 'wrangler.toml'),
    persist: { path: join(root, '.wrangler/state/v3') },
  })
  return await use(proxy.env.SHARDS).finally(() => proxy.dispose())
}

describe('seedLocal', () => {
  test('fills the local bucket once, notices a changed pack, and mends what was lost', async () => {
    const first = await tinyPack()
    const path = join(root, 'first')
    await writePack(first, path)
    const objects = first.store.objects.size - 1
    expect(await seedLocal(path, { root })).toMatchObject({ sent: objects })
    const [lost] = first.manifest.experts.layers[0].shards
    await withBucket(async (bucket) => {
      const store = verified(r2Store(bucket))
      expect(parseManifest(await store.manifest('tiny'))).toEqual(first.manifest)
      for (const [key, bytes] of first.store.objects) {
        if (!key.startsWith('shards/')) continue
        const hash = key.slice('shards/'.length)
        expect(await store.read(hash, [{ hash, bytes: new Uint8Array(bytes.length) }])).toBe('r2')
      }
      await bucket.delete(shardKey(lost))
    })

    expect(await seedLocal(path, { root })).toBeUndefined()
    expect(await pushLocal(await openPackDirectory(path), { root })).toMatchObject({ sent: 1 })

    const second = await tinyPack({ seed: 2 })
    const other = join(root, 'second')
    await writePack(second, other)
    expect(await seedLocal(other, { root })).toMatchObject({ skipped: 2 })
    expect(await seedLocal(other, { root })).toBeUndefined()
    await withBucket(async (bucket) => {
      expect(parseManifest(await r2Store(bucket).manifest('tiny'))).toEqual(second.manifest)
    })
    // The bucket has both packs now, but the name stands for the second.
    expect(await seedLocal(path, { root })).toMatchObject({ sent: 0 })
  }, 120_000)

  test('can fill a state of its own, as `wrangler dev --persist-to` takes it', async () => {
    const state = join(root, 'elsewhere')
    const path = join(root, 'pack')
    expect(await localModels({ root, state })).toEqual([])
    await writePack(await tinyPack({ name: 'elsewhere' }), path)
    await seedLocal(path, { root, state })
    expect(await readFile(join(state, 'v3/r2/pushed-elsewhere'), 'utf8')).toMatch(/^[0-9a-f]{64}\n/)
    expect(await localModels({ root, state })).toEqual(['elsewhere'])
    await withBucket(async (bucket) => {
      await expect(r2Store(bucket).manifest('elsewhere')).rejects.toMatchObject({ code: 'unknown_model' })
    })
  }, 60_000)

  test.each([
    { what: 'no wrangler.toml', config: undefined, message: 'no wrangler.toml' },
    { what: 'no such bucket', config: CONFIG.replace('SHARDS', 'OTHER'), message: 'no R2 bucket' },
    { what: 'a wrangler.toml that is none', config: 'name = [', message: 'wrangler does not open' },
  ])(
    '$what is told',
    async ({ what, config, message }) => {
      const path = join(root, 'pack')
      const empty = join(root, what)
      await mkdir(empty)
      if (config !== undefined) await writeFile(join(empty, 'wrangler.toml'), config)
      await expect(seedLocal(path, { root: empty })).rejects.toMatchObject({
        code: 'store_unavailable',
        message: expect.stringContaining(message),
      })
      await expect(seedLocal(join(root, 'nothing'), { root })).rejects.toMatchObject({
        code: 'unknown_model',
      })
    },
    60_000,
  )
})
