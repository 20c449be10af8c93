/**
 * @module
 * The gate: from one score z per expert to one weight per expert. An expert whose weight is 0 is off; the others are
 * routed. This is the definition that every backend is held to.
 */
import type { GateKind } from './config.ts'

/**
 * Gate weights of one token in one layer. Nothing is allocated.
 *
 * @param top softmax gates: keep the k largest z (ties: the lower index wins); 0: keep those with N · p > level
 * @param level of the layer, see {@link GateRule}: added to z where the gate is clamped linear, eps where a softmax is cut
 * by a threshold
 * @param z scores, [experts]: router.weight · source + router.bias; not read where the kind is `all`
 * @param weights receives g, [experts]; g_i = 0 where expert i is off
 */
export function gateWeights(
  kind: GateKind,
  top: number,
  level: number,
  z: Float32Array,
  weights: Float32Array,
): void {
  switch (kind) {
    case 'all':
      weights.fill(1)
      return
    case 'clamped_linear':
      for (let i = 0; i < z.length; i++) weights[i] = Math.min(Math.max(z[i] + level, 0), 1)
      return
    case 'softmax':
      softmax(z, weights)
      keepSelected(top, level, z, weights)
      return
    case 'softmax_renormalised':
      softmax(z, weights)
      keepSelected(top, level, z, weights)
      renormalise(weights)
  }
}

/** p_i = exp(z_i) / Σ exp(z_j), over all experts. */
function softmax(z: Float32Array, p: Float32Array): void {
  let max = Number.NEGATIVE_INFINITY
  for (let i = 0; i < z.length; i++) max = Math.max(max, z[i])
  let sum = 0
  for (let i = 0; i < z.length; i++) {
    p[i] = Math.exp(z[i] - max)
    sum += p[i]
  }
  for (let i = 0; i < z.length; i++) p[i] /= sum
}

/** Zeroes the probabilities of the experts that are not selected. */
function keepSelected(top: number, eps: number, z: Float32Array, p: Float32Array): void {
  if (top > 0) {
    for (let i = 0; i < z.length; i++) if (rank(z, i) >= top) p[i] = 0
  } else {
    // The largest p is at least 1/N, so that below eps = 1 one expert always stays.
    for (let i = 0; i < p.length; i++) if (p.length * p[i] <= eps) p[i] = 0
  }
}

/** How many experts come before expert i: those with a larger z, and of equals those with a lower index. */
function rank(z: Float32Array, i: number): number {
  let before = 0
  for (let j = 0; j < z.length; j++) if (z[j] > z[i] || (z[j] === z[i] && j < i)) before++
  return before
}

/** Makes the selected weights sum to 1; if none is selected (a threshold above 1) they stay 0. */
function renormalise(p: Float32Array): void {
  let sum = 0
  for (let i = 0; i < p.length; i++) sum += p[i]
  if (sum > 0) for (let i = 0; i < p.length; i++) p[i] /= sum
}
