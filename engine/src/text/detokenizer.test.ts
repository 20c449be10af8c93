import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { ByteDetokenizer, type Detokenizer, WindowDetokenizer } from './detokenizer.ts'

const WORDS = [
  [0x61],
  [0x20, 0x62],
  [0xf0, 0x9f],
  [0x98],
  [0x80],
  [0xe2, 0x82],
  [0xac],
  [0xff],
  [0xef, 0xbb, 0xbf],
  [],
]
const word = (token: number) => Uint8Array.from(WORDS[token])
const whole = (tokens: readonly number[]) =>
  new TextDecoder('utf-8', { ignoreBOM: true }).decode(
    Uint8Array.from(tokens.flatMap((token) => WORDS[token])),
  )

function pieces(detokenizer: Detokenizer, tokens: readonly number[]): string[] {
  return [...tokens.map((token) => detokenizer.push(token)), detokenizer.end()]
}

const sequences = fc.array(fc.nat(WORDS.length - 1), { maxLength: 20 })

describe.each([
  ['bytes', () => new ByteDetokenizer(word)],
  ['window', () => new WindowDetokenizer(whole)],
])('%s', (_, create) => {
  it('gives in pieces what decoding at once gives', () => {
    fc.assert(fc.property(sequences, (tokens) => pieces(create(), tokens).join('') === whole(tokens)))
  })

  it('holds an unfinished character back', () => {
    expect(pieces(create(), [0, 2, 3, 4, 1])).toEqual(['a', '', '', '😀', ' b', ''])
    expect(pieces(create(), [0, 2, 3])).toEqual(['a', '', '', '\ufffd'])
  })

  it('never cuts a surrogate pair', () => {
    fc.assert(
      fc.property(sequences, (tokens) => pieces(create(), tokens).every((piece) => piece.isWellFormed())),
    )
  })
})

describe('window', () => {
  // SentencePiece: a word begins with ▁, and the first of a text loses it.
  const decode = (tokens: readonly number[]) =>
    tokens
      .map((token) => ['▁a', '▁b', 'c', '▁'][token])
      .join('')
      .replaceAll('▁', ' ')
      .replace(/^ /, '')

  it('gives each token the meaning it has after the one before', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(3), { maxLength: 12 }), (tokens) => {
        expect(pieces(new WindowDetokenizer(decode), tokens).join('')).toBe(decode(tokens))
      }),
    )
    expect(pieces(new WindowDetokenizer(decode), [0, 1, 2])).toEqual(['a', ' b', 'c', ''])
  })
})
