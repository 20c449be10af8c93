/**
 * @module
 * The Worker without a bucket: the model is deployed with it, as static assets.
 */
import { shardKey } from '@sparsedge/engine/store/store'
import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import { type Server, startWorker } from '../servers.ts'
import { openShipped } from '../shipped.ts'
import { clientOf, QUESTION, usageOf } from './client.ts'

let server: Server
beforeAll(async () => {
  server = await startWorker({
    config: 'wrangler.assets.toml',
    state: inject('state'),
    assets: inject('directory'),
  })
})
afterAll(() => server.stop())

test('it answers, with experts from its assets alone', async () => {
  const answer = await clientOf(server).chat.completions.create(QUESTION)
  expect(answer.choices[0].message.content).toContain('Paris')
  const { tiers } = usageOf(answer).experts
  expect(Object.keys(tiers)).toEqual(['assets'])
})

test('nobody can fetch the weights past it', async () => {
  const { manifest } = await openShipped()
  for (const path of [shardKey(manifest.trunk.shards[0].hash), `models/${manifest.name}/manifest.json`]) {
    const response = await fetch(`${server.url}/${path}`)
    expect(response.status).toBe(404)
    expect(await response.json()).toMatchObject({ error: { code: 'not_found' } })
  }
})
