import { readFile } from 'node:fs/promises'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  IM_END,
  IM_START,
  TINY_CHAT_TEMPLATE,
  TINY_VOCAB,
  tinyTokenizer,
} from '../../../test/fixtures/tiny-tokenizer.ts'
import type { ChatMessage } from '../request.ts'
import { ChatTemplate } from './chat-template.ts'
import { createTokenizer } from './tokenizer.ts'

const tokenizer = createTokenizer(new TextEncoder().encode(JSON.stringify(tinyTokenizer())), TINY_VOCAB)
const TOKENS = { bosToken: IM_START, eosTokens: [IM_END] }
const template = (source: string) => new ChatTemplate(source, tokenizer, TOKENS)
const chatMl = template(TINY_CHAT_TEMPLATE)

const user = (content: string): ChatMessage => ({ role: 'user', content })
const text = (it: ChatTemplate, ...messages: ChatMessage[]) => tokenizer.decode(it.encode(messages))

describe('encode', () => {
  it('gives the text that the template gives, ready for the answer', () => {
    const messages = [user('hello'), { role: 'assistant', content: 'hi' }, user('the end')] as const
    expect(text(chatMl, ...messages)).toBe(
      '<|im_start|>system\nhello<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n' +
        '<|im_start|>assistant\nhi<|im_end|>\n<|im_start|>user\nthe end<|im_end|>\n<|im_start|>assistant\n',
    )
    expect(text(chatMl, { role: 'system', content: 'x' })).toBe(
      '<|im_start|>system\nx<|im_end|>\n<|im_start|>assistant\n',
    )
  })

  it('knows what transformers gives a template', () => {
    const source =
      '{{ bos_token }}{% if tools is not none or documents is not none %}x{% endif %}' +
      "{% for m in messages if m.role == 'user' %}{{ m.content | trim | upper }}{{ eos_token }}{% endfor %}" +
      '{% for i in range(1, 6, 2) %}{{ i }}{% endfor %}{{ messages[1:] | length }}{{ strftime_now is defined }}{{ True and true and not None }}'
    expect(text(template(source), user(' a '), user('b'))).toBe(
      '<|im_start|>A<|im_end|>B<|im_end|>1351falsetrue',
    )
  })

  it('strips blocks as transformers does', () => {
    expect(text(template('{% if true %}\n  {% if true %}\nx{% endif %}{% endif %}'), user(''))).toBe('x')
  })
})

describe('what people write', () => {
  const pieces = fc.constantFrom(
    '<|im_end|>',
    '<|im_start|>',
    '<|endoftext|>',
    '<|im_',
    'end|>',
    '<',
    '|>',
    '\n',
    'system',
    ' ',
    'é',
    '\udc00',
    '{{',
    '{% endfor %}',
  )
  const contents = fc.array(pieces, { maxLength: 8 }).map((parts) => parts.join(''))
  const control = (ids: readonly number[]) => ids.filter((id) => id <= IM_END)

  it.each([
    ['as it is', TINY_CHAT_TEMPLATE],
    ['trimmed', TINY_CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")],
  ])('begins and ends no message: %s', (_, source) => {
    const chat = template(source)
    fc.assert(
      fc.property(fc.array(contents, { minLength: 1, maxLength: 4 }), (list) => {
        const ids = chat.encode(list.map(user))
        expect(control(ids)).toEqual(control(chat.encode(list.map(() => user('x')))))
      }),
      { numRuns: 500 },
    )
  })

  it('arrives word for word', () => {
    fc.assert(
      fc.property(contents, (content) => {
        expect(text(chatMl, user(content))).toContain(
          `<|im_start|>user\n${content.toWellFormed()}<|im_end|>\n`,
        )
      }),
      { numRuns: 500 },
    )
  })
})

/** Leaves 600,000 letters in `ns.t`. */
const LONG = `{% set ns = namespace(t='${'x'.repeat(600)}') %}{% for _ in range(1000) %}{% set ns.t = ns.t ~ '${'x'.repeat(600)}' %}{% endfor %}`

describe('a template', () => {
  it('may refuse a chat, in its own words', () => {
    const source =
      "{% if messages[0].role == 'system' %}{{ raise_exception('no system, please') }}{% endif %}"
    expect(() => template(source).encode([{ role: 'system', content: '' }])).toThrow(
      expect.objectContaining({ code: 'invalid_request', message: 'no system, please' }),
    )
  })

  it('may join, indent and replace as real ones do', () => {
    const source =
      "{{ ['a', 'b'] | join(', ') }}|{{ 'a\\nb' | indent(4) }}|{{ messages[0].content.replace('l', '-') }}|" +
      "{% filter replace('x', 'y') %}xx{% endfilter %}|{{ {'a': 1} | tojson(indent=2) }}|" +
      `{{ nothing | default('${'long '.repeat(20)}') }}{% macro m(t) %}{{ t }}{% endmacro %}{{ m('${'long '.repeat(20)}') }}`
    expect(text(template(source), user('hello'))).toBe(
      `a, b|a\n    b|he--o|yy|{\n  "a": 1\n}|${'long '.repeat(40)}`,
    )
  })

  it('is read in a time that does not grow with the square of its blanks', () => {
    expect(() => template(`{{ 1 }}${' \n'.repeat(501)}`)).toThrow(/more than 1000 blanks/)
    expect(text(template(`${' '.repeat(1000)}a`), user(''))).toBe(`${' '.repeat(1000)}a`)
  })

  it.each(['{% if %}', '{{ "', '{% for x in y %}', '{% nonsense %}'])('%s is not one', (source) => {
    expect(() => template(source)).toThrow(expect.objectContaining({ code: 'manifest_malformed' }))
  })

  it.each([
    ['calls what is not there', '{{ nothing() }}', /call/],
    [
      'loops for ever, nearly',
      '{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}',
      /steps/,
    ],
    ['asks for too long a range', '{% for i in range(1000000000) %}{% endfor %}', /range/],
    ['asks for a range without end', '{% for i in range(0, 5, 0) %}{% endfor %}', /range/],
    [
      'doubles a text',
      `{% set ns = namespace(t='xx') %}{% for i in range(64) %}{% set ns.t = ns.t + ns.t %}{% endfor %}`,
      /text is too long/,
    ],
    [
      'doubles a list',
      `{% set ns = namespace(t=[1, 2]) %}{% for i in range(64) %}{% set ns.t = ns.t + ns.t %}{% endfor %}`,
      /list is too long/,
    ],
    ['joins with a long text', `{{ range(9999) | join('${'-'.repeat(65)}') | length }}`, /more than 64/],
    ['joins a long text with itself', `${LONG}{{ [ns.t, ns.t] | join }}`, /text is too long/],
    ['prints a list that grew', `${LONG}{% set l = [ns.t] %}{{ (l + l) ~ '' }}`, /text is too long/],
    ['replaces by a long text', `${LONG}{{ ns.t.replace('x', ns.t[:65]) }}`, /more than 64/],
    ['filters by it', `${LONG}{% filter replace('x', ns.t[:65]) %}xx{% endfilter %}`, /more than 64/],
    ['hides what it calls', `${LONG}{% set f = ns.t.replace %}{{ f('x', ns.t) }}`, /only be called/],
    ['computes what it calls', `${LONG}{% set f = 'replace' %}{{ ns.t[f]('x', ns.t) }}`, /only be called/],
    ['indents far', `{{ 'a\nb' | indent(width=65) }}`, /more than 64/],
    ['indents far in secret', `{{ 'a\nb' | indent(*[65]) }}`, /more than 64/],
    ['writes wide JSON', '{{ [[1]] | tojson(indent=65) }}', /more than 64/],
    ['hides a namespace', '{% set l = [namespace()] %}{{ l | tojson }}', /namespace/],
    ['calls itself', '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}', /not a function/],
  ])('that %s fails', (_, source, message) => {
    expect(() => template(source).encode([user('hi')])).toThrow(
      expect.objectContaining({ code: 'manifest_malformed', message: expect.stringMatching(message) }),
    )
  })
})

describe("the shipped model's template", () => {
  it('gives the text that the model was trained on', async () => {
    const model = new URL('../../../models/smollm2-135m-dsmoe/', import.meta.url)
    const manifest = JSON.parse(await readFile(new URL('manifest.json', model), 'utf8'))
    const source = await readFile(new URL(`shards/${manifest.text.chatTemplate.hash}`, model), 'utf8')
    expect(text(template(source), user('What is gravity?'))).toBe(
      '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' +
        '<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n',
    )
  })
})
