import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { JsonCursor } from './json-cursor.ts'

const cursorAt = (text: string) => new JsonCursor(new TextEncoder().encode(text))

describe('value', () => {
  it('reads what JSON.parse reads, and stops right after it', () => {
    fc.assert(
      fc.property(fc.json(), fc.constantFrom('', ' ', '\n,', ']', '}'), (json, rest) => {
        const cursor = cursorAt(` ${json}${rest}`)
        expect(cursor.value()).toEqual(JSON.parse(json))
        expect(cursor.bytes.length - cursor.at).toBe(rest.length)
      }),
    )
  })

  it.each(['', ' ', '{', '[1', '[1}', '"a', '"\\', '}', ':', 'nul', '1 2', '{"a":1,}', '\u00ff'])(
    'refuses %j',
    (json) => {
      const cursor = cursorAt(json)
      expect(() => {
        cursor.value()
        if (!cursor.ended) cursor.fail('the end')
      }).toThrow(expect.objectContaining({ code: 'manifest_malformed' }))
    },
  )

  it('refuses bytes that are not UTF-8', () => {
    const cursor = new JsonCursor(Uint8Array.of(0x22, 0xff, 0x22))
    expect(() => cursor.value()).toThrow(/a value was expected at byte 0/)
  })
})

describe('object and array', () => {
  it('visit members and items in order', () => {
    const cursor = cursorAt('{ "a" : [1, [2], 33] ,"\\u0062":{} }')
    const seen: unknown[] = []
    cursor.object((key) => {
      seen.push(key)
      if (key === 'a') cursor.array(() => seen.push(cursor.value()))
      else cursor.object(() => {})
    })
    expect(seen).toEqual(['a', 1, [2], 33, 'b'])
    expect(cursor.ended).toBe(true)
  })

  it.each(['{"a" 1}', '{"a":1 "b":2}', '{1:2}', '[]'])('refuse %j as an object', (json) => {
    const cursor = cursorAt(json)
    expect(() => cursor.object(() => cursor.skip())).toThrow(
      expect.objectContaining({ code: 'manifest_malformed' }),
    )
  })
})

describe('integer', () => {
  it.each([
    ['7', 7],
    [' 049152,', 49152],
    ['999999999', 999_999_999],
  ])('reads %j', (json, value) => {
    expect(cursorAt(json).integer()).toBe(value)
  })

  it.each(['', '-1', 'x', '9999999999'])('refuses %j', (json) => {
    expect(() => cursorAt(json).integer()).toThrow(/an integer was expected/)
  })
})
