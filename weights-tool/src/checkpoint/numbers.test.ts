import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { floatsFromBF16, floatsFromF16, floatToHalf, halfToFloat } from './numbers.ts'

describe('half precision', () => {
  it.each([
    [0x0000, 0],
    [0x3c00, 1],
    [0xc000, -2],
    [0x7bff, 65504],
    [0x0001, 2 ** -24],
    [0x03ff, 2 ** -14 - 2 ** -24],
    [0x3555, 0.333251953125],
    [0x7c00, Number.POSITIVE_INFINITY],
    [0xfc00, Number.NEGATIVE_INFINITY],
    [0x7e00, Number.NaN],
  ])('0x%i is %d', (bits, value) => {
    expect(halfToFloat(bits)).toBe(value)
  })

  it('comes back from every finite half', () => {
    for (let bits = 0; bits < 0x10000; bits++) {
      if ((bits & 0x7c00) === 0x7c00) continue
      expect(floatToHalf(halfToFloat(bits))).toBe(bits)
    }
  })

  it('takes the nearest half', () => {
    fc.assert(
      fc.property(fc.double({ min: -65504, max: 65504, noNaN: true }), (value) => {
        const half = floatToHalf(value)
        const error = Math.abs(halfToFloat(half) - value)
        // The neighbours on both sides are no nearer.
        for (const other of [half - 1, half + 1]) {
          if ((other & 0x7fff) >= 0x7c00 || other < 0 || (other ^ half) & 0x8000) continue
          expect(Math.abs(halfToFloat(other) - value)).toBeGreaterThanOrEqual(error)
        }
      }),
    )
  })

  it.each([
    [1 + 2 ** -11, 0x3c00],
    [1 + 3 * 2 ** -11, 0x3c02],
    [65519, 0x7bff],
    [65520, 0x7c00],
    [1e9, 0x7c00],
    [-1e9, 0xfc00],
    [2 ** -25, 0x0000],
    [3 * 2 ** -25, 0x0002],
  ])('rounds ties to even: %d', (value, bits) => {
    expect(floatToHalf(value)).toBe(bits)
  })
})

it('reads little-endian bytes from any offset', () => {
  const bytes = Uint8Array.of(0xff, 0x00, 0x3c, 0x00, 0xc0)
  expect(floatsFromF16(bytes.subarray(1))).toEqual(Float32Array.of(1, -2))
  expect(floatsFromBF16(Uint8Array.of(0x80, 0x3f, 0x00, 0xc0))).toEqual(Float32Array.of(1, -2))
})
