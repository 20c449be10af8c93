import { ChatTemplate } from '@sparsedge/engine/text/chat-template'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { tinyTokenizer } from '../../../test/fixtures/tiny-tokenizer.ts'
import { answerOf, chunksOf, NEVER_ENDS, streamedText, tinyApp } from '../testing.ts'

const PATH = '/v1/chat/completions'
const messages = [{ role: 'user', content: 'hello world' }]
const HELLO = tinyTokenizer().model.vocab.hello
/** Makes the model say "hello" and nothing else. */
const SAY_HELLO = { temperature: 0, logit_bias: { [HELLO]: 100 } }

const USAGE = {
  prompt_tokens: expect.any(Number),
  completion_tokens: 4,
  total_tokens: expect.any(Number),
  experts: {
    activated: expect.any(Number),
    active_share: expect.any(Number),
    fidelity: 1,
    hits: expect.any(Number),
    misses: expect.any(Number),
    prefetched: expect.any(Number),
    prefetched_used: expect.any(Number),
    wait_ms: expect.any(Number),
    tiers: expect.any(Object),
  },
}
const TIMINGS = {
  prefill_ms: expect.any(Number),
  decode_ms: expect.any(Number),
  tokens_per_second: expect.any(Number),
}

describe('an answer', () => {
  test('has the form that OpenAI gives it', async () => {
    const { post } = await tinyApp()
    const response = await post(PATH, { messages, max_tokens: 4, ...SAY_HELLO })
    expect(response.status).toBe(200)
    expect(await response.json()).toEqual({
      id: expect.stringMatching(/^chatcmpl-[0-9a-f]{32}$/),
      object: 'chat.completion',
      created: expect.any(Number),
      model: 'tiny',
      choices: [
        {
          index: 0,
          message: { role: 'assistant', content: 'hellohellohellohello', refusal: null },
          logprobs: null,
          finish_reason: 'length',
        },
      ],
      usage: USAGE,
      timings: TIMINGS,
    })
  })

  test('counts what it cost', async () => {
    const { post } = await tinyApp()
    const { usage } = await answerOf(await post(PATH, { messages, max_tokens: 4, ...SAY_HELLO }))
    expect(usage.total_tokens).toBe(usage.prompt_tokens + 4)
    const { activated, active_share, misses, hits, tiers } = usage.experts
    expect(activated).toBeGreaterThan(0)
    expect(active_share).toBeGreaterThan(0)
    expect(active_share).toBeLessThanOrEqual(1)
    expect(hits + misses).toBeGreaterThan(0)
    expect(typeof tiers).toBe('object')
  })

  test('is the same for the same seed, another for another', async () => {
    const { post } = await tinyApp()
    const say = async (seed: number) =>
      (await answerOf(await post(PATH, { messages, max_tokens: 24, seed, ...NEVER_ENDS }))).text
    expect(await say(1)).toBe(await say(1))
    expect(await say(1)).not.toBe(await say(2))
  })

  test('ends with the model, at the limit of the request or at that of the server', async () => {
    const { post } = await tinyApp({ limits: { completionTokens: 3 } })
    const ask = async (more: object) => {
      const { finishReason, usage } = await answerOf(await post(PATH, { messages, ...more }))
      return [finishReason, usage.completion_tokens]
    }
    expect(await ask({ ...SAY_HELLO, max_tokens: 2 })).toEqual(['length', 2])
    expect(await ask({ ...SAY_HELLO, max_completion_tokens: 1, max_tokens: 2 })).toEqual(['length', 1])
    expect(await ask(SAY_HELLO)).toEqual(['length', 3])
    expect(await ask({ ...SAY_HELLO, max_tokens: 1_000_000 })).toEqual(['length', 3])
    const [reason] = await ask({ temperature: 0, logit_bias: { 2: 100 } })
    expect(reason).toBe('stop')
  })

  test.each<[string | string[], string]>([
    ['llohe', 'he'],
    ['hellohello', ''],
    [['xyz', 'oh'], 'hell'],
    ['never', 'hellohellohellohello'],
  ])('stops before %j', async (stop, content) => {
    const { post } = await tinyApp()
    for (const stream of [false, true]) {
      const response = await post(PATH, { messages, max_tokens: 4, ...SAY_HELLO, stop, stream })
      expect(stream ? await streamedText(response) : (await answerOf(response)).text).toBe(content)
    }
  })
})

describe('a stream', () => {
  test('opens with the role, carries the text, ends with the reason and [DONE]', async () => {
    const { post } = await tinyApp()
    const response = await post(PATH, { messages, max_tokens: 4, ...SAY_HELLO, stream: true })
    expect(response.headers.get('Content-Type')).toContain('text/event-stream')
    expect(response.headers.get('Cache-Control')).toContain('no-cache')
    const chunks = await chunksOf(response)
    const head = {
      id: expect.stringMatching(/^chatcmpl-/),
      created: expect.any(Number),
      model: 'tiny',
      object: 'chat.completion.chunk',
    }
    const chunk = (delta: object, finish_reason: string | null = null) => ({
      ...head,
      choices: [{ index: 0, delta, logprobs: null, finish_reason }],
    })
    expect(chunks[0]).toEqual(chunk({ role: 'assistant', content: '' }))
    expect(chunks.at(-1)).toEqual(chunk({}, 'length'))
    for (const piece of chunks.slice(1, -1)) expect(piece).toEqual(chunk({ content: expect.any(String) }))
    expect(new Set(chunks.map(({ id }) => id)).size).toBe(1)
    const text = chunks.map(({ choices }) => choices[0].delta?.content ?? '').join('')
    expect(text).toBe('hellohellohellohello')
  })

  test('says the same as the whole answer', async () => {
    const { post } = await tinyApp()
    const request = { messages, max_tokens: 40, seed: 7, ...NEVER_ENDS }
    const whole = await answerOf(await post(PATH, request))
    expect(await streamedText(await post(PATH, { ...request, stream: true }))).toBe(whole.text)
  })

  test('ends with the usage where it is asked for', async () => {
    const { post } = await tinyApp()
    const stream_options = { include_usage: true }
    const request = { messages, max_tokens: 4, ...SAY_HELLO, stream: true, stream_options }
    const chunks = await chunksOf(await post(PATH, request))
    expect(chunks.pop()).toMatchObject({ choices: [], usage: USAGE, timings: TIMINGS })
    for (const chunk of chunks) expect(chunk.usage).toBeNull()
  })

  test('that cannot begin is an error with its status', async () => {
    const { post } = await tinyApp({ limits: { promptTokens: 5 } })
    const response = await post(PATH, { messages, stream: true })
    expect(response.status).toBe(400)
    expect(await response.json()).toMatchObject({
      error: { code: 'prompt_too_long', type: 'invalid_request_error', param: 'messages' },
    })
  })
})

test('a prompt is rendered and tokenised once', async () => {
  const encode = vi.spyOn(ChatTemplate.prototype, 'encode')
  onTestFinished(() => encode.mockRestore())
  const { post } = await tinyApp()
  expect((await post(PATH, { messages, max_tokens: 1 })).status).toBe(200)
  expect(encode).toHaveBeenCalledTimes(1)
})

describe('limits', () => {
  test('a prompt that is longer than the context is refused, whatever the server allows', async () => {
    const { post, watch } = await tinyApp({ limits: { promptTokens: 1_000_000 } })
    const content = 'x'.repeat(1000)
    const response = await post(PATH, { messages: [{ role: 'user', content }] })
    expect(response.status).toBe(400)
    expect(await response.json()).toMatchObject({ error: { code: 'prompt_too_long', param: 'messages' } })
    expect(watch).toMatchObject({ steps: 0, open: 0 })
  })

  test('an answer that does not fit behind its prompt ends with the context', async () => {
    const { post } = await tinyApp({ pack: { context: 64 } })
    const response = await post(PATH, { messages, max_tokens: 1000, ...SAY_HELLO })
    const { usage, finishReason } = await answerOf(response)
    expect(finishReason).toBe('length')
    expect(usage.total_tokens).toBeLessThanOrEqual(64)
    expect(usage.total_tokens).toBeGreaterThanOrEqual(63)
  })

  test.each([['logit_bias', { logit_bias: { 279: 1 } }]])(
    '%s beyond the vocabulary is refused',
    async (param, fields) => {
      const { post } = await tinyApp()
      const response = await post(PATH, { messages, ...fields })
      expect(response.status).toBe(400)
      expect(await response.json()).toMatchObject({ error: { code: 'invalid_request', param } })
    },
  )
})

describe('many requests', () => {
  test('at once give what each gives alone', async () => {
    const { post, watch } = await tinyApp()
    const ask = async (seed: number) =>
      (await answerOf(await post(PATH, { messages, max_tokens: 12, seed, ...NEVER_ENDS }))).text
    const alone: unknown[] = []
    for (const seed of [1, 2, 3]) alone.push(await ask(seed))
    expect(await Promise.all([1, 2, 3].map(ask))).toEqual(alone)
    expect(watch.open).toBe(0)
  })

  test('beyond the queue are told to come back', async () => {
    const { post } = await tinyApp({ holdFrom: 1, queue: 1 })
    const gone = new AbortController()
    const waiting = [1, 2, 3, 4].map(() => post(PATH, { messages }, { signal: gone.signal }))
    const first = await Promise.race(waiting)
    expect(first.status).toBe(429)
    expect(first.headers.get('Retry-After')).toMatch(/^\d+$/)
    expect(await first.json()).toMatchObject({ error: { code: 'queue_full', type: 'rate_limit_error' } })
    gone.abort()
    await Promise.all(waiting)
  })
})
