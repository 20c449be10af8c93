/**
 * @module
 * What a DS-MoE language model is, in numbers: the shapes and formulas that the trainer, the packer and every backend
 * share. The schema is the single definition; the manifest embeds it unchanged.
 */
import { z } from 'zod'

/** Far above any model, and low enough for kernels that count in 32 bits. */
const count = z
  .int()
  .positive()
  .max(2 ** 24)

/**
 * How a gate turns its source into one weight per expert. With z = router.weight · source + router.bias:
 * - `all`: g_i = 1 (a dense FFN cut into experts; there is no router)
 * - `softmax`: p = softmax(z) over all experts, g_i = p_i for the selected ones, not renormalised (arXiv 2404.05567, eq. 1)
 * - `softmax_renormalised`: the same, divided by the sum over the selected ones (Mixtral and its kin)
 * - `clamped_linear`: g_i = min(max(z_i, 0), 1); an expert with g_i = 0 is off
 */
export const GateKind = z.enum(['all', 'softmax', 'softmax_renormalised', 'clamped_linear'])

/**
 * Which experts run:
 * - `all`: every one
 * - `top_k`: the k largest z (ties: the lower index wins)
 * - `threshold`: those with N · p_i > eps, N the number of experts (arXiv 2404.05567, section 3.3)
 * - `positive`: those with z_i > 0
 */
export const Selection = z.discriminatedUnion('by', [
  z.strictObject({ by: z.literal('all') }),
  z.strictObject({ by: z.literal('top_k'), k: count }),
  z.strictObject({ by: z.literal('threshold'), eps: z.number().min(1e-6) }),
  z.strictObject({ by: z.literal('positive') }),
])

export const GateConfig = z
  .strictObject({
    kind: GateKind,
    /** `own`: the layer's normed FFN input. `previous`: that of the layer before, so that a layer's experts are known
     * one layer early; layer 0 always reads its own. */
    source: z.enum(['own', 'previous']),
    selection: Selection,
    /** share → one offset per layer, added to z (clamped_linear) or replacing eps (softmax with a threshold). */
    offsets: z.record(z.string(), z.array(z.number())).optional(),
  })
  .refine((gate) => selectionFits(gate.kind, gate.selection.by), {
    message: 'this kind of gate cannot select that way',
  })

function selectionFits(kind: z.infer<typeof GateKind>, by: z.infer<typeof Selection>['by']): boolean {
  if (kind === 'all') return by === 'all'
  if (kind === 'clamped_linear') return by === 'positive'
  return by === 'top_k' || by === 'threshold'
}

export const ModelConfig = z
  .strictObject({
    layers: count.max(1024),
    hidden: count,
    heads: count,
    kvHeads: count,
    /** Above 2,064 an integer product of a query and a key leaves 32 bits (engine/assembly/attention.ts). */
    headDim: count.multipleOf(16).max(2064),
    /** Routed experts of each layer, numbered in 16 bits, and the hidden units of each. */
    experts: count.max(2 ** 16),
    expertUnits: count.multipleOf(32),
    /** Hidden units of the shared expert, which is always on and lives in the trunk; 0 if there is none. */
    sharedUnits: z
      .int()
      .nonnegative()
      .max(2 ** 24)
      .multipleOf(32),
    vocab: count,
    /** The head is the embedding itself. */
    tiedHead: z.boolean(),
    normEps: z.number().min(1e-12).max(1),
    /** Multiplies every rotated query and key (YaRN); 1 elsewhere. Frequencies are a trunk tensor. */
    ropeScale: z
      .number()
      .min(1 / 64)
      .max(64),
    /** Longest sequence the model was trained for, in tokens. */
    context: count,
    gate: GateConfig,
    /** What a chat template calls `bos_token`; whether a plain text begins with it, tokenizer.json says. */
    bosToken: z.int().nonnegative().optional(),
    /** Tokens that end a generation. */
    eosTokens: z.array(z.int().nonnegative()),
  })
  .refine((c) => c.heads % c.kvHeads === 0, { message: 'heads must be a multiple of kvHeads' })
  .refine((c) => c.hidden % 32 === 0 && (c.heads * c.headDim) % 32 === 0, {
    message: 'hidden and heads * headDim must be multiples of 32, the quantisation block',
  })
  .refine(({ gate: { selection }, experts }) => selection.by !== 'top_k' || selection.k <= experts, {
    message: 'top_k cannot select more experts than there are',
    path: ['gate', 'selection', 'k'],
  })
  .refine(({ gate: { selection }, experts }) => selection.by !== 'threshold' || selection.eps < experts, {
    message: 'no expert passes a threshold that is not below their number',
    path: ['gate', 'selection', 'eps'],
  })
  .refine((c) => [...c.eosTokens, c.bosToken ?? 0].every((token) => token < c.vocab), {
    message: 'bosToken and eosTokens must be below vocab',
  })
  .refine((c) => Object.values(c.gate.offsets ?? {}).every((o) => o.length === c.layers), {
    message: 'gate.offsets needs one number per layer',
  })

export type GateConfig = z.infer<typeof GateConfig>
export type GateKind = z.infer<typeof GateKind>
export type Selection = z.infer<typeof Selection>
export type ModelConfig = z.infer<typeof ModelConfig>

/** Rows of the fused query-key-value projection: all query heads, then key heads, then value heads. */
export function qkvRows(config: ModelConfig): number {
  return (config.heads + 2 * config.kvHeads) * config.headDim
}
