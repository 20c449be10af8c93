import { Hono } from 'hono'
import { describe, expect, test } from 'vitest'
import type { z } from 'zod'
import { onError } from './middleware/errors.ts'
import { ChatBody, CompletionBody, expertsOf, readBody, samplingOf, stopsOf } from './schema.ts'

const MESSAGES = [{ role: 'user', content: 'hi' }]

/** Status and body of a server that echoes what it understood. */
async function send(schema: z.ZodType, body: unknown, headers: Record<string, string> = {}) {
  const app = new Hono().post('/', async (c) => c.json((await readBody(c, schema)) as object))
  app.onError(onError)
  const response = await app.request('/', {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', ...headers },
    body: typeof body === 'string' ? body : JSON.stringify(body),
  })
  return { status: response.status, body: await response.json() }
}

describe('malformed fields of a chat', () => {
  const part = { type: 'text', text: 'a' }
  test.each<[string, unknown]>([
    ['messages', undefined],
    ['messages', null],
    ['messages', 'hi'],
    ['messages', []],
    ['messages[0]', ['hi']],
    ['messages[0].role', [{ content: 'hi' }]],
    ['messages[0].role', [{ role: 'tool', content: 'hi' }]],
    ['messages[1].content', [MESSAGES[0], { role: 'user' }]],
    ['messages[0].content', [{ role: 'user', content: null }]],
    ['messages[0].content', [{ role: 'user', content: 7 }]],
    ['messages[0].content', [{ role: 'user', content: [part, { type: 'image_url', image_url: {} }] }]],
  ])('%s: %j', async (param, messages) => {
    const { status, body } = await send(ChatBody, { messages })
    expect(status).toBe(400)
    const message = expect.stringMatching(/^messages.*: ./)
    expect(body).toEqual({
      error: { code: 'invalid_request', type: 'invalid_request_error', param, message },
    })
  })
})

describe('malformed fields of both endpoints', () => {
  test.each<[string, unknown]>([
    ['model', 7],
    ['max_tokens', 0],
    ['max_tokens', 1.5],
    ['max_tokens', '10'],
    ['temperature', -0.1],
    ['temperature', 2.1],
    ['temperature', 'hot'],
    ['top_p', 1.1],
    ['top_p', -1],
    ['top_k', 1.5],
    ['top_k', -2],
    ['min_p', 2],
    ['repetition_penalty', 0],
    ['presence_penalty', 3],
    ['frequency_penalty', -3],
    ['logit_bias', [1]],
    ['logit_bias.5', { 5: 101 }],
    ['logit_bias.word', { word: 1 }],
    ['seed', 'lucky'],
    ['seed', 2 ** 60],
    ['stop', 7],
    ['stop', ''],
    ['stop[1]', ['a', '']],
    ['stop', ['a', 'b', 'c', 'd', 'e']],
    ['n', 2],
    ['experts', true],
    ['experts', { sahre: 0.5 }],
    ['experts', { share: 0.5, top_k: 2 }],
    ['experts.share', { share: 1.5 }],
    ['experts.top_k', { top_k: 0 }],
    ['experts.threshold', { threshold: -1 }],
    ['experts.policy', { policy: 'fast' }],
    ['experts.max_bytes', { max_bytes: -1 }],
    ['experts.max_bytes', { max_bytes: 0.5 }],
    ['experts.max_latency_ms', { max_latency_ms: 1e12 }],
    ['experts.lookahead', { lookahead: 'yes' }],
    ['experts.report', { report: 'all' }],
    ['stream', 'yes'],
    ['stream_options', true],
    ['stream_options.include_usage', { include_usage: 'yes' }],
  ])('%s: %j', async (param, value) => {
    const field = param.split(/[.[]/)[0]
    for (const [schema, prompt] of [
      [ChatBody, { messages: MESSAGES }],
      [CompletionBody, { prompt: 'hi' }],
    ] as const) {
      const { status, body } = await send(schema, { ...prompt, [field]: value })
      expect(status).toBe(400)
      expect(body).toMatchObject({ error: { code: 'invalid_request', param } })
    }
  })

  test('a number too large for a double is not a number', async () => {
    const { body } = await send(CompletionBody, '{"prompt":"a","temperature":1e999}')
    expect(body).toMatchObject({ error: { code: 'invalid_request', param: 'temperature' } })
  })
})

test.each<[z.ZodType, unknown, string]>([
  [ChatBody, { messages: [] }, 'messages: must not be empty'],
  [ChatBody, {}, 'messages: is missing'],
  [ChatBody, [], 'the body must be an object'],
  [ChatBody, { messages: ['hi'] }, 'messages[0]: must be an object'],
  [
    ChatBody,
    { messages: [{ role: 'tool', content: '' }] },
    'messages[0].role: must be one of system, developer, user, assistant',
  ],
  [CompletionBody, { prompt: '', logit_bias: { word: 1 } }, 'logit_bias.word: must be a token id'],
  [CompletionBody, { prompt: '', logit_bias: { 5: 101 } }, 'logit_bias.5: must be at most 100'],
  [CompletionBody, { prompt: '', temperature: 'hot' }, 'temperature: must be a number'],
  [CompletionBody, { prompt: '', max_tokens: 1.5 }, 'max_tokens: must be a whole number'],
  [CompletionBody, { prompt: '', top_k: -2 }, 'top_k: must be at least -1'],
  [CompletionBody, { prompt: '', stop: [''] }, 'stop[0]: must not be empty'],
  [CompletionBody, { prompt: '', stream: 1 }, 'stream: must be true or false'],
  [CompletionBody, { prompt: [[]] }, 'prompt[0]: must not be empty'],
  [
    CompletionBody,
    { prompt: '', experts: { sahre: 1, topk: 2 } },
    'experts: knows no sahre, topk; it knows ' +
      'share, top_k, threshold, policy, max_bytes, max_latency_ms, lookahead, report',
  ],
  [
    CompletionBody,
    { prompt: '', experts: { share: 1, threshold: 2 } },
    'experts: share, top_k and threshold exclude each other',
  ],
  [
    CompletionBody,
    { prompt: '', experts: { policy: 'fast' } },
    'experts.policy: must be one of exact, resident_first',
  ],
  [CompletionBody, { prompt: '', experts: { report: 'all' } }, 'experts.report: must be layers'],
])("what is wrong is said in a web developer's words: %#", async (schema, sent, message) => {
  expect((await send(schema, sent)).body).toMatchObject({ error: { message } })
})

describe('prompts of a completion', () => {
  test.each<[unknown, unknown]>([
    ['a', [{ text: 'a' }]],
    ['', [{ text: '' }]],
    [['a'], [{ text: 'a' }]],
    [
      ['a', 'b'],
      [{ text: 'a' }, { text: 'b' }],
    ],
    [[1, 2], [{ tokens: [1, 2] }]],
    [
      [[1, 2], [3]],
      [{ tokens: [1, 2] }, { tokens: [3] }],
    ],
  ])('%j', async (prompt, understood) => {
    expect((await send(CompletionBody, { prompt })).body).toMatchObject({ prompt: understood })
  })

  test.each<[unknown]>([
    [undefined],
    [null],
    [7],
    [[]],
    [[[]]],
    [['a', 1]],
    [[1, [2]]],
    [[-1]],
    [[1.5]],
    [{}],
  ])('%j is malformed', async (prompt) => {
    const { status, body } = await send(CompletionBody, { prompt })
    expect(status).toBe(400)
    expect(body).toMatchObject({
      error: { code: 'invalid_request', param: expect.stringMatching(/^prompt/) },
    })
  })
})

test('unknown fields are ignored, null is absent', async () => {
  const { status, body } = await send(ChatBody, {
    messages: [{ ...MESSAGES[0], name: 'Ann' }],
    user: 'u',
    metadata: { a: 1 },
    typical_p: 0.3,
    temperature: null,
    stop: null,
    stream_options: null,
    n: null,
  })
  expect(status).toBe(200)
  expect(body).toEqual({
    messages: MESSAGES,
    temperature: null,
    stop: null,
    stream_options: null,
    n: null,
  })
})

test('text parts are joined, the developer is the system', async () => {
  const content = [
    { type: 'text', text: 'one ' },
    { type: 'text', text: 'two' },
  ]
  const { body } = await send(ChatBody, { messages: [{ role: 'developer', content }] })
  expect(body).toEqual({ messages: [{ role: 'system', content: 'one two' }] })
})

describe('bodies that are no JSON', () => {
  test.each(['', ' \n'])('%j is empty', async (text) => {
    const { status, body } = await send(ChatBody, text)
    expect(status).toBe(400)
    expect(body).toMatchObject({
      error: { code: 'invalid_request', message: 'the body is empty; send JSON', param: null },
    })
  })

  test.each(['{', '{"messages":', 'hello', '[1', '\u0000'])('%j', async (text) => {
    const { status, body } = await send(ChatBody, text)
    expect(status).toBe(400)
    expect(body).toMatchObject({
      error: { code: 'invalid_request', message: 'the body is not JSON', param: null },
    })
  })

  test.each(['[]', '"x"', '7', 'null'])('%s is JSON, but no object', async (text) => {
    const { status, body } = await send(ChatBody, text)
    expect(status).toBe(400)
    expect(body).toMatchObject({ error: { code: 'invalid_request', param: null } })
  })
})

describe('content types', () => {
  test.each(['application/json', 'application/json; charset=utf-8', 'Application/JSON'])(
    '%s',
    async (type) => {
      const { status } = await send(ChatBody, { messages: MESSAGES }, { 'Content-Type': type })
      expect(status).toBe(200)
    },
  )

  test.each([
    '',
    'text/plain',
    'application/x-www-form-urlencoded',
    'multipart/form-data',
    'application/jsonx',
  ])('%j is refused', async (type) => {
    const { status, body } = await send(ChatBody, { messages: MESSAGES }, { 'Content-Type': type })
    expect(status).toBe(415)
    expect(body).toMatchObject({ error: { code: 'unsupported_media_type' } })
  })
})

describe('sampling', () => {
  test("OpenAI's defaults", () => {
    expect(samplingOf({})).toEqual({
      temperature: 1,
      topK: 0,
      topP: 1,
      minP: 0,
      repetitionPenalty: 1,
      presencePenalty: 0,
      frequencyPenalty: 0,
      logitBias: new Map(),
      seed: expect.any(Number),
    })
  })

  test('a seed is drawn anew for each request', () => {
    expect(new Set(Array.from({ length: 8 }, () => samplingOf({}).seed)).size).toBeGreaterThan(1)
  })

  test('every field is passed on', () => {
    expect(
      samplingOf({
        temperature: 0.5,
        top_k: -1,
        top_p: 0.9,
        min_p: 0.1,
        repetition_penalty: 1.1,
        presence_penalty: 0.2,
        frequency_penalty: 0.3,
        logit_bias: { 7: -100, 8: 2 },
        seed: 42,
      }),
    ).toEqual({
      temperature: 0.5,
      topK: 0,
      topP: 0.9,
      minP: 0.1,
      repetitionPenalty: 1.1,
      presencePenalty: 0.2,
      frequencyPenalty: 0.3,
      logitBias: new Map([
        [7, -100],
        [8, 2],
      ]),
      seed: 42,
    })
  })

  test('stop strings come alone or in a list', () => {
    expect(stopsOf({})).toEqual([])
    expect(stopsOf({ stop: null })).toEqual([])
    expect(stopsOf({ stop: 'a' })).toEqual(['a'])
    expect(stopsOf({ stop: ['a', 'b'] })).toEqual(['a', 'b'])
  })
})

describe('experts, as the engine takes them', () => {
  const experts = (experts: unknown, maxFetches?: number) =>
    expertsOf(CompletionBody.parse({ prompt: '', experts }), maxFetches)
  const defaults = { policy: 'exact', lookahead: true }

  test.each<[unknown, object]>([
    [undefined, {}],
    [null, {}],
    [{}, {}],
    [{ share: null, policy: null, report: null }, {}],
    [{ share: 0.25 }, { selection: { share: 0.25 } }],
    [{ top_k: 2 }, { selection: { topK: 2 } }],
    [{ threshold: 0 }, { selection: { threshold: 0 } }],
    [
      { policy: 'resident_first', lookahead: false },
      { policy: 'resident_first', lookahead: false },
    ],
    [
      { max_bytes: 0, max_latency_ms: 7 },
      { maxBytes: 0, maxLatencyMs: 7 },
    ],
  ])('%j', (sent, understood) => {
    expect(experts(sent)).toEqual({ ...defaults, ...understood })
  })

  test('the server’s own limit goes along', () => {
    expect(experts({}, 50)).toEqual({ ...defaults, maxFetches: 50 })
  })
})
