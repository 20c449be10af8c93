import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { RUN_TOKENS, type Runs } from '../backends/backend.ts'
import type { SamplingParams } from '../request.ts'
import { expOf } from './exp.ts'
import { Sampler } from './sampler.ts'
import { SamplingScratch } from './scratch.ts'
import { Xoshiro128 } from './xoshiro.ts'

const PLAIN: SamplingParams = {
  temperature: 1,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  logitBias: new Map(),
  seed: 1,
}

function draws(
  logits: readonly number[],
  params: Partial<SamplingParams>,
  count: number,
  prompt: number[] = [],
): number[] {
  const sampler = new Sampler({ ...PLAIN, ...params }, prompt, new SamplingScratch(logits.length))
  const floats = Float32Array.from(logits)
  return Array.from({ length: count }, () => sampler.next(floats))
}

/** What a backend may know, by plain definition; of a NaN only the first peak tells. */
function runsOf(logits: Float32Array): Runs {
  const runs = Array.from({ length: Math.ceil(logits.length / RUN_TOKENS) }, (_, run) =>
    logits.subarray(run * RUN_TOKENS, (run + 1) * RUN_TOKENS),
  )
  const masses = new Float64Array(runs.length)
  const peaks = Float32Array.from(runs, (run) => Math.max(...run.filter((logit) => !Number.isNaN(logit))))
  if (logits.some(Number.isNaN)) peaks[0] = Number.NaN
  return {
    peaks,
    masses,
    weigh(floor, top, temperature) {
      let mass = 0
      for (const [i, run] of runs.entries()) {
        for (const logit of run) if (logit >= floor) mass += expOf((logit - top) / temperature)
        masses[i] = mass
      }
    },
  }
}

/** Probabilities by plain definition: sort all, cut, normalise, again and again. */
function distribution(
  logits: readonly number[],
  { temperature, topK, topP, minP }: SamplingParams,
): number[] {
  const top = Math.max(...logits)
  const sorted = logits
    .map((logit, token) => ({ token, logit, weight: Math.exp((logit - top) / temperature) }))
    .sort((a, b) => b.logit - a.logit || a.token - b.token)
  const likely = sorted.filter(({ weight }) => weight >= minP)
  const best = topK > 0 ? likely.slice(0, topK) : likely
  const total = best.reduce((sum, { weight }) => sum + weight, 0)
  const kept: typeof best = []
  for (const candidate of best) {
    if (kept.length > 0 && kept.reduce((sum, { weight }) => sum + weight, 0) >= topP * total) break
    kept.push(candidate)
  }
  const mass = kept.reduce((sum, { weight }) => sum + weight, 0)
  const result = logits.map(() => 0)
  for (const { token, weight } of kept) result[token] = weight / mass
  return result
}

/** Pearson's statistic, and the number of values that can vary. */
function chiSquare(tokens: readonly number[], expected: readonly number[]) {
  let statistic = 0
  let possible = 0
  for (const [token, probability] of expected.entries()) {
    const observed = tokens.filter((other) => other === token).length
    if (probability === 0) {
      expect(observed, `token ${token} cannot be drawn`).toBe(0)
      continue
    }
    possible++
    statistic += (observed - probability * tokens.length) ** 2 / (probability * tokens.length)
  }
  return { statistic, freedom: possible - 1 }
}

const LOGITS = [1.5, -0.2, 3, 0, 2.2, 3, -1, 0.7]

describe('greedy', () => {
  const greedy = { temperature: 0 }

  it.each([
    ['the largest', [1, 3, 2], 1],
    ['the lowest of equals', [1, 3, 3, 2, 3], 1],
    ['beside -Infinity', [Number.NEGATIVE_INFINITY, -5, Number.NEGATIVE_INFINITY], 1],
    ['zeros of both signs are equal', [-0, 0], 0],
    ['one token', [7], 0],
  ])('%s', (_, logits, token) => {
    expect(draws(logits, greedy, 1)).toEqual([token])
  })

  it('leaves the logits as they are', () => {
    const logits = Float32Array.of(1, 2, 3)
    const params = { ...PLAIN, ...greedy, frequencyPenalty: 2, logitBias: new Map([[2, -100]]) }
    new Sampler(params, [], new SamplingScratch(3)).next(logits)
    expect([...logits]).toEqual([1, 2, 3])
  })

  it('turns to what was not said, under a penalty', () => {
    expect(draws([3, 2.5, 2], { ...greedy, frequencyPenalty: 1 }, 6)).toEqual([0, 1, 0, 2, 1, 0])
    expect(draws([3, 2.5, 2], { ...greedy, repetitionPenalty: 2 }, 3, [0])).toEqual([1, 2, 0])
  })
})

describe('sampling', () => {
  it.each<[string, Partial<SamplingParams>]>([
    ['as it is', {}],
    ['cold', { temperature: 0.5 }],
    ['hot', { temperature: 2 }],
    ['top_k', { topK: 3 }],
    ['top_k beyond the vocabulary', { topK: 1000 }],
    ['top_p', { topP: 0.8 }],
    ['min_p', { minP: 0.1 }],
    ['top_k and top_p', { topK: 4, topP: 0.7 }],
    ['all of them, hot', { temperature: 1.5, topK: 5, topP: 0.9, minP: 0.15 }],
  ])('%s: draws as often as it should', (_, params) => {
    const expected = distribution(LOGITS, { ...PLAIN, ...params })
    for (const seed of [1, 2, 3]) {
      const { statistic, freedom } = chiSquare(draws(LOGITS, { ...params, seed }, 20_000), expected)
      // Seeds are fixed, so this is no matter of luck; four deviations of the statistic above its mean.
      expect(statistic).toBeLessThan(freedom + 4 * Math.sqrt(2 * freedom) + 4)
    }
  })

  it('keeps what the plain definition keeps, and draws it by the same random numbers', () => {
    const logit = fc.oneof(fc.integer({ min: -8, max: 8 }), fc.constant(Number.NEGATIVE_INFINITY))
    fc.assert(
      fc.property(
        fc.array(logit, { minLength: 1, maxLength: 40 }).filter((all) => all.some(Number.isFinite)),
        fc.constantFrom(0.3, 1, 2),
        fc.nat(45),
        fc.constantFrom(0, 0.31, 0.77, 0.93, 1),
        fc.constantFrom(0, 0.003, 0.03, 0.6, 1),
        fc.nat(),
        (logits, temperature, topK, topP, minP, seed) => {
          const params = { ...PLAIN, temperature, topK, topP, minP, seed }
          const probabilities = distribution(logits, params)
          // Where rank matters, candidates are drawn likeliest first, otherwise by id.
          const candidates = probabilities.map((_, token) => token)
          if (topP < 1 || topK > 0) candidates.sort((a, b) => logits[b] - logits[a] || a - b)
          const random = new Xoshiro128(seed)
          for (const token of draws(logits, params, 5)) {
            let left = random.uniform()
            const drawn = candidates.find((candidate) => {
              left -= probabilities[candidate]
              return left < -1e-9
            })
            // On the very edge of two candidates, either is right.
            expect(probabilities[token]).toBeGreaterThan(0)
            if (Math.abs(left) > 1e-9 && left + probabilities[drawn ?? token] > 1e-9)
              expect(token).toBe(drawn)
          }
        },
      ),
      { numRuns: 1000 },
    )
  })

  it('gives the same tokens whether or not the logits come with their runs', () => {
    const logit = fc.oneof(fc.integer({ min: -40, max: 10 }), fc.constant(Number.NEGATIVE_INFINITY))
    const vocab = 100
    fc.assert(
      fc.property(
        fc.array(logit, { minLength: vocab, maxLength: vocab }).filter((all) => all.some(Number.isFinite)),
        fc.record({
          temperature: fc.constantFrom(0, 0.3, 1, 2),
          topK: fc.constantFrom(0, 0, 1, 5, 30),
          topP: fc.constantFrom(0.31, 0.93, 1),
          minP: fc.constantFrom(0, 0.003, 0.6),
          repetitionPenalty: fc.constantFrom(1, 1.3),
          frequencyPenalty: fc.constantFrom(0, 2, -1),
          logitBias: fc.constantFrom(
            new Map(),
            new Map([
              [0, -100],
              [99, 30],
            ]),
          ),
          seed: fc.nat(),
        }),
        (logits, given) => {
          const floats = Float32Array.from(logits)
          const runs = runsOf(floats)
          const scratch = new SamplingScratch(vocab)
          const [one, other] = [1, 2].map(() => new Sampler({ ...PLAIN, ...given }, [3, 50], scratch))
          for (let i = 0; i < 5; i++) expect(one.next(floats, runs)).toBe(other.next(floats))
          expect(floats).toEqual(Float32Array.from(logits))
        },
      ),
      { numRuns: 1000 },
    )
  })

  it('gives the same tokens for the same seed, others for another', () => {
    expect(draws(LOGITS, { seed: 5 }, 50)).toEqual(draws(LOGITS, { seed: 5 }, 50))
    expect(draws(LOGITS, { seed: 5 }, 50)).not.toEqual(draws(LOGITS, { seed: 6 }, 50))
  })

  it('shares its scratch with other requests', () => {
    const scratch = new SamplingScratch(LOGITS.length)
    const logits = Float32Array.from(LOGITS)
    const params = { ...PLAIN, topP: 0.9 }
    const [one, other] = [1, 2].map((seed) => new Sampler({ ...params, seed }, [], scratch))
    const mixed = Array.from({ length: 20 }, () => [one.next(logits), other.next(logits)])
    expect(mixed.map(([token]) => token)).toEqual(draws(LOGITS, { ...params, seed: 1 }, 20))
    expect(mixed.map(([, token]) => token)).toEqual(draws(LOGITS, { ...params, seed: 2 }, 20))
  })

  it.each<[string, Partial<SamplingParams>, number[]]>([
    ['a vanishing temperature', { temperature: Number.MIN_VALUE }, [2, 5]],
    ['a low temperature', { temperature: 1e-30 }, [2, 5]],
    ['top_p 0', { topP: 0 }, [2]],
    ['top_k 1', { topK: 1 }, [2]],
    ['min_p 1', { minP: 1 }, [2, 5]],
    ['a force', { logitBias: new Map([[6, 100]]) }, [6]],
    [
      'a ban of the likeliest',
      {
        temperature: 0.01,
        logitBias: new Map([
          [2, -100],
          [5, -100],
        ]),
      },
      [4],
    ],
    [
      'a ban of all but one',
      { logitBias: new Map([0, 1, 2, 3, 4, 5, 7].map((token) => [token, -100])) },
      [6],
    ],
    [
      'two forces',
      {
        logitBias: new Map([
          [3, 100],
          [7, 100],
        ]),
      },
      [3, 7],
    ],
  ])('%s leaves nothing else', (_, params, possible) => {
    const drawn = new Set(draws(LOGITS, params, 200))
    expect([...drawn].sort()).toEqual(possible)
  })

  it('a ban of all is a ban of none', () => {
    const all = new Map(LOGITS.map((_, token) => [token, -100]))
    expect(draws(LOGITS, { logitBias: all }, 100)).toEqual(draws(LOGITS, {}, 100))
  })

  it('never draws what is impossible, though much else is', () => {
    const logits = LOGITS.map((logit, token) => (token % 3 === 0 ? logit : Number.NEGATIVE_INFINITY))
    for (const params of [{}, { topP: 0.99 }, { topK: 6 }, { topK: 7, topP: 0.999 }]) {
      expect(draws(logits, params, 500).every((token) => token % 3 === 0)).toBe(true)
    }
  })
})

describe.each([
  ['greedy', { temperature: 0 }],
  ['sampling', {}],
])('%s: logits that are none', (_, params) => {
  const { NaN: nan, POSITIVE_INFINITY: infinite, NEGATIVE_INFINITY: never } = Number
  it.each([[[nan, 1, 2]], [[1, 2, nan]], [[nan]], [[never, never]], [[1, infinite]], [[infinite, nan]]])(
    '%j give no token',
    (logits) => {
      expect(() => draws(logits, params, 1)).toThrow(expect.objectContaining({ code: 'logits_not_finite' }))
    },
  )

  it.each([0, 20, 39])('a NaN at %i gives no token, whatever a request changes elsewhere', (place) => {
    const logits = new Float32Array(40).fill(1)
    logits[place] = nan
    for (const token of [0, 1, 17, 38]) {
      const settings = { ...PLAIN, ...params, logitBias: new Map([[token, 5]]) }
      const sampler = new Sampler(settings, [3], new SamplingScratch(logits.length))
      const choose = () => sampler.next(logits, runsOf(logits))
      expect(choose).toThrow(expect.objectContaining({ code: 'logits_not_finite' }))
    }
  })
})
