import { SparsedgeError } from '@sparsedge/engine/errors'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { tinyApp } from './testing.ts'

const CHAT = { messages: [{ role: 'user', content: 'hello' }], max_tokens: 2 }

describe('the API key', () => {
  const apiKey = 'sk-äöü test/key'

  test.each([
    ['/v1/chat/completions', 'POST'],
    ['/v1/completions', 'POST'],
    ['/v1/models', 'GET'],
    ['/v1/models/tiny', 'GET'],
    ['/v1/experts', 'GET'],
    ['/v1/experts/prewarm', 'POST'],
    ['/v1/nothing', 'GET'],
  ])('is asked for on %s', async (path, method) => {
    const { app, watch } = await tinyApp({ apiKey })
    for (const authorization of [
      undefined,
      '',
      apiKey,
      `Basic ${apiKey}`,
      'Bearer',
      'Bearer x',
      `Bearer ${apiKey}x`,
    ]) {
      const headers = {
        'Content-Type': 'application/json',
        ...(authorization && { Authorization: authorization }),
      }
      const response = await app.request(path, { method, headers, ...(method === 'POST' && { body: '{}' }) })
      expect(response.status).toBe(401)
      expect(response.headers.get('WWW-Authenticate')).toBe('Bearer')
      expect(await response.json()).toMatchObject({
        error: { code: 'invalid_api_key', type: 'authentication_error', param: null },
      })
    }
    expect(watch.steps).toBe(0)
  })

  test('opens everything under /v1', async () => {
    const { app, post } = await tinyApp({ apiKey: 'secret key' })
    const headers = { Authorization: 'bearer secret key' }
    expect((await app.request('/v1/models', { headers })).status).toBe(200)
    expect((await post('/v1/chat/completions', CHAT, { headers })).status).toBe(200)
  })

  test('is not needed for the page, for health, or where none is set', async () => {
    const locked = await tinyApp({ apiKey })
    expect((await locked.app.request('/')).status).toBe(200)
    expect((await locked.app.request('/health')).status).toBe(200)
    const open = await tinyApp()
    expect((await open.app.request('/v1/models')).status).toBe(200)
  })

  test('is compared through digests of equal length, whatever the guess', async () => {
    const digest = vi.spyOn(crypto.subtle, 'digest')
    try {
      const { app } = await tinyApp({ apiKey })
      for (const guess of ['s', 'sk-', 'x'.repeat(1000)]) {
        digest.mockClear()
        await app.request('/v1/models', { headers: { Authorization: `Bearer ${guess}` } })
        // One digest of the key and one of the guess, even if the first character is wrong already.
        expect(digest).toHaveBeenCalledTimes(2)
      }
    } finally {
      digest.mockRestore()
    }
  })
})

describe('request ids', () => {
  test('are echoed, or drawn', async () => {
    const { app } = await tinyApp()
    const given = await app.request('/health', { headers: { 'X-Request-Id': 'my-id_1' } })
    expect(given.headers.get('X-Request-Id')).toBe('my-id_1')
    const drawn = await app.request('/health')
    expect(drawn.headers.get('X-Request-Id')).toMatch(/^[0-9a-f-]{36}$/)
    const hostile = await app.request('/health', { headers: { 'X-Request-Id': '<script>' } })
    expect(hostile.headers.get('X-Request-Id')).toMatch(/^[0-9a-f-]{36}$/)
  })

  test('are there on errors and on streams', async () => {
    const { app, post } = await tinyApp()
    const headers = { 'X-Request-Id': 'abc' }
    expect((await app.request('/nothing', { headers })).headers.get('X-Request-Id')).toBe('abc')
    const stream = await post('/v1/chat/completions', { ...CHAT, stream: true }, { headers })
    expect(stream.headers.get('X-Request-Id')).toBe('abc')
    await stream.text()
  })
})

describe('routes', () => {
  test.each([
    ['GET', '/nothing'],
    ['POST', '/v1'],
    ['GET', '/v1/chat'],
    ['POST', '/v1/chat/completions/'],
    ['POST', '/v1/embeddings'],
  ])('%s %s does not exist', async (method, path) => {
    const { app } = await tinyApp()
    const response = await app.request(path, { method })
    expect(response.status).toBe(404)
    expect(await response.json()).toMatchObject({ error: { code: 'not_found', type: 'not_found_error' } })
  })

  test.each([
    ['POST', '/', 'GET'],
    ['DELETE', '/health', 'GET'],
    ['GET', '/v1/chat/completions', 'POST'],
    ['PUT', '/v1/completions', 'POST'],
    ['POST', '/v1/models', 'GET'],
    ['DELETE', '/v1/models/tiny', 'GET'],
    ['POST', '/v1/experts', 'GET'],
    ['GET', '/v1/experts/prewarm', 'POST'],
  ])('%s %s takes another method', async (method, path, allow) => {
    const { app } = await tinyApp()
    const response = await app.request(path, { method })
    expect(response.status).toBe(405)
    expect(response.headers.get('Allow')).toBe(allow)
    expect(await response.json()).toMatchObject({ error: { code: 'method_not_allowed' } })
  })
})

describe('models', () => {
  test('are listed and described without loading anything', async () => {
    const { app, watch } = await tinyApp()
    const model = { id: 'tiny', object: 'model', created: 0, owned_by: 'sparsedge' }
    expect(await (await app.request('/v1/models')).json()).toEqual({ object: 'list', data: [model] })
    expect(await (await app.request('/v1/models/tiny')).json()).toEqual(model)
    expect(await (await app.request('/health')).json()).toMatchObject({ models: { tiny: 'cold' } })
    expect(watch.steps).toBe(0)
  })

  test('that are not served are 404', async () => {
    const { app, post } = await tinyApp()
    const error = { code: 'model_not_found', type: 'not_found_error', param: 'model' }
    for (const response of [
      await app.request('/v1/models/gpt'),
      await post('/v1/chat/completions', { ...CHAT, model: 'gpt' }),
      await post('/v1/completions', { prompt: 'a', model: 'toString' }),
    ]) {
      expect(response.status).toBe(404)
      expect(await response.json()).toMatchObject({ error })
    }
  })

  test('are loaded by the first request, once for all that come together', async () => {
    let reads = 0
    const { app, post } = await tinyApp({
      store: (store) => ({
        read: store.read.bind(store),
        manifest: (...args) => {
          reads++
          return store.manifest(...args)
        },
      }),
    })
    const answers = await Promise.all(
      [1, 2, 3].map(() => post('/v1/chat/completions', { ...CHAT, model: 'tiny' })),
    )
    expect(answers.map(({ status }) => status)).toEqual([200, 200, 200])
    expect(reads).toBe(1)
    expect(await (await app.request('/health')).json()).toEqual({
      status: 'ok',
      key_needed: false,
      models: { tiny: 'ready' },
    })
  })

  test('whose load fails are tried again by the next request', async () => {
    const log = vi.spyOn(console, 'error').mockImplementation(() => {})
    let down = true
    const { app, post } = await tinyApp({
      store: (store) => ({
        read: store.read.bind(store),
        manifest: (...args) => {
          if (down) throw new SparsedgeError('store_unavailable', 'bucket xyz: 503')
          return store.manifest(...args)
        },
      }),
    })
    const failed = await post('/v1/chat/completions', CHAT)
    expect(failed.status).toBe(503)
    expect(failed.headers.get('Retry-After')).toBe('5')
    expect(await failed.text()).not.toContain('xyz')
    expect(await (await app.request('/health')).json()).toMatchObject({ models: { tiny: 'failed' } })
    down = false
    expect((await post('/v1/chat/completions', CHAT)).status).toBe(200)
    log.mockRestore()
  })
})

describe('bodies that are too large', () => {
  const limits = { bodyBytes: 1000 }

  test('by their Content-Length', async () => {
    const { post, watch } = await tinyApp({ limits })
    const response = await post('/v1/chat/completions', CHAT, { headers: { 'Content-Length': '1001' } })
    expect(response.status).toBe(413)
    expect(await response.json()).toMatchObject({ error: { code: 'body_too_large', param: null } })
    expect(watch.steps).toBe(0)
  })

  test('by their bytes, read no further than the limit', async () => {
    const { app } = await tinyApp({ limits })
    let sent = 0
    const body = new ReadableStream<Uint8Array>({
      pull(controller) {
        sent += 100
        controller.enqueue(new Uint8Array(100).fill(32))
      },
    })
    const response = await app.request('/v1/completions', {
      method: 'POST',
      body,
      duplex: 'half',
      headers: { 'Content-Type': 'application/json' },
    })
    expect(response.status).toBe(413)
    expect(sent).toBeLessThan(2000)
  })

  test('a body that breaks off is no failure of the server', async () => {
    const log = vi.spyOn(console, 'error').mockImplementation(() => {})
    onTestFinished(() => log.mockRestore())
    const { app } = await tinyApp({ limits })
    for (const length of [{}, { 'Content-Length': '500' }]) {
      const body = new ReadableStream<Uint8Array>({
        pull(controller) {
          controller.enqueue(new Uint8Array(100).fill(32))
          controller.error(new Error('aborted'))
        },
      })
      const headers = { 'Content-Type': 'application/json', ...length }
      const response = await app.request('/v1/completions', { method: 'POST', body, duplex: 'half', headers })
      expect(await response.json()).toMatchObject({ error: { code: 'cancelled' } })
    }
    expect(log).not.toHaveBeenCalled()
  })

  test('and one of exactly the limit passes', async () => {
    const { post } = await tinyApp({ limits })
    const body = JSON.stringify(CHAT).padEnd(1000)
    expect((await post('/v1/chat/completions', body)).status).toBe(200)
    expect((await post('/v1/chat/completions', `${body} `)).status).toBe(413)
  })
})

describe('other origins', () => {
  const preflight = (origin: string) => ({
    method: 'OPTIONS',
    headers: { Origin: origin, 'Access-Control-Request-Method': 'POST' },
  })

  test('may call if they are on the list, key and preflight included', async () => {
    const { app } = await tinyApp({ apiKey: 'k', allowedOrigins: ['https://a.example', 'https://b.example'] })
    const asked = await app.request('/v1/chat/completions', preflight('https://b.example'))
    expect(asked.status).toBe(204)
    expect(asked.headers.get('Access-Control-Allow-Origin')).toBe('https://b.example')
    expect(asked.headers.get('Access-Control-Allow-Headers')).toContain('Authorization')
    expect(asked.headers.get('Access-Control-Allow-Methods')).toBe('GET,POST')
    // A page can read why it was refused.
    const refused = await app.request('/v1/models', { headers: { Origin: 'https://a.example' } })
    expect(refused.status).toBe(401)
    expect(refused.headers.get('Access-Control-Allow-Origin')).toBe('https://a.example')
    expect(refused.headers.get('Access-Control-Expose-Headers')).toContain('X-Request-Id')
    expect(refused.headers.get('Vary')).toContain('Origin')
  })

  test.each([['https://evil.example'], ['https://a.example.evil'], ['null']])(
    '%s may not',
    async (origin) => {
      const { app } = await tinyApp({ allowedOrigins: ['https://a.example'] })
      const asked = await app.request('/v1/chat/completions', preflight(origin))
      expect(asked.headers.get('Access-Control-Allow-Origin')).toBeNull()
      const sent = await app.request('/v1/models', { headers: { Origin: origin } })
      expect(sent.headers.get('Access-Control-Allow-Origin')).toBeNull()
    },
  )

  test('are all refused without a list, all allowed with *', async () => {
    const closed = await tinyApp()
    const open = await tinyApp({ allowedOrigins: ['*'] })
    const headers = { Origin: 'https://a.example' }
    const allowed = async ({ app }: typeof closed) =>
      (await app.request('/v1/models', { headers })).headers.get('Access-Control-Allow-Origin')
    expect(await allowed(closed)).toBeNull()
    expect(await allowed(open)).toBe('*')
  })
})

test('the page carries the nonce of its policy, a new one each time, and may load nothing else', async () => {
  const { app } = await tinyApp()
  const visits = await Promise.all(
    [1, 2].map(async () => {
      const response = await app.request('/')
      const policy = response.headers.get('Content-Security-Policy') ?? ''
      const nonce = /script-src 'nonce-([^']+)'/.exec(policy)?.[1]
      expect(policy).toContain("default-src 'none'")
      expect(policy).toContain("connect-src 'self'")
      expect(policy).not.toContain('unsafe')
      expect(response.headers.get('Content-Type')).toContain('text/html')
      expect(await response.text()).toContain(`nonce="${nonce}"`)
      return nonce
    }),
  )
  expect(visits[0]).toBeTruthy()
  expect(visits[0]).not.toBe(visits[1])
})
