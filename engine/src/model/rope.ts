/**
 * @module
 * The frequencies of rotary position embeddings, with the context extensions that Llama-like checkpoints use. A pack
 * stores the result as `rope.inv_freq`, so that no backend knows these formulas.
 */
import { z } from 'zod'

const factor = z.number().positive()
const context = z.int().positive()

/**
 * `rope_scaling` of a Hugging Face config.json (`rope_parameters` since transformers 5). Older files say `type` where
 * newer ones say `rope_type`. Other methods are refused rather than approximated.
 */
export const RopeScaling = z.preprocess(
  (value) => (isRecord(value) && !('rope_type' in value) ? { ...value, rope_type: value.type } : value),
  z.discriminatedUnion('rope_type', [
    z.object({ rope_type: z.literal('default') }),
    /** Positions divided by the factor. */
    z.object({ rope_type: z.literal('linear'), factor }),
    /** Llama 3.1: long wavelengths divided by the factor, short ones kept, a linear blend between. */
    z.object({
      rope_type: z.literal('llama3'),
      factor,
      low_freq_factor: z.number().positive(),
      high_freq_factor: z.number().positive(),
      original_max_position_embeddings: context,
    }),
    /** YaRN, arXiv 2309.00071. */
    z.object({
      rope_type: z.literal('yarn'),
      factor,
      original_max_position_embeddings: context,
      attention_factor: z.number().positive().nullish(),
      beta_fast: z.number().positive().nullish(),
      beta_slow: z.number().positive().nullish(),
      mscale: z.number().nullish(),
      mscale_all_dim: z.number().nullish(),
      truncate: z.boolean().nullish(),
    }),
  ]),
)
export type RopeScaling = z.infer<typeof RopeScaling>
type Llama3 = Extract<RopeScaling, { rope_type: 'llama3' }>
type Yarn = Extract<RopeScaling, { rope_type: 'yarn' }>

export interface RopeFrequencies {
  /** Radians per position, [headDim / 2], highest first. */
  readonly invFreq: Float32Array
  /** Multiplies every rotated query and key; 1 but for YaRN. */
  readonly ropeScale: number
}

/**
 * Frequencies of a model's rotary embedding: pair i of a head (components i and i + headDim/2) turns by
 * position · invFreq[i]. Computed in float64, rounded once.
 *
 * @param rope `theta` is the base (`rope_theta`), `scaling` a parsed {@link RopeScaling}
 */
export function ropeFrequencies(rope: {
  readonly theta: number
  readonly headDim: number
  readonly scaling?: RopeScaling | undefined
}): RopeFrequencies {
  const { theta, headDim, scaling } = rope
  const plain = Float64Array.from({ length: headDim / 2 }, (_, i) => theta ** ((-2 * i) / headDim))
  switch (scaling?.rope_type) {
    case 'linear':
      return { invFreq: Float32Array.from(plain, (f) => f / scaling.factor), ropeScale: 1 }
    case 'llama3':
      return { invFreq: Float32Array.from(plain, (f) => llama3(f, scaling)), ropeScale: 1 }
    case 'yarn':
      return { invFreq: yarn(plain, theta, scaling), ropeScale: yarnScale(scaling) }
  }
  return { invFreq: Float32Array.from(plain), ropeScale: 1 }
}

function llama3(frequency: number, s: Llama3): number {
  // Turns that this pair makes over the original context: many turns mean local order, which must not be stretched.
  const turns = (s.original_max_position_embeddings * frequency) / (2 * Math.PI)
  const keep = clamp01((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor))
  return frequency * (keep + (1 - keep) / s.factor)
}

/** "NTK by parts": pairs below `low` are kept, those above `high` divided by the factor, linear between. */
function yarn(plain: Float64Array, theta: number, s: Yarn): Float32Array {
  const headDim = plain.length * 2
  // The (fractional) pair that makes this many turns over the original context.
  const pairWithTurns = (turns: number) =>
    (headDim * Math.log(s.original_max_position_embeddings / (turns * 2 * Math.PI))) / (2 * Math.log(theta))
  let low = pairWithTurns(s.beta_fast ?? 32)
  let high = pairWithTurns(s.beta_slow ?? 1)
  if (s.truncate ?? true) {
    low = Math.floor(low)
    high = Math.ceil(high)
  }
  low = Math.max(low, 0)
  high = Math.min(high, headDim - 1)
  const width = high === low ? 0.001 : high - low
  return Float32Array.from(plain, (frequency, pair) => {
    const keep = 1 - clamp01((pair - low) / width)
    return frequency * (keep + (1 - keep) / s.factor)
  })
}

/** The temperature of YaRN's attention, as a factor of queries and keys each. */
function yarnScale(s: Yarn): number {
  if (s.attention_factor) return s.attention_factor
  const magnitude = (mscale: number) => (s.factor <= 1 ? 1 : 0.1 * mscale * Math.log(s.factor) + 1)
  return s.mscale && s.mscale_all_dim ? magnitude(s.mscale) / magnitude(s.mscale_all_dim) : magnitude(1)
}

const clamp01 = (x: number): number => Math.min(Math.max(x, 0), 1)

const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null
