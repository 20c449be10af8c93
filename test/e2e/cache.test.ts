/**
 * @module
 * The data centre's cache: what one isolate has read from the bucket, the next has from nearby.
 */
import { expect, inject, test } from 'vitest'
import { startWorker } from '../servers.ts'
import { clientOf, QUESTION, usageOf } from './client.ts'

/** Asks an isolate that has just started. */
async function askAnew(host: string) {
  const server = await startWorker({ state: inject('state'), host })
  try {
    const answer = await clientOf(server).chat.completions.create(QUESTION)
    return { text: answer.choices[0].message.content, tiers: usageOf(answer).experts.tiers }
  } finally {
    await server.stop()
  }
}

test('a second isolate finds in the cache what the first has read', async () => {
  const first = await askAnew('llm.example.com')
  expect(Object.keys(first.tiers)).toEqual(['r2'])
  const second = await askAnew('llm.example.com')
  expect(second.text).toBe(first.text)
  // Not all of it: what came faster than the cache took it was left out.
  expect(second.tiers.cache.requests).toBeGreaterThan(1)
  expect(second.tiers.r2?.bytes ?? 0).toBeLessThan(first.tiers.r2.bytes)
})

test('on workers.dev, where the Cache API does nothing, nothing is kept', async () => {
  await askAnew('sparsedge.someone.workers.dev')
  expect(Object.keys((await askAnew('sparsedge.someone.workers.dev')).tiers)).toEqual(['r2'])
})
