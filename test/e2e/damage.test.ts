/**
 * @module
 * A bucket that is not what the manifest says: every fault has its error by name, none yields a token, and once it is
 * mended the same Worker answers.
 */
import { cp, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { R2Bucket } from '@cloudflare/workers-types'
import { manifestKey, shardKey } from '@sparsedge/engine/store/store'
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest'
import { getPlatformProxy } from 'wrangler'
import { ROOT } from '../processes.ts'
import { type Server, startWorker } from '../servers.ts'
import { MODEL, openShipped } from '../shipped.ts'
import { clientOf, QUESTION } from './client.ts'

const { manifest } = await openShipped()
const LAYER = 7
const { bundle, shards } = manifest.experts.layers[LAYER]

const OBJECTS = {
  'a trunk shard': [shardKey(manifest.trunk.shards[3].hash)],
  'the tokenizer': [shardKey(manifest.text.tokenizer.hash)],
  // As it pleases, a Worker fetches a layer's experts one by one or all together.
  'the experts of a layer': [bundle, ...shards].map(shardKey),
}

type Change = (bytes: Uint8Array) => Uint8Array | undefined
const FAULTS: { fault: string; code: string; change: Change }[] = [
  { fault: 'one wrong bit', code: 'shard_hash_mismatch', change: flipped },
  { fault: 'a missing end', code: 'shard_too_short', change: (bytes) => bytes.slice(0, -1) },
  { fault: 'a byte too many', code: 'shard_too_long', change: longer },
  { fault: 'nothing at all', code: 'shard_missing', change: () => undefined },
]

let server: Server
let folder: string
let proxy: Awaited<ReturnType<typeof getPlatformProxy<{ SHARDS: R2Bucket }>>>
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sparsedge-damage-'))
  await cp(inject('state'), folder, { recursive: true })
  const persist = { path: join(folder, 'v3') }
  proxy = await getPlatformProxy({ configPath: join(ROOT, 'wrangler.toml'), persist, remoteBindings: false })
  // On workers.dev there is no cache, and the bucket is all there is.
  server = await startWorker({ state: folder, host: 'sparsedge.someone.workers.dev' })
})
afterAll(async () => {
  await server.stop()
  await proxy.dispose()
  await rm(folder, { recursive: true, force: true })
})

// The manifest first: an engine that has been built never asks for it again.
describe('a manifest', () => {
  const text = (change: (json: string) => string): Change => {
    return (bytes) => new TextEncoder().encode(change(new TextDecoder().decode(bytes)))
  }
  test.each([
    {
      fault: 'of another version',
      status: 500,
      code: 'manifest_version',
      change: text((json) => json.replace(/"version":\s*1\b/, '"version": 2')),
    },
    { fault: 'cut off', status: 500, code: 'manifest_malformed', change: text((json) => json.slice(0, -9)) },
    {
      fault: 'that contradicts itself',
      status: 500,
      code: 'manifest_malformed',
      change: text((json) => json.replace(/"layers":\s*30\b/, '"layers": 31')),
    },
    { fault: 'that is not there', status: 500, code: 'unknown_model', change: () => undefined },
  ])('$fault', async ({ status, code, change }) => {
    await whileChanged([manifestKey(MODEL)], change, () => expectRefusal(status, code))
  })
})

describe.each(Object.entries(OBJECTS))('%s with', (name, keys) => {
  test.each(FAULTS)('$fault', async ({ code, change }) => {
    await whileChanged(keys, change, async () => {
      const printed = server.output().length
      await expectRefusal(500, code)
      if (name === 'the experts of a layer') {
        await expect.poll(() => server.output().slice(printed)).toContain(`"layer":${LAYER}`)
      }
    })
  })
})

test('mended, the bucket serves', async () => {
  const answer = await clientOf(server).chat.completions.create(QUESTION)
  expect(answer.choices[0].message.content).toContain('Paris')
})

/** Neither a whole answer nor a stream has a single token, and both say why. */
async function expectRefusal(status: number, code: string): Promise<void> {
  for (const stream of [false, true]) {
    const response = await fetch(`${server.url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ ...QUESTION, stream }),
    })
    expect(await response.json()).toMatchObject({ error: { code } })
    expect(response.status).toBe(status)
  }
}

/** Changes objects of the bucket, and puts them back. */
async function whileChanged(
  keys: readonly string[],
  change: Change,
  work: () => Promise<void>,
): Promise<void> {
  const bucket = proxy.env.SHARDS
  const originals = new Map<string, Uint8Array>()
  for (const key of keys) {
    const object = await bucket.get(key)
    if (!object) throw new Error(`${key} is not in the bucket`)
    const bytes = new Uint8Array(await object.arrayBuffer())
    originals.set(key, bytes)
    const changed = change(bytes)
    expect(changed).not.toEqual(bytes)
    if (changed) await bucket.put(key, changed)
    else await bucket.delete(key)
  }
  try {
    await work()
  } finally {
    for (const [key, bytes] of originals) await bucket.put(key, bytes)
  }
}

function flipped(bytes: Uint8Array): Uint8Array {
  const copy = bytes.slice()
  copy[copy.length >> 1] ^= 1
  return copy
}

function longer(bytes: Uint8Array): Uint8Array {
  const copy = new Uint8Array(bytes.length + 1)
  copy.set(bytes)
  return copy
}
