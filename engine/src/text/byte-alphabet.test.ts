import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { readByteString } from './byte-alphabet.ts'
import { JsonCursor } from './json-cursor.ts'

/** GPT-2's own formulation (`bytes_to_unicode`), kept apart from the one under test. */
const ALPHABET = (() => {
  const shown = [...range(0x21, 0x7e), ...range(0xa1, 0xac), ...range(0xae, 0xff)]
  const hidden = range(0, 255).filter((byte) => !shown.includes(byte))
  return new Map([
    ...shown.map((byte) => [byte, String.fromCharCode(byte)] as const),
    ...hidden.map((byte, i) => [byte, String.fromCharCode(256 + i)] as const),
  ])
})()

function range(first: number, last: number): number[] {
  return Array.from({ length: last - first + 1 }, (_, i) => first + i)
}

function read(json: string) {
  const out = new Uint8Array(64)
  const found = { end: 0, gap: 0, readable: false }
  readByteString(new JsonCursor(new TextEncoder().encode(json)), out, 0, found)
  return { bytes: [...out.subarray(0, found.end)], gap: found.gap, readable: found.readable }
}

const ascii = (json: string) =>
  json.replace(/[^ -~]/g, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`)

describe('readByteString', () => {
  it.each([
    ['as it is', (json: string) => json],
    ['escaped', ascii],
  ])('reads any bytes, written %s', (_, write) => {
    fc.assert(
      fc.property(fc.array(fc.nat(255), { maxLength: 20 }), (bytes) => {
        const word = bytes.map((byte) => ALPHABET.get(byte)).join('')
        expect(read(write(JSON.stringify(word)))).toEqual({ bytes, gap: -1, readable: true })
      }),
    )
  })

  it('finds the space of a merge', () => {
    expect(read('"Ġ t"')).toEqual({ bytes: [0x20, 0x74], gap: 1, readable: true })
  })

  it.each(['"a b c"', '"\\n"', '"ń"', '"日"', '"😀"', '"\\ud83d"', '"\\u00zz"', '"\u00a0"'])(
    '%s is not of the alphabet',
    (json) => {
      expect(read(json).readable).toBe(false)
    },
  )

  it.each(['x', '"a', '"a\\', '"\\u12'])('refuses %s', (json) => {
    expect(() => read(json)).toThrow(expect.objectContaining({ code: 'manifest_malformed' }))
  })
})
