import { createServer, type ServerResponse } from 'node:http'
import { fileURLToPath } from 'node:url'
import type { R2Bucket } from '@cloudflare/workers-types'
import { memoryStore } from '@sparsedge/engine/store/memory'
import { sha256 } from '@sparsedge/engine/store/sha256'
import { shardKey } from '@sparsedge/engine/store/store'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createTestHarness } from 'wrangler'
import { type TinyPack, tinyPack } from '../../fixtures/tiny.ts'
import type { AcquireResult, AcquireTask, ReadResult, ReadTask, SetUpTask } from './worker.ts'

// What Node's streams and promises cannot show: the stores and the residency inside workerd itself.
const harness = createTestHarness({
  workers: [{ configPath: fileURLToPath(new URL('wrangler.toml', import.meta.url)) }],
})
let bucket: R2Bucket

beforeAll(async () => {
  await harness.listen()
  bucket = (await harness.getWorker<{ SHARDS: R2Bucket }>().getEnv()).SHARDS
})
afterAll(() => harness.close())

async function ask<Result>(path: string, task: object): Promise<Result> {
  const response = await harness.fetch(path, { method: 'POST', body: JSON.stringify(task) })
  if (!response.ok) throw new Error(`the Worker answered ${response.status}: ${await response.text()}`)
  return (await response.json()) as Result
}
