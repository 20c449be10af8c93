/**
 * @module
 * A key guards the API, and only the API.
 */
import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import { type Server, startWorker } from '../servers.ts'
import { MODEL } from '../shipped.ts'
import { clientOf } from './client.ts'

let server: Server
beforeAll(async () => {
  server = await startWorker({ state: inject('state'), vars: { API_KEY: 'open-sesame' } })
})
afterAll(() => server.stop())

test('the right key opens', async () => {
  const { data } = await clientOf(server, 'open-sesame').models.list()
  expect(data.map(({ id }) => id)).toEqual([MODEL])
})

test.each(['none', 'open-sesamE', 'open-sesame-'])('the wrong key "%s" does not', async (key) => {
  const refused = { status: 401, code: 'invalid_api_key' }
  await expect(clientOf(server, key).models.list()).rejects.toMatchObject(refused)
})

test('no key is asked for outside the API', async () => {
  expect((await fetch(`${server.url}/health`)).status).toBe(200)
  expect((await fetch(`${server.url}/v1/models`)).status).toBe(401)
})
