import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { bundlePays, Forecast } from './policy.ts'

describe('Forecast', () => {
  /** One pass through all layers in which the given keys are used. */
  function pass(forecast: Forecast, layers: number, experts: number, used: readonly number[]): void {
    for (let layer = 0; layer < layers; layer++) {
      forecast.visit(layer, 1)
      for (const key of used) if (Math.floor(key / experts) === layer) forecast.use(key, 1)
    }
  }

  test('knows how often each expert was used', () => {
    const forecast = new Forecast(2, 2, 1000)
    for (let i = 0; i < 400; i++) pass(forecast, 2, 2, [0, ...(i % 2 ? [1] : []), ...(i % 4 ? [] : [3])])
    expect([0, 1, 2, 3].map((key) => Math.round(forecast.rate(key) * 100))).toEqual([100, 50, 0, 25])
  })

  test('a use counts half after the half-life', () => {
    const forecast = new Forecast(1, 2, 10)
    pass(forecast, 1, 2, [0])
    const before = forecast.rate(0)
    for (let i = 0; i < 9; i++) pass(forecast, 1, 2, [])
    pass(forecast, 1, 2, [1])
    expect(before).toBe(1)
    expect(forecast.rate(0) / forecast.rate(1)).toBeCloseTo(0.5, 12)
  })

  test('a step of many tokens counts each of them', () => {
    const forecast = new Forecast(1, 3, 64)
    forecast.visit(0, 100)
    for (const [key, tokens] of [100, 20, 1].entries()) forecast.use(key, tokens)
    expect([0, 1, 2].map((key) => forecast.rate(key))).toEqual([1, 0.2, 0.01])
    for (let i = 0; i < 64; i++) pass(forecast, 1, 3, [2])
    expect(forecast.rate(0)).toBeLessThan(forecast.rate(2))
  })

  test('begins with the profile of the pack, and unlearns it', () => {
    const forecast = new Forecast(2, 2, 10, [
      [0.25, 1],
      [0.5, 0],
    ])
    expect([0, 1, 2, 3].map((key) => forecast.rate(key))).toEqual([0.25, 1, 0.5, 0])
    for (let i = 0; i < 200; i++) pass(forecast, 2, 2, [0, 3])
    for (const [key, rate] of [1, 0, 0, 1].entries()) expect(forecast.rate(key)).toBeCloseTo(rate, 3)
  })

  test('orders experts of a layer as decaying every count would, over any length of time', () => {
    const history = fc.array(fc.record({ key: fc.nat(3), passes: fc.nat(3000) }), { maxLength: 30 })
    fc.assert(
      fc.property(history, (uses) => {
        const halfLife = 5
        const forecast = new Forecast(1, 4, halfLife)
        const plain = [0, 0, 0, 0]
        for (const { key, passes } of uses) {
          for (let i = 0; i < passes; i++) forecast.visit(0, 1)
          for (let k = 0; k < 4; k++) plain[k] *= 2 ** (-(passes + 1) / halfLife)
          pass(forecast, 1, 4, [key])
          plain[key] += 1
        }
        for (const a of plain.keys()) {
          for (const b of plain.keys()) {
            // Equal counts may differ in their last bit, and what was long ago in everything but that.
            if (plain[a] < plain[b] * 0.999 && forecast.rate(b) > 1e-9) {
              expect(forecast.worth(a)).toBeLessThan(forecast.worth(b))
            }
          }
        }
      }),
    )
  })

  test('where all are always on, the layer just left is worth least and the next one most', () => {
    const forecast = new Forecast(5, 1, 64)
    for (let i = 0; i < 3; i++) pass(forecast, 5, 1, [0, 1, 2, 3, 4])
    forecast.visit(0, 1)
    forecast.use(0, 1)
    forecast.visit(1, 1)
    forecast.use(1, 1)
    const order = [0, 1, 2, 3, 4].sort((a, b) => forecast.worth(b) - forecast.worth(a))
    expect(order).toEqual([2, 3, 4, 0, 1])
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
