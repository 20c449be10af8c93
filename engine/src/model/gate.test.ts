import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { tinyConfig } from '../../../test/fixtures/tiny.ts'
import type { GateConfig } from './config.ts'
import { gateWeights } from './gate.ts'
import { gateRule } from './selection.ts'

const gate = (kind: GateConfig['kind'], selection: GateConfig['selection']): GateConfig => ({
  kind,
  source: 'own',
  selection,
})
const weigh = (config: GateConfig, z: ArrayLike<number>): number[] => {
  const weights = new Float32Array(z.length)
  const { top, levels } = gateRule(tinyConfig({ experts: 70, layers: 1, gate: config }))
  gateWeights(config.kind, top, levels[0], Float32Array.from(z), weights)
  return [...weights]
}
const routed = (weights: number[]): number[] => weights.flatMap((g, i) => (g === 0 ? [] : [i]))

const LN2 = Math.LN2 // softmax of (0, ln 2, ln 4, ln 8) is (1, 2, 4, 8) / 15

describe('gateWeights', () => {
  it.each([
    ['all: every weight is 1', gate('all', { by: 'all' }), [-5, 0, 5], [1, 1, 1]],
    [
      'clamped linear: z between 0 and 1, off at 0 and below',
      gate('clamped_linear', { by: 'positive' }),
      [-0.5, 0, 0.25, 1, 7],
      [0, 0, 0.25, 1, 1],
    ],
    [
      'softmax, top 2: not renormalised',
      gate('softmax', { by: 'top_k', k: 2 }),
      [0, LN2, 3 * LN2, 2 * LN2],
      [0, 0, 8 / 15, 4 / 15],
    ],
    [
      'softmax renormalised, top 2',
      gate('softmax_renormalised', { by: 'top_k', k: 2 }),
      [0, LN2, 3 * LN2, 2 * LN2],
      [0, 0, 2 / 3, 1 / 3],
    ],
    [
      'ties: the lower index wins',
      gate('softmax_renormalised', { by: 'top_k', k: 2 }),
      [1, 3, 3, 3],
      [0, 0.5, 0.5, 0],
    ],
    [
      'threshold: N p > eps, strictly',
      gate('softmax', { by: 'threshold', eps: 1 }),
      [0, 0, 0, LN2], // N p = .8, .8, .8, 1.6
      [0, 0, 0, 2 / 5],
    ],
    [
      'threshold, renormalised',
      gate('softmax_renormalised', { by: 'threshold', eps: 0.5 }),
      [0, LN2, 2 * LN2, 3 * LN2], // N p = .27, .53, 1.07, 2.13
      [0, 2 / 14, 4 / 14, 8 / 14],
    ],
    [
      'a threshold that nothing passes leaves all off',
      gate('softmax_renormalised', { by: 'threshold', eps: 1.5 }),
      [0, 0, 0],
      [0, 0, 0],
    ],
    [
      'k larger than the number of experts takes all',
      gate('softmax', { by: 'top_k', k: 9 }),
      [0, LN2, LN2],
      [0.2, 0.4, 0.4],
    ],
    [
      'large scores do not overflow',
      gate('softmax', { by: 'top_k', k: 2 }),
      [3000, 3000, -3000],
      [0.5, 0.5, 0],
    ],
  ])('%s', (_, config, z, expected) => {
    const weights = weigh(config, z)
    expect(weights).toHaveLength(expected.length)
    for (const [i, g] of expected.entries()) expect(weights[i]).toBeCloseTo(g, 6)
    expect(routed(weights)).toEqual(routed(expected))
  })

  const scores = fc.array(fc.float({ min: -20, max: 20, noNaN: true }), { minLength: 1, maxLength: 64 })

  it('keeps at least one expert under any threshold below 1', () => {
    fc.assert(
      fc.property(scores, fc.double({ min: 1e-6, max: 0.999, noNaN: true }), (z, eps) => {
        expect(routed(weigh(gate('softmax', { by: 'threshold', eps }), z)).length).toBeGreaterThan(0)
      }),
    )
  })

  it('selects exactly min(k, N) experts by rank, and renormalised weights sum to 1', () => {
    fc.assert(
      fc.property(scores, fc.integer({ min: 1, max: 70 }), (z, k) => {
        const weights = weigh(gate('softmax_renormalised', { by: 'top_k', k }), z)
        const order = [...z.keys()].sort((a, b) => z[b] - z[a] || a - b)
        expect(routed(weights)).toEqual(order.slice(0, k).sort((a, b) => a - b))
        expect(weights.reduce((sum, g) => sum + g, 0)).toBeCloseTo(1, 5)
      }),
    )
  })
})
