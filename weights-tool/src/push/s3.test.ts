import {
  CreateBucketCommand,
  DeleteObjectCommand,
  GetObjectCommand,
  HeadObjectCommand,
  S3Client,
} from '@aws-sdk/client-s3'
import { inLanes } from '@sparsedge/engine/store/lanes'
import { manifestKey } from '@sparsedge/engine/store/store'
import { verified } from '@sparsedge/engine/store/verified'
import { type FauxqsServer, startFauxqs } from 'fauxqs'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest'
import { type TinyPack, tinyPack } from '../../../test/fixtures/tiny.ts'
import type { PackDirectory } from '../pack-directory.ts'
import { push } from './push.ts'
import { s3Target } from './s3.ts'

let server: FauxqsServer
let endpoint: string
let client: S3Client
let tiny: TinyPack
let pack: PackDirectory

beforeAll(async () => {
  server = await startFauxqs({ port: 0, host: '127.0.0.1', logger: false })
  endpoint = `http://127.0.0.1:${server.port}`
  client = new S3Client({
    endpoint,
    forcePathStyle: true,
    region: 'auto',
    credentials: { accessKeyId: 'tester', secretAccessKey: 'secret' },
  })
  await client.send(new CreateBucketCommand({ Bucket: 'packs' }))
  tiny = await tinyPack()
  // Its store serves the bundles as a directory does.
  pack = { path: 'tiny', ...tiny, store: verified(tiny.store) }
})
afterAll(async () => {
  client.destroy()
  await server.stop()
})
beforeEach(() => {
  vi.stubEnv('AWS_ACCESS_KEY_ID', 'tester')
  vi.stubEnv('AWS_SECRET_ACCESS_KEY', 'secret')
})
afterEach(() => {
  vi.unstubAllEnvs()
})

describe('push to an S3 bucket', () => {
  test('everything arrives, with its headers; a second push sends what is missing', async () => {
    const target = s3Target({ bucket: 'packs', prefix: 'models/v1', endpoint })
    const objects = tiny.store.objects.size - 1
    expect(await push(pack, target)).toMatchObject({ sent: objects, skipped: 0 })
    for (const [key, bytes] of tiny.store.objects) {
      const object = await client.send(new GetObjectCommand({ Bucket: 'packs', Key: `models/v1/${key}` }))
      const body = await object.Body?.transformToByteArray()
      expect(Buffer.from(bytes).equals(body ?? Buffer.alloc(0))).toBe(true)
    }
    const [shard, manifest] = await Promise.all(
      [[...tiny.store.objects.keys()][0], manifestKey('tiny')].map((key) =>
        client.send(new HeadObjectCommand({ Bucket: 'packs', Key: `models/v1/${key}` })),
      ),
    )
    expect(shard).toMatchObject({
      ContentType: 'application/octet-stream',
      CacheControl: 'public, max-age=31536000, immutable',
    })
    expect(manifest).toMatchObject({ ContentType: 'application/json', CacheControl: 'public, max-age=60' })

    const [lost] = tiny.store.objects.keys()
    await client.send(new DeleteObjectCommand({ Bucket: 'packs', Key: `models/v1/${lost}` }))
    expect(await push(pack, target)).toMatchObject({ sent: 1, skipped: objects - 1 })
    await target.close()
  })

  test('sees what is there behind the first thousand objects', async () => {
    await client.send(new CreateBucketCommand({ Bucket: 'crowded' }))
    const target = s3Target({ bucket: 'crowded', prefix: '', endpoint })
    await push(pack, target)
    const others = Array.from({ length: 1000 }, (_, i) => `shards/!${i}`)
    const headers = { contentType: 'text/plain', cacheControl: 'no-store' }
    await inLanes(others, 16, (key) => target.put({ key, bytes: Uint8Array.of(1) }, headers))
    expect((await target.shards()).size).toBe(1000 + tiny.store.objects.size - 1)
    expect(await push(pack, target)).toMatchObject({ sent: 0 })
    await target.close()
  })

  test.each([
    { what: 'a bucket that is not there', bucket: 'nowhere', key: 'tester', message: 'does not exist' },
    { what: 'no credentials', bucket: 'packs', key: '', message: 'set AWS_ACCESS_KEY_ID' },
  ])('$what is a failure of the store, with the reason', async ({ bucket, key, message }) => {
    vi.stubEnv('AWS_ACCESS_KEY_ID', key)
    // Else the client looks for a machine's role, and for files in the home directory.
    vi.stubEnv('AWS_EC2_METADATA_DISABLED', 'true')
    vi.stubEnv('AWS_SHARED_CREDENTIALS_FILE', '/nowhere')
    const target = s3Target({ bucket, prefix: '', endpoint })
    await expect(push(pack, target)).rejects.toMatchObject({
      code: 'store_unavailable',
      message: expect.stringContaining(message),
    })
    await target.close()
  })

  test('asks for a region, or for who has the bucket if AWS has not', async () => {
    vi.stubEnv('AWS_REGION', undefined)
    vi.stubEnv('AWS_CONFIG_FILE', '/nowhere')
    const target = s3Target({ bucket: 'packs', prefix: '' })
    await expect(push(pack, target)).rejects.toMatchObject({
      code: 'store_unavailable',
      message: 's3://packs: no region; set AWS_REGION, or --endpoint where the bucket is not at AWS',
    })
    await target.close()
  })
})
