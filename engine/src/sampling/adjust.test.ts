import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { GREEDY, type SamplingParams } from '../request.ts'
import { Adjustment } from './adjust.ts'

const VOCAB = 6

function adjusted(params: Partial<SamplingParams>, prompt: number[], output: number[], logits: number[]) {
  const adjustment = new Adjustment({ ...GREEDY, ...params }, prompt, logits.length)
  for (const token of output) adjustment.add(token)
  const result = Float32Array.from(logits)
  adjustment.apply(result)
  return [...result]
}

describe('apply', () => {
  // The prompt held 0 and 4; the output 2 once and 5 twice.
  it.each<[string, Partial<SamplingParams>, number[]]>([
    ['repetition, of prompt and output', { repetitionPenalty: 2 }, [1, -0.5, 1.5, 4, -10, 1.5]],
    ['presence, of output only', { presencePenalty: 0.5 }, [2, -0.5, 2.5, 4, -5, 2.5]],
    ['frequency, of output only', { frequencyPenalty: 0.5 }, [2, -0.5, 2.5, 4, -5, 2]],
    ['a presence that is wanted', { presencePenalty: -1 }, [2, -0.5, 4, 4, -5, 4]],
    [
      'biases',
      {
        logitBias: new Map([
          [0, 100],
          [4, -100],
        ]),
      },
      [102, -0.5, 3, 4, -105, 3],
    ],
    [
      'a bias after the penalties',
      { repetitionPenalty: 2, logitBias: new Map([[0, -4]]) },
      [-3, -0.5, 1.5, 4, -10, 1.5],
    ],
  ])('%s', (_, params, expected) => {
    expect(adjusted(params, [0, 4, 0], [2, 5, 5], [2, -0.5, 3, 4, -5, 3])).toEqual(expected)
  })

  it('is what its definition says, token by token', () => {
    const tokens = fc.array(fc.nat(VOCAB - 1), { maxLength: 10 })
    const penalty = fc.double({ min: -2, max: 2, noNaN: true })
    fc.assert(
      fc.property(
        tokens,
        tokens,
        fc.double({ min: 0.1, max: 5, noNaN: true }),
        penalty,
        penalty,
        (prompt, output, rep, presence, frequency) => {
          const logits = [3, -2, 0, 1, -1, 8]
          const params = { repetitionPenalty: rep, presencePenalty: presence, frequencyPenalty: frequency }
          const expected = logits.map((logit, token) => {
            const times = output.filter((other) => other === token).length
            const seen = times > 0 || prompt.includes(token)
            const repeated = seen ? (logit > 0 ? logit / rep : logit * rep) : logit
            return repeated - frequency * times - (times > 0 ? presence : 0)
          })
          const result = adjusted(params, prompt, output, logits)
          for (const [token, logit] of expected.entries()) expect(result[token]).toBeCloseTo(logit, 4)
        },
      ),
    )
  })
})

describe('active', () => {
  it.each([
    [{}, false],
    [{ repetitionPenalty: 1.1 }, true],
    [{ presencePenalty: 0.1 }, true],
    [{ frequencyPenalty: -0.1 }, true],
    [{ logitBias: new Map([[1, 1]]) }, true],
  ])('%j: %s', (params, active) => {
    expect(new Adjustment({ ...GREEDY, ...params }, [], VOCAB).active).toBe(active)
  })
})

it.each([-1, VOCAB, 0.5, Number.NaN])('a bias of token %d is refused', (token) => {
  const params = { ...GREEDY, logitBias: new Map([[token, 1]]) }
  expect(() => new Adjustment(params, [], VOCAB)).toThrow(
    expect.objectContaining({ code: 'invalid_request' }),
  )
})
