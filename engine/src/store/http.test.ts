import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { gzipSync } from 'node:zlib'
import { afterAll, beforeEach, describe, expect, test } from 'vitest'
import { withDeadline } from './deadline.ts'
import { httpStore } from './http.ts'
import { sha256 } from './sha256.ts'

const shard = Uint8Array.from({ length: 100_000 }, (_, i) => (i * 7) & 255)
const hash = await sha256(shard)

/** What the server does with the next request; and the URL it was asked for. */
let answer: (response: ServerResponse, request: IncomingMessage) => void
let asked = ''
const server = createServer((request, response) => {
  asked = request.url ?? ''
  answer(response, request)
})
const base = await new Promise<string>((listening) => {
  server.listen(0, '127.0.0.1', () => {
    const address = server.address()
    listening(`http://127.0.0.1:${typeof address === 'object' ? address?.port : ''}`)
  })
})
afterAll(() => {
  server.closeAllConnections()
  server.close()
})
beforeEach(() => {
  answer = (response) => response.end(shard)
})

const destinations = () => [
  { hash: null, bytes: new Uint8Array(70_001) },
  { hash: null, bytes: new Uint8Array(29_999) },
]

describe('httpStore', () => {
  test.each([
    { body: 'with its length', send: (r: ServerResponse) => r.end(shard) },
    {
      body: 'in chunks of unknown total',
      send: (r: ServerResponse) => {
        r.write(shard.subarray(0, 33_333))
        r.end(shard.subarray(33_333))
      },
    },
    {
      body: 'compressed for the way',
      send: (r: ServerResponse) => r.setHeader('content-encoding', 'gzip').end(gzipSync(shard)),
    },
  ])('scatters a body that comes $body', async ({ send }) => {
    answer = send
    const into = destinations()
    expect(await httpStore(base).read(hash, into)).toBe('http')
    expect(Buffer.concat(into.map(({ bytes }) => bytes)).equals(shard)).toBe(true)
  })

  test.each([
    { baseUrl: '', path: '' },
    { baseUrl: '/packs/', path: '/packs' },
    { baseUrl: '/packs?key=1', path: '/packs', query: '?key=1' },
  ])('asks below "$baseUrl"', async ({ baseUrl, path, query = '' }) => {
    await httpStore(base + baseUrl).read(hash, destinations())
    expect(asked).toBe(`${path}/shards/${hash}${query}`)
    answer = (response) => response.end('{}')
    const bytes = await httpStore(base + baseUrl).manifest('tiny')
    expect(asked).toBe(`${path}/models/tiny/manifest.json${query}`)
    expect(Buffer.from(bytes).toString()).toBe('{}')
  })

  test.each([
    { fault: 'truncated, honestly', code: 'shard_too_short', send: (r) => r.end(shard.subarray(1)) },
    {
      fault: 'truncated, in chunks',
      code: 'shard_too_short',
      send: (r) => {
        r.write(shard.subarray(0, 50_000))
        r.end()
      },
    },
    {
      fault: 'cut off',
      code: 'store_unavailable',
      send: (r) => {
        r.setHeader('content-length', shard.length)
        r.write(shard.subarray(0, 50_000), () => r.destroy())
      },
    },
    {
      fault: 'too long, honestly',
      code: 'shard_too_long',
      send: (r) => r.end(Buffer.concat([shard, shard])),
    },
    {
      fault: 'too long, in chunks',
      code: 'shard_too_long',
      send: (r) => {
        r.write(shard)
        r.end('!')
      },
    },
    { fault: 'empty', code: 'shard_too_short', send: (r) => r.end() },
    { fault: '404', code: 'shard_missing', send: (r) => r.writeHead(404).end('not here') },
    { fault: '500', code: 'store_unavailable', send: (r) => r.writeHead(500).end(shard) },
    { fault: '403', code: 'store_unavailable', send: (r) => r.writeHead(403).end() },
    { fault: 'a part (206)', code: 'store_unavailable', send: (r) => r.writeHead(206).end(shard) },
    { fault: 'a closed connection', code: 'store_unavailable', send: (r) => r.destroy() },
  ] satisfies { fault: string; code: string; send: typeof answer }[])(
    '$fault gives $code',
    async ({ code, send }) => {
      answer = send
      const reading = httpStore(base).read(hash, destinations())
      await expect(reading).rejects.toMatchObject({ code, place: { shard: hash, tier: 'http' } })
    },
  )

  test('a body that comes slowly is told from one that stalls', async () => {
    let rest = true
    answer = async (response) => {
      for (let at = 0; at < shard.length; at += 20_000) {
        response.write(shard.subarray(at, at + 20_000))
        await new Promise((sent) => setTimeout(sent, 150))
        if (!rest) return
      }
      response.end()
    }
    // All in all it has 400 ms more than 760; amid its bytes 400.
    const store = withDeadline(httpStore(base), 400)
    expect(await store.read(hash, destinations())).toBe('http')
    rest = false
    const started = performance.now()
    await expect(store.read(hash, destinations())).rejects.toMatchObject({ code: 'store_unavailable' })
    expect(performance.now() - started).toBeLessThan(900)
  })

  test('a missing model, a name that cannot be one, a server that is not there', async () => {
    answer = (response) => response.writeHead(404).end()
    await expect(httpStore(base).manifest('tiny')).rejects.toMatchObject({ code: 'unknown_model' })
    asked = ''
    await expect(httpStore(base).manifest('../tiny')).rejects.toMatchObject({ code: 'unknown_model' })
    await expect(httpStore(base).read('../secret', [])).rejects.toMatchObject({ code: 'shard_missing' })
    expect(asked).toBe('')
    await expect(httpStore('http://127.0.0.1:1').manifest('tiny')).rejects.toMatchObject({
      code: 'store_unavailable',
      place: { tier: 'http' },
    })
    expect(() => httpStore('not a url')).toThrow(expect.objectContaining({ code: 'store_unavailable' }))
  })

  test.each([
    { when: 'before the headers', send: () => {} },
    { when: 'within the body', send: (r: ServerResponse) => r.write(shard.subarray(0, 50_000)) },
  ])('cancelling $when ends the read and closes the connection', async ({ send }) => {
    const abort = new AbortController()
    const closed = new Promise<void>((done) => {
      answer = (response, request) => {
        request.socket.on('close', () => done())
        send(response)
        setTimeout(() => abort.abort(), 20)
      }
    })
    const reading = httpStore(base).read(hash, destinations(), abort.signal)
    await expect(reading).rejects.toMatchObject({ code: 'cancelled' })
    await closed
  })

  test('a refused body is not downloaded: its connection is closed', async () => {
    const closed = new Promise<void>((done) => {
      answer = (response, request) => {
        request.socket.on('close', () => done())
        response.write(shard)
        response.write(shard)
      }
    })
    await expect(httpStore(base).read(hash, destinations())).rejects.toMatchObject({ code: 'shard_too_long' })
    await closed
  })

  test('takes a fetch of the caller’s', async () => {
    const store = httpStore('https://packs.example', {
      fetch: async (input) => {
        asked = String(input)
        return new Response(shard)
      },
    })
    await store.read(hash, destinations())
    expect(asked).toBe(`https://packs.example/shards/${hash}`)
  })
})
