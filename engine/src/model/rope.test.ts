import { describe, expect, it } from 'vitest'
import { z } from 'zod'
import goldens from '../../../test/goldens/rope.json' with { type: 'json' }
import { RopeScaling, ropeFrequencies } from './rope.ts'

// Frequencies from the transformers library, see test/goldens/rope.py; scaling is parsed as an importer parses it.
const Golden = z.object({
  name: z.string(),
  theta: z.number(),
  headDim: z.number(),
  scaling: RopeScaling,
  invFreq: z.array(z.number()),
  ropeScale: z.number(),
})

describe('ropeFrequencies', () => {
  it.each(z.array(Golden).parse(goldens))('agrees with transformers: $name', (golden) => {
    const { invFreq, ropeScale } = ropeFrequencies(golden)
    expect(invFreq.length).toBe(golden.headDim / 2)
    for (const [i, f] of invFreq.entries()) expect(f / golden.invFreq[i]).toBeCloseTo(1, 5)
    expect(ropeScale).toBeCloseTo(golden.ropeScale, 12)
  })

  it('needs no scaling', () => {
    const plain = ropeFrequencies({ theta: 10000, headDim: 4 })
    expect(plain).toEqual({ invFreq: Float32Array.of(1, 0.01), ropeScale: 1 })
  })
})

describe('RopeScaling', () => {
  it.each([
    ['a method without a formula here', { rope_type: 'longrope', factor: 4 }],
    ['llama3 without its bands', { rope_type: 'llama3', factor: 8 }],
    ['YaRN without its original context', { rope_type: 'yarn', factor: 4 }],
    ['a factor of 0', { rope_type: 'linear', factor: 0 }],
    ['no method at all', { factor: 4 }],
    ['not an object', 'linear'],
  ])('refuses %s', (_, scaling) => {
    expect(RopeScaling.safeParse(scaling).success).toBe(false)
  })

  it('leaves out what it does not know, as rope_theta in rope_parameters', () => {
    expect(RopeScaling.parse({ rope_type: 'linear', factor: 2, rope_theta: 10000 })).toEqual({
      rope_type: 'linear',
      factor: 2,
    })
  })
})
