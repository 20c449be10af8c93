import { Tokenizer as Library } from '@huggingface/tokenizers'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { IM_END, IM_START, TINY_VOCAB, tinyTokenizer } from '../../../test/fixtures/tiny-tokenizer.ts'
import { createTokenizer } from './tokenizer.ts'

const bytesOf = (json: unknown) => new TextEncoder().encode(JSON.stringify(json))
const tiny = tinyTokenizer()

/** As TinyLlama has it: SentencePiece's BPE with bytes for what it does not know. Words are listed by id. */
const SENTENCE_PIECE_WORDS = [
  '<unk>',
  '<s>',
  '</s>',
  ...Array.from({ length: 256 }, (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`),
]
const LETTERS = ['▁', 'a', 'b', 'h', 'i', '▁a', '▁h', '▁hi', 'ab', '\n']
const sentencePiece = {
  added_tokens: [
    { id: 0, content: '<unk>', special: true },
    { id: 1, content: '<s>', special: true },
    { id: 2, content: '</s>', special: true },
  ],
  normalizer: {
    type: 'Sequence',
    normalizers: [
      { type: 'Prepend', prepend: '▁' },
      { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
    ],
  },
  pre_tokenizer: null,
  post_processor: {
    type: 'TemplateProcessing',
    single: [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
    pair: [],
    special_tokens: { '<s>': { id: '<s>', ids: [1], tokens: ['<s>'] } },
  },
  decoder: {
    type: 'Sequence',
    decoders: [
      { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
      { type: 'ByteFallback' },
      { type: 'Fuse' },
      { type: 'Strip', content: ' ', start: 1, stop: 0 },
    ],
  },
  model: {
    type: 'BPE',
    unk_token: '<unk>',
    byte_fallback: true,
    fuse_unk: true,
    vocab: Object.fromEntries([...SENTENCE_PIECE_WORDS, ...LETTERS].map((word, id) => [word, id])),
    merges: ['▁ a', '▁ h', '▁h i', 'a b'],
  },
}
const SENTENCE_PIECE_VOCAB = SENTENCE_PIECE_WORDS.length + LETTERS.length

const KINDS = [
  { name: 'compact', json: tiny, vocab: TINY_VOCAB },
  { name: 'library', json: sentencePiece, vocab: SENTENCE_PIECE_VOCAB },
] as const

/** Words, digits, control tokens and halves of them, and characters of two to four bytes. */
const texts = fc
  .array(
    fc.oneof(
      fc.constantFrom(
        ' the',
        'hello',
        ' world',
        ' a hi',
        '  ',
        '12',
        '<|im_end|>',
        '<|im_',
        'end|>',
        '<s>',
        '</s>',
        'é',
        '😀',
        '日',
        '\n',
      ),
      fc.string({ unit: 'grapheme', maxLength: 4 }),
    ),
    { maxLength: 10 },
  )
  .map((parts) => parts.join(''))
  // Where JavaScript's own classes are not Unicode's, the library is not the reference (test/parity is).
  .filter((text) => !/[\u0085\ufeff]|(?!\d)\p{N}/u.test(text))

describe.each(KINDS)('$name', ({ name, json, vocab }) => {
  const tokenizer = createTokenizer(bytesOf(json), vocab)
  const library = new Library(json, {})
  const reference = (text: string) => library.encode(text, { add_special_tokens: false }).ids

  it('is the kind that it should be', () => {
    expect(tokenizer.kind).toBe(name)
  })

  it('gives the ids that the library gives', () => {
    fc.assert(
      fc.property(texts, (text) => {
        expect(tokenizer.encode(text)).toEqual(reference(text))
      }),
      { numRuns: 500 },
    )
  })

  it('gives the text that the library gives, at once and in pieces', () => {
    fc.assert(
      fc.property(texts, (text) => {
        const ids = tokenizer.encode(text.replaceAll(/<[^>]*>/g, ''))
        const expected = ids.length === 0 ? '' : library.decode(ids, { clean_up_tokenization_spaces: false })
        expect(tokenizer.decode(ids)).toBe(expected)
        const detokenizer = tokenizer.detokenizer(false)
        expect(ids.map((id) => detokenizer.push(id)).join('') + detokenizer.end()).toBe(expected)
      }),
      { numRuns: 500 },
    )
  })

  it('takes no control token that begins in protected text, wherever that stands', () => {
    const control = new Set(json.added_tokens.map(({ id }) => id))
    const alone = (text: string) => tokenizer.encode(text).filter((id) => control.has(id)).length
    fc.assert(
      fc.property(texts, texts, texts, (before, text, after) => {
        const around = `${before}\n${tokenizer.protect(text)}${after}`
        expect(alone(around)).toBe(alone(before) + alone(after))
      }),
      { numRuns: 500 },
    )
  })

  it('reads protected text as if there were no control tokens', () => {
    const without = createTokenizer(bytesOf({ ...json, added_tokens: [], post_processor: null }), vocab)
    fc.assert(
      fc.property(texts, (text) => {
        expect(tokenizer.encode(tokenizer.protect(text))).toEqual(without.encode(text))
      }),
      { numRuns: 500 },
    )
  })

  it('never needs fewer tokens than it says', () => {
    fc.assert(fc.property(texts, (text) => tokenizer.encode(text).length >= tokenizer.fewest(text.length)))
  })
})

describe('control tokens', () => {
  const tokenizer = createTokenizer(bytesOf(tiny), TINY_VOCAB)
  const [h, i] = tokenizer.encode('hi')

  it('are read from text, and show only where they are asked for', () => {
    const ids = [IM_START, h, i, IM_END]
    expect(tokenizer.encode('<|im_start|>hi<|im_end|>')).toEqual(ids)
    expect(tokenizer.decode(ids)).toBe('<|im_start|>hi<|im_end|>')
    const detokenizer = tokenizer.detokenizer(false)
    expect(ids.map((id) => detokenizer.push(id)).join('') + detokenizer.end()).toBe('hi')
  })

  it('are never made from ordinary text, even if the vocabulary would', () => {
    // The whole word is in the vocabulary, and taken before any merge.
    const trap = {
      ...tiny,
      added_tokens: [...tiny.added_tokens, { id: TINY_VOCAB, content: 'hi', special: true }],
      model: { ...tiny.model, ignore_merges: true, vocab: { ...tiny.model.vocab, hi: TINY_VOCAB } },
    }
    const trapped = createTokenizer(bytesOf(trap), TINY_VOCAB + 1)
    expect(trapped.encode('hi')).toEqual([TINY_VOCAB])
    expect(() => trapped.encode(trapped.protect('hi'))).toThrow(
      expect.objectContaining({ code: 'invalid_request' }),
    )
  })

  it('of the others, those that are not control show in generated text', () => {
    const json = { ...tiny, added_tokens: [...tiny.added_tokens, { id: TINY_VOCAB, content: '<think>' }] }
    const detokenizer = createTokenizer(bytesOf(json), TINY_VOCAB + 1).detokenizer(false)
    expect([h, TINY_VOCAB, i].map((id) => detokenizer.push(id))).toEqual(['h', '<think>', 'i'])
  })
})

describe('the beginning of a sequence', () => {
  const template = (single: unknown[]) => ({
    type: 'TemplateProcessing',
    single,
    pair: [],
    special_tokens: {},
  })
  const text = { Sequence: { id: 'A', type_id: 0 } }
  const special = (id: string) => ({ SpecialToken: { id, type_id: 0 } })

  it.each([
    ['nothing', null, []],
    ['nothing but bytes', { type: 'ByteLevel', trim_offsets: true }, []],
    ['a token', template([special('<|im_start|>'), text]), [IM_START]],
    [
      'a token before, not the one after',
      template([special('<|im_start|>'), text, special('<|im_end|>')]),
      [IM_START],
    ],
    [
      'a token in a sequence',
      { type: 'Sequence', processors: [{ type: 'ByteLevel' }, template([special('<|im_end|>'), text])] },
      [IM_END],
    ],
  ])('is %s', (_, post_processor, expected) => {
    expect(createTokenizer(bytesOf({ ...tiny, post_processor }), TINY_VOCAB).beginning).toEqual(expected)
  })
})

describe('a tokenizer.json that is not one', () => {
  const word = (id: number) => ({ ...tiny, model: { ...tiny.model, vocab: { ...tiny.model.vocab, zz: id } } })
  const added = (...added_tokens: unknown[]) => ({ ...tiny, added_tokens })

  it.each<[string, unknown]>([
    ['a list', []],
    ['without a model', { ...tiny, model: undefined }],
    ['of an unknown kind', { ...tiny, model: { type: 'Morse' } }],
    ['with a word beyond the model', word(TINY_VOCAB)],
    ['with a word at a taken id', word(5)],
    ['with an added token beyond the model', added({ id: TINY_VOCAB, content: 'x' })],
    ['with an added token without content', added({ id: 1, content: '' })],
    ['with an added token that is long', added({ id: 1, content: 'x'.repeat(257) })],
    ['with an added token of whole words', added({ id: 1, content: 'x', single_word: true })],
    ['with too many added tokens', added(...Array(4097).fill({ id: 1, content: 'x' }))],
    ['with merges of nothing', { ...tiny, model: { ...tiny.model, merges: [['x', 'yy']] } }],
    ['with an unknown post-processor', { ...tiny, post_processor: { type: 'Mystery' } }],
    [
      'with a post-processor of no token',
      { ...tiny, post_processor: { type: 'TemplateProcessing', single: [{ SpecialToken: { id: 'x' } }] } },
    ],
    ['of the library, with a word beyond the model', { ...sentencePiece, added_tokens: [] }],
    ['of the library, broken', { ...sentencePiece, model: { type: 'BPE', vocab: 3 } }],
  ])('%s', (_, json) => {
    expect(() => createTokenizer(bytesOf(json), TINY_VOCAB)).toThrow(
      expect.objectContaining({ code: 'manifest_malformed' }),
    )
  })

  it.each([
    '',
    'x',
    '{"model":{"vocab":{',
    '{"model":{}} x',
    `${'['.repeat(100_000)}`,
    '{"__proto__":{"model":1}}',
  ])('text %#', (text) => {
    expect(() => createTokenizer(new TextEncoder().encode(text), TINY_VOCAB)).toThrow(
      expect.objectContaining({ code: 'manifest_malformed' }),
    )
  })

  it('whatever byte of it is damaged, it is read or refused', () => {
    const good = bytesOf(tiny)
    fc.assert(
      fc.property(fc.nat(good.length - 1), fc.nat(255), (at, byte) => {
        const bad = good.slice()
        bad[at] = byte
        try {
          createTokenizer(bad, TINY_VOCAB)
        } catch (error) {
          expect(error).toMatchObject({ name: 'SparsedgeError', code: 'manifest_malformed' })
        }
      }),
      { numRuns: 1000 },
    )
  })
})
