/**
 * @module
 * The reference against PyTorch on the exact weights of the checkpoint that the shipped pack was made from: logits and,
 * which no other golden has, the experts of every layer and position.
 */
import type { ReferenceBackend } from '@sparsedge/engine/backends/reference/index'
import { z } from 'zod'
import { argmax } from './divergence.ts'
import { golden } from './shipped.ts'

const Golden = z.object({
  ids: z.array(z.int()),
  /** Tokens and their logits after the last position. */
  top: z.array(z.tuple([z.int(), z.number()])).length(20),
  /** The likeliest next token after every position. */
  likeliest: z.array(z.int()),
  /** Bit masks of routed experts in hex, [layers][positions]. */
  routed: z.array(
    z.array(
      z
        .string()
        .regex(/^[0-9a-f]+$/)
        .transform((hex) => BigInt(`0x${hex}`)),
    ),
  ),
})
export type CheckpointGolden = z.infer<typeof Golden>

export interface CheckpointResult {
  /** |logit - golden logit| of the 20 tokens. */
  readonly differences: readonly { readonly token: number; readonly difference: number }[]
  readonly positions: number
  /** Positions with the same likeliest token. */
  readonly agreeing: number
  /** Layers x positions, and those with the same routed set. */
  readonly sets: number
  readonly equalSets: number
  /** Layers x positions x experts, and those that are on in both or off in both. */
  readonly decisions: number
  readonly equalDecisions: number
  /** Largest |z| of an expert that is on here and off there, or the other way round. */
  readonly largestDisputed: number
}

/** What test/goldens/checkpoint.py wrote. */
export function checkpointGoldens(): Promise<CheckpointGolden[]> {
  return golden('checkpoint.golden.json', z.array(Golden))
}

export function compareCheckpoint(
  backend: ReferenceBackend,
  { ids, top, likeliest, routed }: CheckpointGolden,
): CheckpointResult {
  const { vocab, experts } = backend.config
  const sequence = backend.open(ids.length)
  const { logits, gates } = backend.trace(sequence, Int32Array.from(ids))
  sequence.close()

  const last = logits.subarray(-vocab)
  const agreeing = likeliest.filter(
    (token, t) => argmax(logits.subarray(t * vocab, (t + 1) * vocab)) === token,
  )
  let equalSets = 0
  let disputes = 0
  let largestDisputed = 0
  for (const [layer, { scores, weights }] of gates.entries()) {
    for (const [t, mask] of routed[layer].entries()) {
      let equal = true
      for (let e = 0; e < experts; e++) {
        const at = t * experts + e
        if (weights[at] > 0 === Boolean(mask & (1n << BigInt(e)))) continue
        equal = false
        disputes++
        largestDisputed = Math.max(largestDisputed, Math.abs(scores[at]))
      }
      if (equal) equalSets++
    }
  }
  const sets = routed.length * ids.length
  return {
    differences: top.map(([token, logit]) => ({ token, difference: Math.abs(last[token] - logit) })),
    positions: ids.length,
    agreeing: agreeing.length,
    sets,
    equalSets,
    decisions: sets * experts,
    equalDecisions: sets * experts - disputes,
    largestDisputed,
  }
}
