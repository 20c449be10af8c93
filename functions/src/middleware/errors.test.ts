import { SparsedgeError } from '@sparsedge/engine/errors'
import { Hono } from 'hono'
import { HTTPException } from 'hono/http-exception'
import { requestId } from 'hono/request-id'
import { afterEach, describe, expect, test, vi } from 'vitest'
import { type ApiCode, ApiError, onError, only, onNotFound } from './errors.ts'

const SECRET = 'shard 3fa9 at layer 7 is not in bucket sparsedge-shards'

/** Answers with what `error` becomes. */
async function told(error: Error) {
  const app = new Hono().use(requestId()).get('/', () => {
    throw error
  })
  app.onError(onError)
  const response = await app.request('/', { headers: { 'X-Request-Id': 'abc' } })
  return { response, text: await response.clone().text(), body: await response.json() }
}

afterEach(() => vi.restoreAllMocks())

/** code, status, type, whether the caller reads the error's own message, Retry-After */
const TABLE: [ApiCode, number, string, boolean, string | null][] = [
  ['invalid_request', 400, 'invalid_request_error', true, null],
  ['prompt_too_long', 400, 'invalid_request_error', true, null],
  ['unsupported_selection', 400, 'invalid_request_error', true, null],
  ['invalid_api_key', 401, 'authentication_error', true, null],
  ['not_found', 404, 'not_found_error', true, null],
  ['model_not_found', 404, 'not_found_error', true, null],
  ['method_not_allowed', 405, 'invalid_request_error', true, null],
  ['body_too_large', 413, 'invalid_request_error', true, null],
  ['unsupported_media_type', 415, 'invalid_request_error', true, null],
  ['expert_budget_spent', 422, 'invalid_request_error', true, null],
  ['queue_full', 429, 'rate_limit_error', true, '2'],
  ['unknown_model', 500, 'server_error', false, null],
  ['manifest_malformed', 500, 'server_error', false, null],
  ['manifest_version', 500, 'server_error', false, null],
  ['checkpoint_malformed', 500, 'server_error', false, null],
  ['checkpoint_unsupported', 500, 'server_error', false, null],
  ['shard_hash_mismatch', 500, 'server_error', false, null],
  ['shard_too_short', 500, 'server_error', false, null],
  ['shard_too_long', 500, 'server_error', false, null],
  ['weights_not_finite', 500, 'server_error', false, null],
  ['logits_not_finite', 500, 'server_error', false, null],
  ['shard_missing', 500, 'server_error', false, null],
  ['arena_too_small', 500, 'server_error', false, null],
  ['memory_exhausted', 500, 'server_error', false, null],
  ['backend_unavailable', 500, 'server_error', false, null],
  ['internal_error', 500, 'server_error', false, null],
  ['expert_fetches_spent', 503, 'server_error', true, '5'],
  ['store_unavailable', 503, 'server_error', false, '5'],
  ['device_lost', 503, 'server_error', false, '5'],
  ['cancelled', 503, 'server_error', false, null],
  ['deadline_exceeded', 504, 'server_error', true, '5'],
]

test.each(TABLE)('%s is answered with %i', async (code, status, type, verbatim, retryAfter) => {
  const log = vi.spyOn(console, 'error').mockImplementation(() => {})
  const { response, body, text } = await told(new ApiError(code, SECRET))
  expect(response.status).toBe(status)
  expect(response.headers.get('Retry-After')).toBe(retryAfter)
  expect(response.headers.get('X-Request-Id')).toBe('abc')
  expect(body).toEqual({ error: { message: expect.stringMatching(/.{10}/), type, code, param: null } })
  expect(text.includes(SECRET)).toBe(verbatim)
  // The operator learns of what is the operator's business.
  expect(log).toHaveBeenCalledTimes(status >= 500 && code !== 'cancelled' ? 1 : 0)
})

describe('what is logged', () => {
  test('names the place, the causes and the request, and is not told to the caller', async () => {
    const log = vi.spyOn(console, 'error').mockImplementation(() => {})
    const cause = new Error('socket hang up')
    const error = new SparsedgeError('shard_missing', SECRET, { layer: 7, expert: 3, tier: 'r2' }, { cause })
    const { text } = await told(error)
    expect(text).not.toMatch(/3fa9|layer|bucket|hang up/)
    expect(JSON.parse(log.mock.calls[0][0])).toEqual({
      requestId: 'abc',
      code: 'shard_missing',
      place: { layer: 7, expert: 3, tier: 'r2' },
      error: `SparsedgeError: ${SECRET}`,
      cause: ['Error: socket hang up'],
    })
  })

  test('a failure that nobody foresaw tells nothing of itself', async () => {
    vi.spyOn(console, 'error').mockImplementation(() => {})
    const { response, body, text } = await told(new TypeError('x is not a function'))
    expect(response.status).toBe(500)
    expect(body).toMatchObject({ error: { code: 'internal_error', type: 'server_error' } })
    expect(text).not.toContain('not a function')
  })
})

test('the field that is wrong is named', async () => {
  const { body } = await told(new ApiError('invalid_request', 'top_p: too big', { param: 'top_p' }))
  expect(body).toEqual({
    error: {
      message: 'top_p: too big',
      type: 'invalid_request_error',
      code: 'invalid_request',
      param: 'top_p',
    },
  })
})

test("hono's own exceptions are the caller's mistakes", async () => {
  const { response, body } = await told(new HTTPException(400, { message: 'Malformed JSON' }))
  expect(response.status).toBe(400)
  expect(body).toMatchObject({ error: { code: 'invalid_request' } })
})

test('an unknown route is 404, a known one with another method is 405 and says which it takes', async () => {
  const app = new Hono()
    .use(requestId())
    .post('/x', (c) => c.text(''))
    .all(only('POST'))
  app.onError(onError).notFound(onNotFound)
  const unknown = await app.request('/y')
  expect(unknown.status).toBe(404)
  expect(await unknown.json()).toMatchObject({
    error: {
      code: 'not_found',
      message: expect.stringContaining('GET /y'),
    },
  })
  const wrong = await app.request('/x', { method: 'DELETE' })
  expect(wrong.status).toBe(405)
  expect(wrong.headers.get('Allow')).toBe('POST')
  expect(await wrong.json()).toMatchObject({ error: { code: 'method_not_allowed' } })
})
