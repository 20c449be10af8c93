import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { cutterFor } from './pretokenise.ts'

const bytes = (use_regex: boolean) => ({ type: 'ByteLevel', add_prefix_space: false, use_regex })
const sequence = (...pretokenizers: unknown[]) => ({ type: 'Sequence', pretokenizers })
const LLAMA_3 =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
const split = { type: 'Split', pattern: { Regex: LLAMA_3 }, behavior: 'Isolated', invert: false }

const KNOWN = {
  'gpt-2': bytes(true),
  smollm: sequence({ type: 'Digits', individual_digits: true }, bytes(true)),
  'digit runs': sequence({ type: 'Digits', individual_digits: false }, bytes(true)),
  'llama-3': sequence(split, bytes(false)),
  bytes: bytes(false),
}

describe('cutterFor', () => {
  // The exact cuts of awkward texts are held against the reference in test/parity/tokenizer.test.ts.
  it.each([
    ['gpt-2', "I'll pay  12½ €!\n\n ok", ['I', "'ll", ' pay', ' ', ' 12½', ' €!', '\n\n', ' ok']],
    ['smollm', 'in 1984  .', ['in', ' ', '1', '9', '8', '4', ' ', ' .']],
    ['digit runs', 'in 1984', ['in', ' ', '1984']],
    ['llama-3', "It'S 12345\r\n\n x", ['It', "'S", ' ', '123', '45', '\r\n\n', ' x']],
    ['bytes', 'as it is ', ['as it is ']],
  ] as const)('%s', (kind, text, words) => {
    expect(cutterFor(KNOWN[kind])?.(text)).toEqual(words)
  })

  it.each(Object.entries(KNOWN))('%s loses nothing', (_, config) => {
    const cut = cutterFor(config)
    fc.assert(fc.property(fc.string({ unit: 'binary' }), (text) => cut?.(text).join('') === text))
  })

  it.each([
    ['nothing', null],
    ['another kind', { type: 'Metaspace', replacement: '▁' }],
    ['a prefix space', { ...bytes(true), add_prefix_space: true }],
    ['a split by another pattern', sequence({ ...split, pattern: { Regex: '\\w+' } }, bytes(false))],
    ['a split that drops', sequence({ ...split, behavior: 'Removed' }, bytes(false))],
    ['a cut after the bytes', sequence(bytes(true), { type: 'Digits', individual_digits: true })],
    ['an empty sequence', sequence()],
  ])('does not know %s', (_, config) => {
    expect(cutterFor(config)).toBeUndefined()
  })
})
