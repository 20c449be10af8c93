import { mkdir, mkdtemp, rm, symlink, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { fsStore } from './fs.ts'
import { sha256 } from './sha256.ts'
import { MAX_MANIFEST_BYTES, manifestKey, shardKey } from './store.ts'

const shard = Uint8Array.from({ length: 1000 }, (_, i) => i & 255)
const hash = await sha256(shard)
let directory: string

const destinations = (...sizes: number[]) =>
  sizes.map((size) => ({ hash: null, bytes: new Uint8Array(size) }))

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'sparsedge-'))
  await mkdir(join(directory, 'shards'))
  await mkdir(join(directory, 'models/tiny'), { recursive: true })
  await writeFile(join(directory, shardKey(hash)), shard)
  await writeFile(join(directory, manifestKey('tiny')), '{}')
})
afterEach(() => rm(directory, { recursive: true }))

describe('fsStore', () => {
  test('scatters a file over the destinations', async () => {
    const into = destinations(1, 600, 399)
    const progress = vi.fn()
    expect(await fsStore(directory).read(hash, into, undefined, progress)).toBe('fs')
    expect(progress).toHaveBeenCalledTimes(into.length)
    expect(Buffer.concat(into.map(({ bytes }) => bytes)).equals(shard)).toBe(true)
  })

  test('reads a manifest', async () => {
    expect(Buffer.from(await fsStore(directory).manifest('tiny')).toString()).toBe('{}')
  })

  test.each([
    { file: 'truncated', size: 999, code: 'shard_too_short' },
    { file: 'empty', size: 0, code: 'shard_too_short' },
    { file: 'extra-long', size: 1001, code: 'shard_too_long' },
  ])('an $file file is refused before it is read', async ({ size, code }) => {
    await truncate(join(directory, shardKey(hash)), size)
    const into = destinations(1000)
    const reading = fsStore(directory).read(hash, into)
    await expect(reading).rejects.toMatchObject({ code, place: { shard: hash, tier: 'fs' } })
    expect(into[0].bytes).toEqual(new Uint8Array(1000))
  })

  test.each([
    { what: 'a shard that is not there', hash: 'f'.repeat(64), code: 'shard_missing' },
    { what: 'a path for a hash', hash: '../models/tiny/manifest.json', code: 'shard_missing' },
  ])('$what does not exist', async ({ hash, code }) => {
    const place = { shard: hash, tier: 'fs' }
    await expect(fsStore(directory).read(hash, [])).rejects.toMatchObject({ code, place })
  })

  test.each(['nobody', '..', '../models/tiny', 'tiny/../tiny', '', 'TINY', 'tiny\0'])(
    'a model named %j does not exist',
    async (model) => {
      await expect(fsStore(directory).manifest(model)).rejects.toMatchObject({ code: 'unknown_model' })
    },
  )

  test('what is no file is a failure of the store', async () => {
    const other = 'a'.repeat(64)
    await mkdir(join(directory, shardKey(other)))
    const into = destinations(4096)
    await expect(fsStore(directory).read(other, into)).rejects.toMatchObject({
      code: expect.stringMatching(/^(store_unavailable|shard_too_)/),
    })
    const loop = 'b'.repeat(64)
    await symlink(join(directory, shardKey(loop)), join(directory, shardKey(loop)))
    await expect(fsStore(directory).read(loop, into)).rejects.toMatchObject({ code: 'store_unavailable' })
  })

  test('an enormous manifest is refused unread', async () => {
    await truncate(join(directory, manifestKey('tiny')), MAX_MANIFEST_BYTES + 1)
    await expect(fsStore(directory).manifest('tiny')).rejects.toMatchObject({ code: 'manifest_malformed' })
  })

  test('a cancelled request reads nothing more', async () => {
    const abort = new AbortController()
    const into = destinations(500, 500)
    const store = fsStore(directory)
    const reading = store.read(hash, into, abort.signal)
    abort.abort()
    await expect(reading).rejects.toMatchObject({ code: 'cancelled' })
    expect(into[1].bytes).toEqual(new Uint8Array(500))
    await expect(store.manifest('tiny', abort.signal)).rejects.toMatchObject({ code: 'cancelled' })
  })
})
