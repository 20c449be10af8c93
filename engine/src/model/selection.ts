/**
 * @module
 * What a request may change about a gate, and the one form in which every backend takes it.
 */
import { SparsedgeError } from '../errors.ts'
import type { ExpertSelection } from '../request.ts'
import type { ModelConfig } from './config.ts'

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
export function gateRule({ gate, layers, experts }: ModelConfig, asked?: ExpertSelection): GateRule {
  const { selection, offsets } = gate
  const even = (level: number): Float32Array => new Float32Array(layers).fill(level)
  if (asked === undefined) {
    return {
      top: selection.by === 'top_k' ? selection.k : 0,
      levels: even(selection.by === 'threshold' ? selection.eps : 0),
    }
  }
  if ('share' in asked) {
    const shares = Object.entries(offsets ?? {})
    const found = shares.find(([share]) => Number(share) === asked.share)
    // A top-k gate keeps its k whatever the offsets say, so they cannot promise a share of it.
    if (found && selection.by !== 'top_k') return { top: 0, levels: Float32Array.from(found[1]) }
    const all = shares.map(([share]) => share).sort((a, b) => Number(a) - Number(b))
    throw unsupported(
      all.length > 0 && selection.by !== 'top_k'
        ? `this model was not made for a share of ${asked.share}; ask for one of ${all.join(', ')}`
        : 'this model was made for one share of its experts only; leave the share out',
    )
  }
  if ('topK' in asked) {
    if (selection.by !== 'top_k') throw unsupported('this model does not select a fixed number of experts')
    if (Number.isInteger(asked.topK) && asked.topK >= 1 && asked.topK <= experts)
      return { top: asked.topK, levels: even(0) }
    throw unsupported(`this model has ${experts} experts a layer; ask for 1 to ${experts} of them`)
  }
  if (selection.by !== 'threshold') throw unsupported('this model does not select experts by a threshold')
  if (asked.threshold >= 0 && asked.threshold < experts) return { top: 0, levels: even(asked.threshold) }
  throw unsupported(`a threshold must be at least 0 and below ${experts}, or no expert would pass it`)
}

function unsupported(message: string): SparsedgeError {
  return new SparsedgeError('unsupported_selection', message)
}
