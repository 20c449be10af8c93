import { describe, expect, test } from 'vitest'
import { tinyTokenizer } from '../../../test/fixtures/tiny-tokenizer.ts'
import { answerOf, chunksOf, tinyApp } from '../testing.ts'

const PATH = '/v1/completions'
const HELLO = tinyTokenizer().model.vocab.hello
const SAY_HELLO = { temperature: 0, logit_bias: { [HELLO]: 100 } }

describe('an answer', () => {
  test('has the form that OpenAI gives it, and 16 tokens where nothing is said', async () => {
    const { post } = await tinyApp()
    const response = await post(PATH, { prompt: 'hello', ...SAY_HELLO })
    expect(response.status).toBe(200)
    expect(await response.json()).toMatchObject({
      id: expect.stringMatching(/^cmpl-[0-9a-f]{32}$/),
      object: 'text_completion',
      created: expect.any(Number),
      model: 'tiny',
      choices: [{ index: 0, text: 'hello'.repeat(16), logprobs: null, finish_reason: 'length' }],
      usage: { completion_tokens: 16 },
    })
  })

  test('continues token ids as it continues their text', async () => {
    const { post } = await tinyApp()
    const complete = async (prompt: unknown) =>
      (await answerOf(await post(PATH, { prompt, temperature: 0, max_tokens: 8 }))).text
    const text = await complete('hello')
    expect(await complete([[HELLO]])).toBe(text)
    expect(await complete([HELLO])).toBe(text)
  })

  test('to several prompts has one choice each, in their order, and one bill', async () => {
    const { post } = await tinyApp()
    const ask = async (prompt: unknown) =>
      answerOf(await post(PATH, { prompt, temperature: 0, max_tokens: 5 }))
    const prompts = ['hello', ' world', 'a']
    const together = await ask(prompts)
    const alone = await Promise.all(prompts.map(ask))
    expect(together.choices).toEqual(alone.map(({ choices }, index) => ({ ...choices[0], index })))
    const sum = (field: 'prompt_tokens' | 'completion_tokens') =>
      alone.reduce((total, { usage }) => total + usage[field], 0)
    expect(together.usage.prompt_tokens).toBe(sum('prompt_tokens'))
    expect(together.usage.completion_tokens).toBe(sum('completion_tokens'))
  })
})

test('a stream tells which choice each chunk belongs to', async () => {
  const { post } = await tinyApp()
  const stream_options = { include_usage: true }
  const body = { prompt: ['hello', ' world'], max_tokens: 3, ...SAY_HELLO, stream: true, stream_options }
  const chunks = await chunksOf(await post(PATH, body))
  expect(chunks.pop()).toMatchObject({ choices: [], usage: { completion_tokens: 6 } })
  const texts = ['', '']
  const ends: string[] = []
  for (const { object, choices } of chunks) {
    expect(object).toBe('text_completion')
    texts[choices[0].index] += choices[0].text
    if (choices[0].finish_reason) ends.push(`${choices[0].index} ${choices[0].finish_reason}`)
  }
  expect(texts).toEqual(['hellohellohello', 'hellohellohello'])
  expect(ends).toEqual(['0 length', '1 length'])
})

describe('what is refused', () => {
  test.each<[string, unknown]>([
    ['more prompts than the limit', Array.from({ length: 17 }, () => 'a')],
    ['a token that the model does not have', [HELLO, 279]],
  ])('%s', async (_, prompt) => {
    const { post, watch } = await tinyApp()
    const response = await post(PATH, { prompt })
    expect(response.status).toBe(400)
    expect(await response.json()).toMatchObject({ error: { code: 'invalid_request', param: 'prompt' } })
    expect(watch.steps).toBe(0)
  })

  test('one prompt of several that is too long, before any is answered', async () => {
    const { post, watch } = await tinyApp({ limits: { promptTokens: 10 } })
    const response = await post(PATH, { prompt: ['hello', 'x'.repeat(100)] })
    expect(response.status).toBe(400)
    expect(await response.json()).toMatchObject({ error: { code: 'prompt_too_long', param: 'prompt' } })
    expect(watch.steps).toBe(0)
  })
})
