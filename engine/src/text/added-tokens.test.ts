import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { AddedToken, AddedTokens } from './added-tokens.ts'

const tokens = (...list: { id: number; content: string; lstrip?: boolean; rstrip?: boolean }[]) =>
  new AddedTokens(list.map((token) => AddedToken.parse(token)))

/** Tokens that begin within each other, that are one character long, not of the basic plane, not words at all. */
const AWKWARD = tokens(
  { id: 1, content: '<|a|>' },
  { id: 2, content: '<|a|><|b|>' },
  { id: 3, content: '|><' },
  { id: 4, content: '😀' },
  { id: 5, content: '\n\n' },
  { id: 6, content: '.*' },
  { id: 7, content: '*' },
)
const pieces = fc.constantFrom(
  '<',
  '|',
  'a',
  'b',
  '|>',
  '<|a|>',
  '<|b|>',
  '😀',
  '\ud83d',
  '\n',
  '\n\n',
  '.',
  '*',
  ' ',
  'é',
)
const texts = fc.array(pieces, { maxLength: 12 }).map((parts) => parts.join(''))

describe('split', () => {
  it.each([
    ['', []],
    ['plain', ['plain']],
    ['x<|a|>y', ['x', 1, 'y']],
    ['<|a|><|b|>', [2]],
    ['<|a|><|a|>', [1, 1]],
    ['<|a<|a|>', ['<|a', 1]],
    ['|><|a|>', [3, '|a|>']],
    ['.**', [6, 7]],
    ['😀\n\n\n', [4, 5, '\n']],
  ])('%j', (text, parts) => {
    expect(AWKWARD.split(text)).toEqual(parts)
  })

  it('lets a token take the white space beside it', () => {
    const strips = tokens({ id: 1, content: '<l>', lstrip: true }, { id: 2, content: '<r>', rstrip: true })
    expect(strips.split('a <l> b <r> c <r> <l>')).toEqual(['a', 1, ' b ', 2, 'c ', 2, 1])
  })

  it('finds nothing where there are no tokens', () => {
    expect(tokens().split('<|a|>')).toEqual(['<|a|>'])
    expect(tokens().protect('<|a|>')).toBe('<|a|>')
  })
})

describe('protect', () => {
  const isControl = (part: string | number) => typeof part === 'number' && part !== 5

  it('hides every token but white space, and restore brings the text back', () => {
    fc.assert(
      fc.property(texts, (text) => {
        const parts = AWKWARD.split(AWKWARD.protect(text))
        expect(parts.some(isControl)).toBe(false)
        const restored = parts.map((part) => (part === 5 ? '\n\n' : AWKWARD.restore(String(part)))).join('')
        expect(restored).toBe(text.toWellFormed())
      }),
      { numRuns: 2000 },
    )
  })

  it('leaves no beginning of a token that what follows could complete', () => {
    fc.assert(
      fc.property(texts, texts, fc.boolean(), (text, after, trims) => {
        const safe = trims ? AWKWARD.protect(text).trim() : AWKWARD.protect(text)
        const [alone, together] = [after, safe + after].map((it) => AWKWARD.split(it).filter(isControl))
        expect(together).toEqual(alone)
      }),
      { numRuns: 2000 },
    )
  })

  it('refuses more first characters than it can tell apart', () => {
    const many = Array.from({ length: 1025 }, (_, id) => ({ id, content: String.fromCodePoint(0x4e00 + id) }))
    expect(() => tokens(...many)).toThrow(expect.objectContaining({ code: 'manifest_malformed' }))
  })
})

describe('many and long tokens', () => {
  const hostile = (content: (i: number) => string, count: number) =>
    tokens(...Array.from({ length: count }, (_, id) => ({ id, content: content(id) })))

  it.each([
    ['that differ late', (i: number) => `<${'y'.repeat(250)}${i}`],
    ['full of blanks', (i: number) => `<${' '.repeat(250)}${i}`],
  ])('%s are found and guarded against in no time', (_, content) => {
    // With one alternative of a regular expression per token, either of these took minutes.
    const it = hostile(content, 250)
    const text = `<${' '.repeat(249)}`.repeat(1000) + '<'.repeat(50_000)
    expect(it.restore(it.protect(text))).toBe(text)
    expect(it.split(text)).toEqual([text])
    expect(it.split(`${text}${content(7)}`)).toEqual([text, 7])
  })

  it('are refused where they take more memory than any model needs', () => {
    expect(() => hostile((i) => `<${'y'.repeat(250)}${i}`, 300)).toThrow(
      expect.objectContaining({ code: 'manifest_malformed' }),
    )
  })

  it('hold no half characters, which stand for others', () => {
    expect(AddedToken.safeParse({ id: 1, content: '\udc00' }).success).toBe(false)
  })
})
