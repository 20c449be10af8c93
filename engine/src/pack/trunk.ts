/**
 * @module
 * Which tensors the trunk holds, under which names and in which order. Every quantised matrix has its row scales R
 * beside it, as `<name>.row_scale`.
 */
import { type ModelConfig, qkvRows } from '../model/config.ts'

export interface TrunkTensorShape {
  readonly name: string
  /** [rows, cols] or [length]. */
  readonly shape: readonly number[]
  /** Stored as `q4` or `q8`; the others as `f32`. */
  readonly quantised: boolean
}

/**
 * The trunk of a model, in the order a forward pass reads it.
 *
 * | name | shape |
 * |---|---|
 * | `rope.inv_freq` | [headDim / 2] |
 * | `embed` | [vocab, hidden]; also the head where it is tied |
 * | `layers.{i}.attention.norm`, `layers.{i}.ffn.norm` | [hidden] |
 * | `layers.{i}.attention.qkv` | [(heads + 2 kvHeads) · headDim, hidden]: queries, keys, values |
 * | `layers.{i}.attention.output` | [hidden, heads · headDim] |
 * | `layers.{i}.gate.weight`, `layers.{i}.gate.bias` | [experts, hidden], [experts] |
 * | `layers.{i}.shared.gate_up`, `layers.{i}.shared.down` | [2 · sharedUnits, hidden], [hidden, sharedUnits] |
 * | `layers.{i}.experts.gate_up.row_scale` | [experts, 2 · expertUnits]: per expert its gate rows, then its up rows |
 * | `layers.{i}.down.row_scale` | [hidden]: one for the shared and every routed expert's slice |
 * | `norm` | [hidden] |
 * | `head` | [vocab, hidden], where it is not tied |
 */
export function trunkTensors(config: ModelConfig): TrunkTensorShape[] {
  const { hidden, vocab, headDim, heads, experts, expertUnits, sharedUnits } = config
  const list: TrunkTensorShape[] = []
  const float = (name: string, ...shape: number[]) => list.push({ name, shape, quantised: false })
  const matrix = (name: string, rows: number, cols: number) => {
    float(rowScale(name), rows)
    list.push({ name, shape: [rows, cols], quantised: true })
  }
  float('rope.inv_freq', headDim / 2)
  matrix('embed', vocab, hidden)
  for (let i = 0; i < config.layers; i++) {
    const layer = `layers.${i}`
    float(`${layer}.attention.norm`, hidden)
    matrix(`${layer}.attention.qkv`, qkvRows(config), hidden)
    matrix(`${layer}.attention.output`, hidden, heads * headDim)
    float(`${layer}.ffn.norm`, hidden)
    if (config.gate.kind !== 'all') {
      float(`${layer}.gate.weight`, experts, hidden)
      float(`${layer}.gate.bias`, experts)
    }
    float(`${layer}.down.row_scale`, hidden)
    float(`${layer}.experts.gate_up.row_scale`, experts, 2 * expertUnits)
    if (sharedUnits > 0) {
      matrix(`${layer}.shared.gate_up`, 2 * sharedUnits, hidden)
      // Its row scales are the layer's `down.row_scale`, like those of every routed expert.
      list.push({ name: `${layer}.shared.down`, shape: [hidden, sharedUnits], quantised: true })
    }
  }
  float('norm', hidden)
  if (!config.tiedHead) matrix('head', vocab, hidden)
  return list
}

/** The name of a quantised matrix's row scales. */
export const rowScale = (name: string): string => `${name}.row_scale`
