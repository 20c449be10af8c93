import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import { type ServerType, serve } from '@hono/node-server'
import OpenAI from 'openai'
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest'
import { tinyPack } from '../../../test/fixtures/tiny.ts'
import { tinyTokenizer } from '../../../test/fixtures/tiny-tokenizer.ts'
import { type Program, start } from '../../../test/processes.ts'
import { NEVER_ENDS, tinyApp } from '../testing.ts'

const HELLO = tinyTokenizer().model.vocab.hello
const CHAT = {
  model: 'tiny',
  messages: [{ role: 'user' as const, content: 'hello' }],
  temperature: 0,
  logit_bias: { [HELLO]: 100 },
  max_tokens: 4,
}

describe('the entry', () => {
  let store: string
  let server: Program
  let client: OpenAI

  function launch(env: Record<string, string>): Program {
    const settings = { MODEL: 'tiny', STORE: store, HOST: '127.0.0.1', PORT: '0', ...env }
    return start('node', ['functions/src/entries/node.ts'], settings)
  }
  async function startEntry(env: Record<string, string> = {}): Promise<{ server: Program; url: string }> {
    const server = launch(env)
    const [url] = await server.until(/http:\/\/\S+:\d+/)
    return { server, url }
  }
  /** Its only line. */
  async function lastWords(env: Record<string, string>): Promise<string> {
    const server = launch(env)
    await server.until(/\n/)
    expect(await server.exit).toBe(1)
    expect(server.output()).toMatch(/^.+\n$/)
    return server.output()
  }

  beforeAll(async () => {
    store = await mkdtemp(join(tmpdir(), 'sparsedge-node-entry-'))
    for (const [key, bytes] of (await tinyPack()).store.objects) {
      await mkdir(dirname(join(store, key)), { recursive: true })
      await writeFile(join(store, key), bytes)
    }
    const started = await startEntry({ API_KEY: 'open sesame' })
    server = started.server
    client = new OpenAI({ baseURL: `${started.url}/v1`, apiKey: 'open sesame', maxRetries: 0 })
  })
  afterAll(async () => {
    await server.stop()
    await rm(store, { recursive: true })
  })

  test("OpenAI's client reads a whole chat", async () => {
    const { choices, usage } = await client.chat.completions.create(CHAT)
    expect(choices[0].message).toMatchObject({ role: 'assistant', content: 'hellohellohellohello' })
    expect(choices[0].finish_reason).toBe('length')
    expect(usage?.completion_tokens).toBe(4)
  })

  test("OpenAI's client puts a streamed chat together again", async () => {
    const stream = client.chat.completions.stream({ ...CHAT, stream_options: { include_usage: true } })
    const pieces: string[] = []
    stream.on('content', (piece) => pieces.push(piece))
    const { choices, usage } = await stream.finalChatCompletion()
    expect(choices[0].message).toMatchObject({ role: 'assistant', content: 'hellohellohellohello' })
    expect(choices[0].finish_reason).toBe('length')
    expect(usage?.completion_tokens).toBe(4)
    expect(pieces.filter((piece) => piece !== '').length).toBeGreaterThan(1)
  })

  test("OpenAI's client reads completions, whole and streamed", async () => {
    const request = { ...CHAT, prompt: ['hello', ' world'], max_tokens: 2 }
    const { choices } = await client.completions.create(request)
    expect(choices.map(({ index, text }) => [index, text])).toEqual([
      [0, 'hellohello'],
      [1, 'hellohello'],
    ])
    const texts = ['', '']
    for await (const { choices } of await client.completions.create({ ...request, stream: true })) {
      texts[choices[0].index] += choices[0].text
    }
    expect(texts).toEqual(['hellohello', 'hellohello'])
  })

  test("OpenAI's client lists models and knows our errors for what they are", async () => {
    expect((await client.models.list()).data.map(({ id }) => id)).toEqual(['tiny'])
    expect((await client.models.retrieve('tiny')).id).toBe('tiny')
    const chat = (change: object) => client.chat.completions.create({ ...CHAT, ...change })
    await expect(chat({ model: 'x' })).rejects.toThrow(OpenAI.NotFoundError)
    await expect(chat({ top_p: 7 })).rejects.toThrow(OpenAI.BadRequestError)
    await expect(chat({ top_p: 7 })).rejects.toMatchObject({ param: 'top_p', code: 'invalid_request' })
    const stranger = new OpenAI({ baseURL: client.baseURL, apiKey: 'wrong', maxRetries: 0 })
    await expect(stranger.models.list()).rejects.toThrow(OpenAI.AuthenticationError)
  })

  test('a body sent in chunks, with no length, is held to the limit too', async () => {
    let chunks = 1000
    const huge = new ReadableStream({
      async pull(controller) {
        // Without a pause it would keep this process from reading the answer.
        await setImmediate()
        controller.enqueue(new Uint8Array(65_536).fill(32))
        if (--chunks === 0) controller.close()
      },
    })
    const headers = { 'Content-Type': 'application/json', Authorization: 'Bearer open sesame' }
    const init = { method: 'POST', headers, body: huge, duplex: 'half' as const }
    const response = await fetch(`${client.baseURL}/chat/completions`, init)
    expect(response.status).toBe(413)
    expect(await response.json()).toMatchObject({ error: { code: 'body_too_large' } })
  })

  test('a body that is too large takes its connection with it, and no other request', async () => {
    const post = {
      method: 'POST',
      headers: { 'Content-Type': 'application/json', Authorization: 'Bearer open sesame' },
    }
    for (let i = 0; i < 6; i++) {
      const response = await fetch(`${client.baseURL}/completions`, { ...post, body: ' '.repeat(300_000) })
      expect(response.status).toBe(413)
      expect(response.headers.get('Connection')).toBe('close')
      await response.text()
      await client.models.list()
    }
  })

  test.each(['SIGTERM', 'SIGINT'] as const)(
    '%s lets answers under way end, then the server',
    async (signal) => {
      const { server, url } = await startEntry()
      const body = JSON.stringify({
        ...CHAT,
        logit_bias: NEVER_ENDS.logit_bias,
        max_tokens: 200,
        stream: true,
      })
      const headers = { 'Content-Type': 'application/json' }
      const response = await fetch(`${url}/v1/chat/completions`, { method: 'POST', headers, body })
      server.child.kill(signal)
      expect(await response.text()).toMatch(/"finish_reason":"length".*\n\ndata: \[DONE\]\n\n$/s)
      expect(await server.exit).toBe(0)
      await expect(fetch(`${url}/health`)).rejects.toThrow()
    },
  )

  test.each([
    [{ MODEL: '' }, 'MODEL must be the name of the model'],
    [{ STORE: '' }, 'STORE must be a directory'],
    [{ MODEL: '', STORE: '' }, /MODEL must .*; STORE must /],
    [{ PORT: 'x' }, 'PORT must be a whole number from 0 to 65535'],
    [{ MEMORY_MIB: '9999' }, 'MEMORY_MIB must be a whole number from 1 to 4095'],
    [{ BACKEND: 'cuda' }, 'BACKEND must be auto, wasm or webgpu'],
    [{ MODEL: 'nobody' }, /STORE=.*: there is no model "nobody" in the fs store; push its pack/],
    [{ STORE: '/no/where' }, 'STORE=/no/where: there is no model "tiny" in the fs store; push its pack'],
    [
      { STORE: 'http://127.0.0.1:9/' },
      'STORE=http://127.0.0.1:9/: the http store failed: fetch failed: bad port',
    ],
  ])('does not start with %j, and says why in one line', async (env, words) => {
    expect(await lastWords(env)).toMatch(words)
  })

  test('does not start on a port that is taken', async () => {
    const { port } = new URL(client.baseURL)
    expect(await lastWords({ PORT: port })).toContain('the port is taken; set PORT to another one')
  })
})

describe('a client that hangs up', () => {
  let server: ServerType | undefined
  afterEach(() => server?.close())

  test.each([
    ['a stream', true, 5],
    ['a whole answer', false, 5],
    ['a prompt being read', true, 1],
  ])('amid %s stops its decoding', async (_, stream, holdFrom) => {
    const { app, watch } = await tinyApp({ holdFrom })
    const port = await new Promise<number>((resolve) => {
      server = serve({ fetch: app.fetch, hostname: '127.0.0.1', port: 0 }, (info: AddressInfo) =>
        resolve(info.port),
      )
    })
    const gone = new AbortController()
    const body = JSON.stringify({ ...CHAT, ...NEVER_ENDS, max_tokens: 100, stream })
    const headers = { 'Content-Type': 'application/json' }
    const url = `http://127.0.0.1:${port}/v1/chat/completions`
    const answer = fetch(url, { method: 'POST', headers, body, signal: gone.signal })
    const end = answer.then((response) => response.text()).catch(() => {})
    await watch.held
    expect(watch.open).toBe(1)
    gone.abort()
    await end
    await vi.waitFor(() => expect(watch.open).toBe(0))
    expect(watch.steps).toBe(holdFrom)
  })
})
