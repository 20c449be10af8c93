import { afterEach, describe, expect, test, vi } from 'vitest'
import { eventsOf, NEVER_ENDS, tinyApp } from './testing.ts'

const PATH = '/v1/chat/completions'
const LONG = { messages: [{ role: 'user', content: 'hello' }], max_tokens: 100, ...NEVER_ENDS }

afterEach(() => vi.restoreAllMocks())

/** Lets everything that is ready to run do so. */
const settle = () => new Promise((resolve) => setTimeout(resolve, 20))

describe('a client that goes away', () => {
  test.each([
    ['before a whole answer is there', false],
    ['before a stream begins', true],
  ])('%s stops its decoding at the next token', async (_, stream) => {
    const { post, watch } = await tinyApp({ holdFrom: 1 })
    const gone = new AbortController()
    const response = post(PATH, { ...LONG, stream }, { signal: gone.signal })
    await watch.held
    expect(watch.open).toBe(1)
    gone.abort()
    expect((await response).status).toBe(503)
    await settle()
    expect(watch).toMatchObject({ steps: 1, open: 0 })
  })

  test('amid a stream stops its decoding at the next token', async () => {
    const { post, watch } = await tinyApp({ holdFrom: 5 })
    const gone = new AbortController()
    const response = await post(PATH, { ...LONG, stream: true }, { signal: gone.signal })
    const text = response.text()
    await watch.held
    gone.abort()
    await text.catch(() => {})
    await settle()
    expect(watch).toMatchObject({ steps: 5, open: 0 })
  })

  test('by cancelling the stream stops its decoding at the next token', async () => {
    const { post, watch } = await tinyApp({ holdFrom: 5 })
    const response = await post(PATH, { ...LONG, stream: true })
    const reader = response.body?.getReader()
    void (async () => {
      while (!(await reader?.read())?.done);
    })()
    await watch.held
    await reader?.cancel()
    await settle()
    expect(watch).toMatchObject({ steps: 5, open: 0 })
  })

  test('leaves the others alone', async () => {
    const { post, watch } = await tinyApp()
    const gone = new AbortController()
    const left = post(PATH, { ...LONG, seed: 1 }, { signal: gone.signal })
    const stays = post(PATH, { ...LONG, seed: 1 })
    gone.abort()
    expect((await left).status).toBe(503)
    const answer = await stays
    expect(answer.status).toBe(200)
    expect(await answer.json()).toMatchObject({ usage: { completion_tokens: 100 } })
    expect(watch.open).toBe(0)
  })

  test('while the model loads does not stop the load', async () => {
    let release = () => {}
    const held = new Promise<void>((resolve) => {
      release = resolve
    })
    const { app, post, watch } = await tinyApp({
      store: (store) => ({
        read: store.read.bind(store),
        manifest: async (...args) => {
          await held
          return store.manifest(...args)
        },
      }),
    })
    const gone = new AbortController()
    const left = post(PATH, LONG, { signal: gone.signal })
    await settle()
    gone.abort()
    expect((await left).status).toBe(503)
    release()
    const health = async () => (await app.request('/health')).json()
    await expect.poll(health, { timeout: 10_000 }).toMatchObject({ models: { tiny: 'ready' } })
    expect(watch.steps).toBe(0)
  })
})

describe('the time limit', () => {
  const limits = { seconds: 0.2 }

  test('ends a request that has not begun to answer with 504', async () => {
    vi.spyOn(console, 'error').mockImplementation(() => {})
    const { post, watch } = await tinyApp({ holdFrom: 1, limits })
    const response = await post(PATH, LONG)
    expect(response.status).toBe(504)
    expect(await response.json()).toMatchObject({
      error: { code: 'deadline_exceeded', type: 'server_error' },
    })
    expect(watch.open).toBe(0)
  })

  test('ends a stream with an error as its last event', async () => {
    vi.spyOn(console, 'error').mockImplementation(() => {})
    const { post, watch } = await tinyApp({ holdFrom: 5, limits })
    const events = await eventsOf(await post(PATH, { ...LONG, stream: true }))
    expect(events).not.toContain('[DONE]')
    expect(JSON.parse(events.at(-1) ?? '')).toEqual({
      error: {
        code: 'deadline_exceeded',
        type: 'server_error',
        message: expect.stringContaining('0.2 s'),
        param: null,
      },
    })
    expect(watch.open).toBe(0)
  })

  test('frees what a client holds that does not read', async () => {
    vi.spyOn(console, 'error').mockImplementation(() => {})
    const { post, watch } = await tinyApp({ limits })
    const response = await post(PATH, { ...LONG, stream: true })
    await vi.waitFor(() => expect(watch.open).toBe(0), 5000)
    expect(watch.steps).toBeLessThan(100)
    await response.body?.cancel()
  })
})

test('a failure amid a stream is its last event, and tells nothing of the inside', async () => {
  const log = vi.spyOn(console, 'error').mockImplementation(() => {})
  const { post, watch } = await tinyApp({ failAt: 4 })
  const events = await eventsOf(await post(PATH, { ...LONG, stream: true }))
  expect(events.length).toBeGreaterThan(1)
  expect(events).not.toContain('[DONE]')
  const last = JSON.parse(events.at(-1) ?? '')
  expect(last).toMatchObject({ error: { code: 'shard_hash_mismatch', type: 'server_error' } })
  expect(last.error.message).not.toMatch(/abab|layer/)
  expect(log.mock.calls[0][0]).toMatch(/"layer":1,"expert":2/)
  expect(watch.open).toBe(0)
})
