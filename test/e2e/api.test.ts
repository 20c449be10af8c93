/**
 * @module
 * The shipped model behind its API, on every platform, asked by OpenAI's own client: whole answers and streams, what they
 * cost in experts, several at once, and one that nobody waits for any more.
 */
import { setTimeout } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest'
import { z } from 'zod'
import { type Server, startEntry, startWorker } from '../servers.ts'
import { MODEL } from '../shipped.ts'
import { clientOf, collect, NEVER_ENDS, QUESTION, timingsOf, usageOf } from './client.ts'

const STREAM = { answer: 'a stream', stream: true }
const WHOLE = { answer: 'a whole answer', stream: false }

const Held = z.object({
  layers: z.array(z.object({ resident: z.array(z.int()), frequency: z.array(z.number()) })),
})
const Layered = z.object({
  usage: z.object({
    experts: z.object({
      active_share: z.number(),
      fidelity: z.number(),
      hits: z.int(),
      layers: z.array(z.object({ hits: z.int() })).length(30),
    }),
  }),
})

describe.each([
  {
    platform: 'workerd',
    tier: 'r2',
    serve: () => startWorker({ state: inject('state') }),
    // The proxy of `wrangler dev` tells a Worker that a client has left only once a response has begun.
    leaving: [STREAM],
  },
  {
    platform: 'node',
    tier: 'fs',
    serve: () => startEntry('node', { MODEL, STORE: inject('directory') }),
    leaving: [STREAM, WHOLE],
  },
  {
    platform: 'deno',
    tier: 'fs',
    serve: () => startEntry('deno', { MODEL, STORE: inject('directory') }),
    // Before a response has begun, Deno sees that a client has left only if the request's head and body came in one piece.
    leaving: [STREAM],
  },
])('on $platform', ({ tier, serve, leaving }) => {
  let server: Server
  beforeAll(async () => {
    server = await serve()
  })
  afterAll(() => server.stop())
  /** The first test's answer: greedy, so that all others can be held to it. */
  let text: string

  test('the first answer makes sense and fetches its experts', async () => {
    const answer = await clientOf(server).chat.completions.create(QUESTION)
    text = answer.choices[0].message.content ?? ''
    expect(text).toContain('Paris')
    const { experts } = usageOf(answer)
    expect(experts.misses).toBeGreaterThan(0)
    expect(Object.keys(experts.tiers)).toEqual([tier])
    expect(experts.active_share).toBeGreaterThan(0.3)
    expect(experts.active_share).toBeLessThan(0.7)
  })

  test('the same question again finds its experts in memory and gets the same answer', async () => {
    const answer = await clientOf(server).chat.completions.create(QUESTION)
    expect(answer.choices[0].message.content).toBe(text)
    const { hits, misses, tiers } = usageOf(answer).experts
    expect({ misses, tiers }).toEqual({ misses: 0, tiers: {} })
    expect(hits).toBeGreaterThan(1000)
  })

  test('a stream gives the same answer, piece by piece, and its usage', async () => {
    const stream = await clientOf(server).chat.completions.create({
      ...QUESTION,
      stream: true,
      stream_options: { include_usage: true },
    })
    const answer = await collect(stream)
    expect(answer.text).toBe(text)
    expect(answer.chunks.length).toBeGreaterThan(5)
    expect(answer.finishReason).toMatch(/stop|length/)
    expect(usageOf(answer.chunks[answer.chunks.length - 1]).experts.hits).toBeGreaterThan(1000)
  })

  test('two at once do not disturb each other', async () => {
    const other = { ...QUESTION, messages: [{ role: 'user' as const, content: 'Name three colours.' }] }
    const client = clientOf(server)
    const alone = await client.chat.completions.create(other)
    const [first, second] = await Promise.all([
      client.chat.completions.create(QUESTION),
      client.chat.completions.create(other),
    ])
    expect(first.choices[0].message.content).toBe(text)
    expect(second.choices[0].message.content).toBe(alone.choices[0].message.content)
  })

  test.each(leaving)('a client that leaves $answer stops its decoding', async ({ stream }) => {
    // Two conversations of 600 tokens do not fit at once, so the second begins when the first is given up. Were the first
    // decoded to its end, that would take as long as the rest of it.
    const long = {
      ...QUESTION,
      messages: [{ role: 'user' as const, content: 'Count from one to a thousand, in words.' }],
      max_tokens: 600,
      logit_bias: NEVER_ENDS,
    }
    const client = clientOf(server)
    const { tokens_per_second } = timingsOf(await client.chat.completions.create({ ...long, max_tokens: 60 }))
    const perToken = 1000 / tokens_per_second

    const leaving = new AbortController()
    const unread = client.chat.completions.create({ ...long, stream }, { signal: leaving.signal })
    unread.catch(() => {})
    await setTimeout(20 * perToken)
    leaving.abort()
    const left = performance.now()
    for await (const _ of await client.chat.completions.create({ ...long, stream: true })) break
    expect(performance.now() - left).toBeLessThan((perToken * long.max_tokens) / 2)
  })

  test('what is in memory can be seen; what the first answers did not need has come behind them', async () => {
    const held = async () => (await fetch(`${server.url}/v1/experts`)).json()
    await expect.poll(held).toMatchObject({ model: MODEL, state: 'ready', capacity: 1200, resident: 1200 })
    const { layers } = Held.parse(await held())
    expect(layers).toHaveLength(30)
    for (const { resident, frequency } of layers) {
      expect(resident).toEqual(Array(40).fill(1))
      expect(Math.max(...frequency)).toBeGreaterThan(0.5)
    }
  })

  test('a request says how its experts are used, and learns how they were', async () => {
    const ask = (experts: object) =>
      fetch(`${server.url}/v1/chat/completions`, {
        method: 'POST',
        headers: { 'Content-Type': 'application/json' },
        body: JSON.stringify({ ...QUESTION, experts }),
      })
    const response = await ask({ policy: 'resident_first', lookahead: false, report: 'layers' })
    expect(response.headers.get('Server-Timing')).toMatch(/^load;dur=.*, queue;.*, prefill;.*, decode;/)
    const { usage } = Layered.parse(await response.json())
    // All are resident, so there was nothing to make do without.
    expect(usage.experts.fidelity).toBe(1)
    expect(usage.experts.layers.reduce((sum, { hits }) => sum + hits, 0)).toBe(usage.experts.hits)
    const active = async (share: number) => {
      const answer = await ask({ share, report: 'layers' })
      return Layered.parse(await answer.json()).usage.experts.active_share
    }
    const [least, most] = [await active(0.35), await active(1)]
    expect(least).toBeLessThan(0.5)
    expect(most).toBe(1)
    const refused = await ask({ share: 0.123 })
    expect(refused.status).toBe(400)
    expect(await refused.json()).toMatchObject({
      error: { code: 'unsupported_selection', param: 'experts' },
    })
  })

  test('what cannot be served is refused by name', async () => {
    const client = clientOf(server)
    const asking = (change: object) => client.chat.completions.create({ ...QUESTION, ...change })
    await expect(asking({ model: 'other' })).rejects.toMatchObject({ status: 404, code: 'model_not_found' })
    await expect(asking({ temperature: 3 })).rejects.toMatchObject({ status: 400, param: 'temperature' })
    const long = [{ role: 'user', content: 'word '.repeat(5000) }]
    await expect(asking({ messages: long })).rejects.toMatchObject({ status: 400, code: 'prompt_too_long' })
  })
})
