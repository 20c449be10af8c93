/**
 * @module
 * What a request may change about a gate, and the one form in which every backend takes it.
 */
import { SparsedgeError } from '../errors.ts'
import type { ExpertSelection } from '../request.ts'
import type { GateConfig, ModelConfig } from './config.ts'

/** A gate's selection in numbers; what they mean depends on the gate's kind, see {@link gateWeights}. */
export interface GateRule {
  /** How many experts are kept; 0 where `levels` decide. */
  readonly top: number
  /** One number per layer, [layers]. */
  readonly levels: Float32Array
}

/**
 * The rule for a request, or the model's own.
 *
 * Shares are those that the pack was made for, and no other: between two of them the thresholds would have to be guessed,
 * and what the manifest says about quality would not hold.
 *
 * @throws SparsedgeError `unsupported_selection` for what the pack cannot do, with what it can
 */
export function gateRule(config: ModelConfig, asked?: ExpertSelection): GateRule {
  const { gate, layers, experts } = config
  const { selection } = gate
  const even = (level: number): Float32Array => new Float32Array(layers).fill(level)
  if (asked === undefined) {
    return {
      top: selection.by === 'top_k' ? selection.k : 0,
      levels: even(selection.by === 'threshold' ? selection.eps : 0),
    }
  }
  if ('share' in asked) {
    const found = sharesOf(gate).find(([share]) => share === asked.share)
    if (found) return { top: 0, levels: Float32Array.from(found[1]) }
    throw unsupported(`this model was not made for a share of ${asked.share}; ${offer(config)}`)
  }
  if ('topK' in asked) {
    if (selection.by !== 'top_k')
      throw unsupported(`this model does not select a fixed number of experts; ${offer(config)}`)
    if (Number.isInteger(asked.topK) && asked.topK >= 1 && asked.topK <= experts)
      return { top: asked.topK, levels: even(0) }
    throw unsupported(`this model has ${experts} experts a layer; ask for 1 to ${experts} of them`)
  }
  if (selection.by !== 'threshold')
    throw unsupported(`this model does not select experts by a threshold; ${offer(config)}`)
  if (asked.threshold >= 0 && asked.threshold < experts) return { top: 0, levels: even(asked.threshold) }
  throw unsupported(`a threshold must be at least 0 and below ${experts}, or no expert would pass it`)
}

/**
 * The shares that the pack was made for, the smallest first, with their levels. A top-k gate keeps its k whatever the
 * offsets say: they promise no share of it.
 */
export function sharesOf({ selection, offsets = {} }: GateConfig): [share: number, levels: number[]][] {
  if (selection.by === 'top_k') return []
  return Object.entries(offsets)
    .map(([share, levels]): [number, number[]] => [Number(share), levels])
    .sort(([a], [b]) => a - b)
}

/** What may be asked for instead. */
function offer({ gate, experts }: ModelConfig): string {
  const shares = sharesOf(gate).map(([share]) => share)
  if (shares.length > 0) return `ask for a share, one of ${shares.join(', ')}`
  switch (gate.selection.by) {
    case 'top_k':
      return `ask for a number of experts (top_k), from 1 to ${experts}`
    case 'threshold':
      return `ask for a threshold, from 0 to below ${experts}`
    default:
      return 'it has only its own selection; leave this out'
  }
}

function unsupported(message: string): SparsedgeError {
  return new SparsedgeError('unsupported_selection', message)
}
