import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { argmax, divergence, logProbabilities, partialDivergence } from './divergence.ts'

const log = (...p: number[]) => Float64Array.from(p, Math.log)

describe('divergence', () => {
  it('is 0 between equals and known by hand between others', () => {
    expect(divergence(log(0.5, 0.25, 0.25), log(0.5, 0.25, 0.25))).toBe(0)
    expect(divergence(log(0.5, 0.5), log(0.25, 0.75))).toBeCloseTo(0.5 * Math.log(4 / 3), 12)
  })

  const logits = fc.array(fc.float({ min: -20, max: 20, noNaN: true }), { minLength: 8, maxLength: 8 })
  it('is bounded from below by what is known of it, and that by 0', () => {
    fc.assert(
      fc.property(logits, logits, fc.integer({ min: 1, max: 8 }), (a, b, known) => {
        const [p, q] = [logProbabilities(Float32Array.from(a)), logProbabilities(Float32Array.from(b))]
        const tokens = Uint16Array.from([...p.keys()].sort((i, j) => p[j] - p[i]).slice(0, known))
        const some = partialDivergence(
          tokens,
          Float32Array.from(tokens, (t) => p[t]),
          q,
        )
        expect(some).toBeGreaterThan(-1e-4)
        expect(some).toBeLessThan(divergence(p, q) + 1e-4)
      }),
    )
  })
})

describe('logProbabilities', () => {
  it('sums to 1 however large the logits are', () => {
    const p = logProbabilities(Float32Array.of(1000, 1000, -1000))
    expect(Math.exp(p[0])).toBeCloseTo(0.5, 9)
    expect(p[1]).toBe(p[0])
    expect(Math.exp(p[2])).toBe(0)
  })
})

describe('argmax', () => {
  it('takes the first of equals', () => {
    expect(argmax([1, 3, 3, 2])).toBe(1)
  })
})
