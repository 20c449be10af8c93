/**
 * @module
 * A bucket behind the S3 API: Cloudflare R2 and all the others.
 */
import { ListObjectsV2Command, PutObjectCommand, S3Client } from '@aws-sdk/client-s3'
import { SparsedgeError } from '@sparsedge/engine/errors'
import type { PushTarget } from './push.ts'

export interface S3Options {
  readonly bucket: string
  /** What stands before every key; may be empty. */
  readonly prefix: string
  /** Of another provider than AWS. */
  readonly endpoint?: string
}

/**
 * Credentials and region come from where the AWS tools take them: the environment (AWS_ACCESS_KEY_ID,
 * AWS_SECRET_ACCESS_KEY, AWS_REGION), then the profile.
 */
export function s3Target({ bucket, prefix, endpoint }: S3Options): PushTarget {
  const name = `s3://${bucket}${prefix && `/${prefix}`}`
  const client = new S3Client({
    ...(endpoint !== undefined && {
      endpoint,
      // Their buckets are paths, and R2 has one region, which it calls so.
      forcePathStyle: true,
      region: process.env.AWS_REGION ?? 'auto',
    }),
    // The name of a shard is its checksum already; not every provider takes another one.
    requestChecksumCalculation: 'WHEN_REQUIRED',
    responseChecksumValidation: 'WHEN_REQUIRED',
  })
  const fullKey = (key: string) => (prefix ? `${prefix}/${key}` : key)
  const failure = (cause: unknown): never => {
    let reason = cause instanceof Error ? cause.message || cause.name : String(cause)
    if (cause instanceof Error && cause.name === 'CredentialsProviderError') {
      reason = 'no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY'
    }
    // The client has no other name for it.
    if (reason === 'Region is missing') {
      reason = 'no region; set AWS_REGION, or --endpoint where the bucket is not at AWS'
    }
    throw new SparsedgeError('store_unavailable', `${name}: ${reason}`, {}, { cause })
  }
  return {
    async shards() {
      const sizes = new Map<string, number>()
      let ContinuationToken: string | undefined
      do {
        const page = await client
          .send(new ListObjectsV2Command({ Bucket: bucket, Prefix: fullKey('shards/'), ContinuationToken }))
          .catch(failure)
        for (const { Key = '', Size = 0 } of page.Contents ?? []) {
          sizes.set(prefix ? Key.slice(prefix.length + 1) : Key, Size)
        }
        ContinuationToken = page.NextContinuationToken
      } while (ContinuationToken !== undefined)
      return sizes
    },
    async put({ key, bytes }, { contentType, cacheControl }) {
      const command = new PutObjectCommand({
        Bucket: bucket,
        Key: fullKey(key),
        Body: bytes,
        ContentType: contentType,
        CacheControl: cacheControl,
      })
      await client.send(command).catch(failure)
    },
    close: async () => client.destroy(),
  }
}
