/**
 * @module
 * The gate: from one score z per expert to one weight per expert. An expert whose weight is 0 is off; the others are
 * routed. This is the definition that every backend is held to.
 */
import type { GateConfig, Selection } from './config.ts'

/**
 * Gate weights of one token in one layer. Nothing is allocated.
 *
 * @param z scores, [experts]: router.weight · source + router.bias; not read where the kind is `all`
 * @param weights receives g, [experts]; g_i = 0 where expert i is off
 */
export function gateWeights(gate: GateConfig, z: Float32Array, weights: Float32Array): void {
  switch (gate.kind) {
    case 'all':
      weights.fill(1)
      return
    case 'clamped_linear':
      for (let i = 0; i < z.length; i++) weights[i] = Math.min(Math.max(z[i], 0), 1)
      return
    case 'softmax':
      softmax(z, weights)
      keepSelected(gate.selection, z, weights)
      return
    case 'softmax_renormalised':
      softmax(z, weights)
      keepSelected(gate.selection, z, weights)
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
function keepSelected(selection: Selection, z: Float32Array, p: Float32Array): void {
  if (selection.by === 'top_k') {
    for (let i = 0; i < z.length; i++) if (rank(z, i) >= selection.k) p[i] = 0
  } else if (selection.by === 'threshold') {
    // The largest p is at least 1/N, so that below eps = 1 one expert always stays.
    for (let i = 0; i < p.length; i++) if (p.length * p[i] <= selection.eps) p[i] = 0
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
