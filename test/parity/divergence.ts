/**
 * @module
 * How far two next-token distributions are apart.
 */

/** log softmax in float64. @param logits [vocab] */
export function logProbabilities(logits: Float32Array): Float64Array {
  let max = Number.NEGATIVE_INFINITY
  for (const logit of logits) max = Math.max(max, logit)
  let sum = 0
  for (const logit of logits) sum += Math.exp(logit - max)
  const shift = max + Math.log(sum)
  return Float64Array.from(logits, (logit) => logit - shift)
}

/** Kullback-Leibler divergence Σ p (log p - log q), in nats. @param p log-probabilities, [vocab], as is q */
export function divergence(p: Float64Array, q: Float64Array): number {
  let sum = 0
  for (let i = 0; i < p.length; i++) sum += Math.exp(p[i]) * (p[i] - q[i])
  return sum
}

/**
 * The same where p is known for some tokens only: all others count as one. Never more than the full divergence.
 *
 * @param tokens the tokens that p knows
 * @param p their log-probabilities
 * @param q log-probabilities, [vocab]
 */
export function partialDivergence(tokens: Uint16Array, p: Float32Array, q: Float64Array): number {
  let sum = 0
  let restP = 1
  let restQ = 1
  for (const [i, token] of tokens.entries()) {
    sum += Math.exp(p[i]) * (p[i] - q[token])
    restP -= Math.exp(p[i])
    restQ -= Math.exp(q[token])
  }
  // What is left of a sum near 1 may be rounding and no probability at all.
  return sum + (restP > 1e-6 ? restP * Math.log(restP / Math.max(restQ, 1e-6)) : 0)
}

/** The index of the largest number; of equals the first. */
export function argmax(numbers: ArrayLike<number>): number {
  let best = 0
  for (let i = 1; i < numbers.length; i++) if (numbers[i] > numbers[best]) best = i
  return best
}
