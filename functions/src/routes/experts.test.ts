import { wasmBackend } from '@sparsedge/engine/backends/wasm/index'
import { SparsedgeError } from '@sparsedge/engine/errors'
import type { ShardStore } from '@sparsedge/engine/store/store'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { GATES, type TinyPackOptions } from '../../../test/fixtures/tiny.ts'
import { MODULES } from '../../../test/wasm/wasm.ts'
import { answerOf, chunksOf, type TinyAppOptions, tinyApp } from '../testing.ts'

const LAYERS = 3
const EXPERTS = 8
const pack: TinyPackOptions = {
  layers: LAYERS,
  experts: EXPERTS,
  gate: { ...GATES.softmaxTopK, selection: { by: 'top_k', k: 1 } },
}
/** One token, so that each layer routes one expert. */
const ASK = { prompt: [5], max_tokens: 1, temperature: 0 }

/** A model in a real arena: by default with room for all of its experts, and none fetched ahead. */
function app(options: TinyAppOptions = {}) {
  const backend = wasmBackend({ modules: MODULES['plain only'], memoryBytes: 32 << 20, contextTokens: 256 })
  return tinyApp({ pack, backend, limits: { warmUpBytes: 0 }, ...options })
}
type App = Awaited<ReturnType<typeof app>>

const Held = z.object({
  state: z.string(),
  shares: z.array(z.number()),
  expert_bytes: z.number().optional(),
  capacity: z.int(),
  resident: z.int(),
  layers: z.array(z.object({ resident: z.array(z.int()), frequency: z.array(z.number()) })),
})

async function held({ app }: App): Promise<z.infer<typeof Held>> {
  const response = await app.request('/v1/experts')
  expect(response.status).toBe(200)
  return Held.parse(await response.json())
}

async function usageIn({ post }: App, body: object) {
  const response = await post('/v1/completions', { ...ASK, ...body })
  expect(response.status).toBe(200)
  return { response, experts: (await answerOf(response)).usage.experts }
}

const Refusal = z.object({ error: z.object({ code: z.string(), param: z.string().nullable() }) })

async function refusal(response: Response) {
  const { code, param } = Refusal.parse(await response.json()).error
  return { status: response.status, code, param }
}

describe('the field `experts`', () => {
  test.each([[{ share: 0.5 }], [{ threshold: 1 }], [{ top_k: EXPERTS + 1 }]])(
    '%j is more than this pack can do',
    async (experts) => {
      const { post } = await app()
      for (const stream of [false, true]) {
        const response = await post('/v1/completions', { ...ASK, experts, stream })
        expect(await refusal(response)).toEqual({
          status: 400,
          code: 'unsupported_selection',
          param: 'experts',
        })
      }
    },
  )

  test('top_k chooses how many run', async () => {
    const served = await app()
    const run = async (top_k: number) => (await usageIn(served, { experts: { top_k } })).experts.active_share
    expect(await run(1)).toBe(1 / EXPERTS)
    expect(await run(4)).toBe(0.5)
    expect(await run(EXPERTS)).toBe(1)
  })

  test.each([[{ max_bytes: 100 }], [{ max_latency_ms: 0 }]])(
    '%j, where that is not enough, is an error of who set it',
    async (experts) => {
      const { post } = await app()
      const response = await post('/v1/completions', { ...ASK, experts })
      expect(response.headers.get('Retry-After')).toBeNull()
      expect(await refusal(response)).toEqual({ status: 422, code: 'expert_budget_spent', param: 'experts' })
    },
  )

  test('max_latency_ms is time for all waits together', async () => {
    const served = await app()
    const { experts } = await usageIn(served, { max_tokens: 8, experts: { max_latency_ms: 60_000 } })
    expect(experts.misses).toBeGreaterThan(1)
    expect(experts.wait_ms).toBeGreaterThan(0)
  })

  test('the server has a limit of its own', async () => {
    const { post } = await app({ limits: { expertFetches: 2, warmUpBytes: 0 } })
    const response = await post('/v1/completions', ASK)
    expect(response.headers.get('Retry-After')).toBe('5')
    expect(await refusal(response)).toEqual({ status: 503, code: 'expert_fetches_spent', param: null })
  })

  test('which counts for all prompts of an answer', async () => {
    const ask = { ...ASK, experts: { lookahead: false } }
    const limits = { expertFetches: LAYERS, warmUpBytes: 0 }
    for (const prompt of [[5], [9]]) {
      const { post } = await app({ limits })
      expect((await post('/v1/completions', { ...ask, prompt })).status).toBe(200)
    }
    const { post } = await app({ limits })
    const response = await post('/v1/completions', { ...ask, prompt: [[5], [9]] })
    expect(await refusal(response)).toEqual({ status: 503, code: 'expert_fetches_spent', param: null })
  })

  test('report: a line for each layer, which add up', async () => {
    const served = await app()
    expect((await usageIn(served, {})).experts).not.toHaveProperty('layers')
    const experts = { report: 'layers' }
    const { experts: usage } = await usageIn(served, { max_tokens: 6, prompt: [[5], [9]], experts })
    expect(usage.layers).toHaveLength(LAYERS)
    for (const field of ['activated', 'hits', 'misses'] as const) {
      expect(usage.layers?.reduce((sum, layer) => sum + layer[field], 0)).toBe(usage[field])
    }
    const stream = {
      ...ASK,
      stream: true,
      stream_options: { include_usage: true },
      experts,
    }
    const last = (await chunksOf(await served.post('/v1/completions', stream))).at(-1)
    expect(last?.usage?.experts.layers).toHaveLength(LAYERS)
  })
})

describe('Server-Timing', () => {
  test('of a whole answer has its phases, of a stream what is known when it begins', async () => {
    const served = await app()
    const { response } = await usageIn(served, {})
    const phases = /^load;dur=([\d.]+), queue;dur=[\d.]+, prefill;dur=([\d.]+), decode;dur=[\d.]+$/
    const [, load, prefill] = phases.exec(response.headers.get('Server-Timing') ?? '') ?? []
    expect(Number(load)).toBeGreaterThan(0)
    expect(Number(prefill)).toBeGreaterThan(0)
    const stream = await served.post('/v1/completions', { ...ASK, stream: true })
    expect(stream.headers.get('Server-Timing')).toMatch(/^load;dur=[\d.]+, first;dur=[\d.]+$/)
    await stream.text()
  })
})

describe('GET /v1/experts', () => {
  test('loads nothing', async () => {
    const served = await app()
    expect(await held(served)).toEqual({ state: 'cold', shares: [], capacity: 0, resident: 0, layers: [] })
    expect(await held(served)).toMatchObject({ state: 'cold' })
  })

  test('shows what is in memory, and how often it was used', async () => {
    const served = await app()
    await usageIn(served, {})
    const { state, capacity, resident, layers } = await held(served)
    expect({ state, capacity, resident }).toEqual({
      state: 'ready',
      capacity: LAYERS * EXPERTS,
      resident: layers.flatMap((layer) => layer.resident).reduce((a, b) => a + b),
    })
    expect(resident).toBeLessThan(capacity)
    expect(layers).toHaveLength(LAYERS)
    for (const { resident, frequency } of layers) {
      expect(resident).toHaveLength(EXPERTS)
      // One token routed one expert, in the only step so far.
      const used = frequency.findIndex((rate) => rate > 0)
      expect(frequency[used]).toBeGreaterThan(0.99)
      expect(frequency.filter((rate) => rate > 0)).toHaveLength(1)
      expect(resident[used]).toBe(1)
    }
  })

  test('names the shares that may be asked for', async () => {
    const offsets = { '1': [9, 9, 9], '0.5': [0, 0, 0], '0.25': [-1, -1, -1] }
    const served = await tinyApp({ pack: { gate: { ...GATES.clamped, offsets } } })
    await served.post('/v1/completions', ASK)
    expect((await held(served)).shares).toEqual([0.25, 0.5, 1])
  })

  test('knows models by name', async () => {
    const { app: served } = await app()
    expect((await served.request('/v1/experts?model=tiny')).status).toBe(200)
    const response = await served.request('/v1/experts?model=x')
    expect(await refusal(response)).toEqual({ status: 404, code: 'model_not_found', param: 'model' })
  })

  test('of a backend that holds all of them says so', async () => {
    const served = await tinyApp()
    await served.post('/v1/completions', ASK)
    const { capacity, resident, layers } = await held(served)
    expect(resident).toBe(capacity)
    expect(layers.flatMap((layer) => layer.resident)).toEqual(Array(capacity).fill(1))
  })
})

describe('POST /v1/experts/prewarm', () => {
  test('loads the model and its experts', async () => {
    const served = await app()
    const response = await served.post('/v1/experts/prewarm', {})
    const all = LAYERS * EXPERTS
    expect(await response.json()).toEqual({
      object: 'experts.prewarm',
      model: 'tiny',
      loaded: all,
      bytes: expect.any(Number),
      requests: expect.any(Number),
      capacity: all,
      resident: all,
    })
    expect((await usageIn(served, {})).experts).toMatchObject({ misses: 0, tiers: {} })
    expect(await (await served.post('/v1/experts/prewarm', {})).json()).toMatchObject({ loaded: 0, bytes: 0 })
  })

  test('stops at a limit', async () => {
    const served = await app()
    const warm = async (limits: object) => (await served.post('/v1/experts/prewarm', limits)).json()
    expect(await warm({ max_bytes: 0 })).toMatchObject({ loaded: 0, bytes: 0, resident: 0 })
    expect(await warm({ max_fetches: 1 })).toMatchObject({ requests: 1, resident: EXPERTS })
  })

  test('stops at the server’s limit too', async () => {
    const served = await app({ limits: { expertFetches: 1, warmUpBytes: 0 } })
    const response = await served.post('/v1/experts/prewarm', { max_fetches: LAYERS })
    expect(await response.json()).toMatchObject({ requests: 1, resident: EXPERTS })
  })

  test.each([
    ['max_bytes', { max_bytes: -1 }],
    ['max_fetches', { max_fetches: 'all' }],
    ['model', { model: 7 }],
  ])('%s that is malformed is refused', async (param, body) => {
    const { post } = await app()
    expect(await refusal(await post('/v1/experts/prewarm', body))).toEqual({
      status: 400,
      code: 'invalid_request',
      param,
    })
  })

  test('tells a failure of the store', async () => {
    const { post } = await app({ store: failing('shard_missing') })
    const response = await post('/v1/experts/prewarm', {})
    expect(await refusal(response)).toEqual({ status: 500, code: 'shard_missing', param: null })
  })
})

describe('after the first answer', () => {
  test('the rest is fetched, up to a bound', async () => {
    const served = await app({ limits: { warmUpBytes: 48 << 20 } })
    await usageIn(served, {})
    await expect.poll(async () => (await held(served)).resident).toBe(LAYERS * EXPERTS)
    const { expert_bytes = 0 } = await held(served)
    const bounded = await app({ limits: { warmUpBytes: EXPERTS * expert_bytes } })
    await usageIn(bounded, {})
    await expect.poll(async () => (await held(bounded)).resident).toBeGreaterThan(EXPERTS)
    expect((await held(bounded)).resident).toBeLessThan(LAYERS * EXPERTS)
  })

  test('a stream too', async () => {
    const served = await app({ limits: { warmUpBytes: 48 << 20 } })
    await (await served.post('/v1/completions', { ...ASK, stream: true })).text()
    await expect.poll(async () => (await held(served)).resident).toBe(LAYERS * EXPERTS)
  })
})

/** A store whose bundles cannot be had: a warm-up asks for them, one token does not. */
function failing(code: 'shard_missing') {
  return (store: ShardStore): ShardStore => ({
    manifest: (...args) => store.manifest(...args),
    async read(hash, into, signal) {
      if (into.length === EXPERTS) throw new SparsedgeError(code, 'gone')
      return store.read(hash, into, signal)
    },
  })
}
