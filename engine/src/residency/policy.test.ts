import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { bundlePays, Frequency } from './policy.ts'

describe('Frequency', () => {
  test('a use counts half after the half-life', () => {
    const frequency = new Frequency(2, 10)
    frequency.use(0)
    frequency.use(0)
    for (let i = 0; i < 10; i++) frequency.tick()
    frequency.use(1)
    expect(frequency.of(0) / frequency.of(1)).toBeCloseTo(1, 12)
  })

  test('orders keys as decaying every count would, over any length of time', () => {
    const uses = fc.array(fc.record({ key: fc.nat(3), ticks: fc.nat(3000) }), { maxLength: 40 })
    fc.assert(
      fc.property(uses, (history) => {
        const halfLife = 5
        const frequency = new Frequency(4, halfLife)
        const plain = [0, 0, 0, 0]
        for (const { key, ticks } of history) {
          for (let i = 0; i < ticks; i++) frequency.tick()
          for (let k = 0; k < 4; k++) plain[k] *= 2 ** (-ticks / halfLife)
          frequency.use(key)
          plain[key] += 1
        }
        const total = plain.reduce((sum, count) => sum + count, 0)
        const scale = [0, 1, 2, 3].reduce((sum, key) => sum + frequency.of(key), 0)
        for (let key = 0; key < 4; key++) {
          if (total > 0) expect(frequency.of(key) / scale).toBeCloseTo(plain[key] / total, 9)
        }
      }),
    )
  })
})

describe('bundlePays', () => {
  test.each([
    { case: 'nothing is missing', missing: 0, experts: 24, bytes: 62_208, pays: false },
    {
      case: 'one round trip brings all that is missing',
      missing: 6,
      experts: 24,
      bytes: 62_208,
      pays: false,
    },
    { case: 'half of a layer of small experts', missing: 12, experts: 24, bytes: 62_208, pays: true },
    { case: 'a whole layer of small experts', missing: 24, experts: 24, bytes: 62_208, pays: true },
    { case: 'half of a layer of large experts', missing: 4, experts: 8, bytes: 50_000_000, pays: false },
    { case: 'a whole layer of large experts', missing: 8, experts: 8, bytes: 50_000_000, pays: true },
    { case: 'a whole small layer: as fast, one request', missing: 4, experts: 4, bytes: 62_208, pays: true },
  ])('$case', ({ missing, experts, bytes, pays }) => {
    expect(bundlePays(missing, experts, bytes)).toBe(pays)
  })
})
