import { describe, expect, it } from 'vitest'
import {
  IM_END,
  IM_START,
  TINY_CHAT_TEMPLATE,
  TINY_VOCAB,
  tinyTokenizer,
} from '../../../test/fixtures/tiny-tokenizer.ts'
import type { Prompt } from '../request.ts'
import { ChatTemplate } from './chat-template.ts'
import { encodePrompt } from './prompt.ts'
import { createTokenizer } from './tokenizer.ts'

const tokenizerWith = (settings: object) =>
  createTokenizer(new TextEncoder().encode(JSON.stringify({ ...tinyTokenizer(), ...settings })), TINY_VOCAB)
const tokenizer = tokenizerWith({})
const template = new ChatTemplate(TINY_CHAT_TEMPLATE, tokenizer, { eosTokens: [IM_END] })
const encode = (prompt: Prompt, context = 64) =>
  encodePrompt({ tokenizer, template }, prompt, TINY_VOCAB, context)

describe('encodePrompt', () => {
  it('reads control tokens in a text, and none in a message', () => {
    const content = '<|im_end|>'
    expect(encode({ text: content })).toEqual([IM_END])
    const plain = encode({ messages: [{ role: 'system', content: 'x' }] })
    const ids = encode({ messages: [{ role: 'system', content }] })
    expect(ids.filter((id) => id === IM_END)).toEqual(plain.filter((id) => id === IM_END))
  })

  it('takes ids as they are', () => {
    expect(encode({ tokens: [IM_START, 5, 278] })).toEqual([IM_START, 5, 278])
  })

  it('begins a text, and only a text, as the tokenizer says', () => {
    const single = [
      { SpecialToken: { id: '<|im_start|>', type_id: 0 } },
      { Sequence: { id: 'A', type_id: 0 } },
    ]
    const begins = tokenizerWith({
      post_processor: { type: 'TemplateProcessing', single, pair: [], special_tokens: {} },
    })
    const text = { tokenizer: begins, template }
    expect(encodePrompt(text, { text: 'a' }, TINY_VOCAB, 64)).toEqual([IM_START, ...tokenizer.encode('a')])
    expect(encodePrompt(text, { tokens: [5] }, TINY_VOCAB, 64)).toEqual([5])
    expect(encodePrompt(text, { messages: [] }, TINY_VOCAB, 64)).toEqual(encode({ messages: [] }))
  })

  it('replaces halves of surrogate pairs', () => {
    expect(encode({ text: 'a\ud800b\udc00' })).toEqual(encode({ text: 'a\ufffdb\ufffd' }))
  })

  it.each<[string, Prompt]>([
    ['an empty text', { text: '' }],
    ['no tokens', { tokens: [] }],
    ['an id that is too high', { tokens: [1, TINY_VOCAB] }],
    ['a negative id', { tokens: [-1] }],
    ['half an id', { tokens: [0.5] }],
  ])('refuses %s', (_, prompt) => {
    expect(() => encode(prompt)).toThrow(expect.objectContaining({ code: 'invalid_request' }))
  })

  it('refuses messages where there is no template', () => {
    const prompt = { messages: [{ role: 'user', content: 'hi' }] } as const
    expect(() => encodePrompt({ tokenizer, template: undefined }, prompt, TINY_VOCAB, 64)).toThrow(
      expect.objectContaining({ code: 'invalid_request' }),
    )
  })

  it.each<[string, (length: number) => Prompt]>([
    ['text', (length) => ({ text: '!'.repeat(length) })],
    ['tokens', (length) => ({ tokens: Array(length).fill(7) })],
  ])('leaves room for one token after %s', (_, prompt) => {
    expect(encode(prompt(63))).toHaveLength(63)
    expect(() => encode(prompt(64))).toThrow(expect.objectContaining({ code: 'prompt_too_long' }))
    expect(() => encode(prompt(64))).toThrow(/has 64 tokens.*up to 64/)
  })

  it('does not even encode what cannot fit', () => {
    // Two hundred megabytes would take minutes, and more memory than there is.
    const content = 'x'.repeat(200_000_000)
    for (const prompt of [{ text: content }, { messages: [{ role: 'user', content }] }] as const) {
      expect(() => encode(prompt)).toThrow(/at least/)
    }
  })
})
