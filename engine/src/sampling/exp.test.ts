import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { expOf } from './exp.ts'

describe('expOf', () => {
  it('is e^x to eight digits', () => {
    fc.assert(
      fc.property(fc.double({ min: -43.5, max: 0, noNaN: true }), (x) => {
        expect(Math.abs(expOf(x) / Math.exp(x) - 1)).toBeLessThan(1e-8)
      }),
      { numRuns: 10_000 },
    )
  })

  it.each([
    [0, 1],
    [-0, 1],
    [-44, 0],
    [-1e30, 0],
    [Number.NEGATIVE_INFINITY, 0],
    [-Number.MIN_VALUE, 1],
  ])('of %d is %d', (x, value) => {
    expect(expOf(x)).toBe(value)
  })

  it('never grows where x falls, also where the power of two changes', () => {
    for (let x = 0; x > -45; x -= 0.001) expect(expOf(x - 0.001)).toBeLessThanOrEqual(expOf(x))
  })
})
