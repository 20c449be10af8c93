import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { ByteBpe } from './byte-bpe.ts'
import { JsonCursor } from './json-cursor.ts'

const cursorOf = (value: unknown) => new JsonCursor(new TextEncoder().encode(JSON.stringify(value)))

/** Letters are their own bytes and characters, so that tests can be read. */
function read(words: readonly string[], merges: readonly unknown[], wholeWords = false, ids = words.length) {
  const vocab = Object.fromEntries(words.map((word, id) => [word, id]))
  return ByteBpe.read(cursorOf(vocab), cursorOf(merges), ids, wholeWords, () => false)
}

function encode(bpe: ByteBpe | undefined, word: string): number[] {
  const ids: number[] = []
  bpe?.encode(word, ids)
  return ids
}

/** Byte-pair encoding as its paper states it: the best pair of all, leftmost first, again and again. */
function naive(word: string, merges: readonly (readonly [string, string])[]): string[] {
  let symbols = [...word]
  for (;;) {
    const ranks = symbols
      .slice(1)
      .map((right, i) => merges.findLastIndex(([a, b]) => a === symbols[i] && b === right))
    const best = Math.min(...ranks.filter((rank) => rank >= 0))
    const at = ranks.indexOf(best)
    if (at < 0) return symbols
    symbols = [...symbols.slice(0, at), symbols[at] + symbols[at + 1], ...symbols.slice(at + 2)]
  }
}

/** Random merges that build on each other, over few letters, so that they compete. */
const vocabularies = fc.array(fc.tuple(fc.nat(), fc.nat()), { maxLength: 30 }).map((choices) => {
  const words = ['a', 'b', 'c']
  const merges: [string, string][] = []
  for (const [i, j] of choices) {
    const pair: [string, string] = [words[i % words.length], words[j % words.length]]
    if (words.includes(pair.join('')) || pair.join('').length > 12) continue
    merges.push(pair)
    words.push(pair.join(''))
  }
  return { words, merges }
})

describe('encode', () => {
  it('does what the plain formulation does', () => {
    fc.assert(
      fc.property(
        vocabularies,
        fc.string({ unit: fc.constantFrom('a', 'b', 'c'), maxLength: 60 }),
        (v, word) => {
          const expected = naive(word, v.merges).map((symbol) => v.words.indexOf(symbol))
          expect(encode(read(v.words, v.merges), word)).toEqual(expected)
          const legacy = v.merges.map((pair) => pair.join(' '))
          expect(encode(read(v.words, legacy), word)).toEqual(expected)
        },
      ),
      { numRuns: 500 },
    )
  })

  it('leaves a word of the vocabulary whole only where it is told to', () => {
    const words = ['a', 'b', 'c', 'ab', 'bc', 'abc']
    const merges = [
      ['b', 'c'],
      ['a', 'b'],
      ['ab', 'c'],
    ]
    expect(encode(read(words, merges), 'abc')).toEqual([0, 4])
    expect(encode(read(words, merges, true), 'abc')).toEqual([5])
    expect(encode(read(words, merges, true), 'abcc')).toEqual([0, 4, 2])
  })

  it('leaves out bytes that the vocabulary lacks, as if they were not there', () => {
    const bpe = read(['a', 'b', 'ab'], [['a', 'b']])
    expect(encode(bpe, 'aéb')).toEqual([2])
    expect(encode(bpe, 'é')).toEqual([])
    expect(encode(bpe, '')).toEqual([])
  })

  it('encodes long words as it does short ones, and in no time that matters', () => {
    const bpe = read(
      ['a', 'b', 'aa', 'aaaa', 'ab'],
      [
        ['a', 'a'],
        ['aa', 'aa'],
        ['a', 'b'],
      ],
    )
    expect(encode(bpe, 'a'.repeat(400_001))).toEqual([...Array(100_000).fill(3), 0])
    // Still right afterwards: the shared scratch was not touched.
    expect(encode(bpe, 'aab')).toEqual([2, 1])
  })
})

describe('read', () => {
  it('gives the bytes of each word', () => {
    const bpe = read(['é', 'Ġa'], [])
    expect(bpe?.word(0)).toEqual(Uint8Array.of(0xe9))
    expect(bpe?.word(1)).toEqual(Uint8Array.of(0x20, 0x61))
    expect(bpe?.longest).toBe(2)
  })

  it('does not take a vocabulary that is not one of bytes', () => {
    expect(read(['▁the', 'a'], [])).toBeUndefined()
    expect(read(['a b'], [])).toBeUndefined()
  })

  it.each([
    ['an id that is too high', '{"a":2}', '[]', /an id below 2/],
    ['an id used twice', '{"a":0,"b":0}', '[]', /not taken/],
    ['a word listed twice', '{"a":0,"a":1}', '[]', /not taken/],
    ['an empty word', '{"":0}', '[]', /not taken/],
    ['an id that is no number', '{"a":"0"}', '[]', /an integer/],
    ['a vocabulary that is a list', '["a"]', '[]', /'{'/],
    ['a merge of unknown words', '{"a":0,"b":1}', '["a b"]', /a merge of words/],
    ['a merge without a space', '{"a":0,"b":1}', '["ab"]', /a merge of words/],
    ['a merge of one', '{"a":0,"b":1}', '[["a"]]', /','/],
    ['a merge of three', '{"a":0,"b":1}', '[["a","b","a"]]', /'\]'/],
    ['a merge that hides another character', '{"a":0,"aa":1}', '[["a日","a"]]', /a merge of words/],
    ['a word that does not end', '{"a', '[]', /the end of a string/],
  ])('refuses %s', (_, vocab, merges, message) => {
    const cursor = (json: string) => new JsonCursor(new TextEncoder().encode(json))
    const reading = () => ByteBpe.read(cursor(vocab), cursor(merges), 2, false, () => false)
    expect(reading).toThrow(
      expect.objectContaining({ code: 'manifest_malformed', message: expect.stringMatching(message) }),
    )
  })

  it('refuses a word that is longer than any real one', () => {
    expect(() => read(['a'.repeat(0x10000)], [])).toThrow(/not taken/)
  })
})
