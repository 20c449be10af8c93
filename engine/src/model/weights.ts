/**
 * @module
 * The names and shapes of a model's tensors in float, as a checkpoint states them and as the reference backend reads
 * them. Llama names as Hugging Face writes them; FFN rows stand in expert order.
 */
import type { ModelConfig } from './config.ts'

/** A dense tensor, row-major. */
export interface FloatTensor {
  readonly shape: readonly number[]
  readonly data: Float32Array
}

/**
 * Where float weights come from: a checkpoint on disk, or a pack dequantised.
 *
 * | name | shape |
 * |---|---|
 * | `model.embed_tokens.weight` | [vocab, hidden] |
 * | `model.layers.{i}.input_layernorm.weight`, `…post_attention_layernorm.weight` | [hidden] |
 * | `model.layers.{i}.self_attn.{q,k,v}_proj.weight` | [heads·headDim or kvHeads·headDim, hidden], rotate-half RoPE order |
 * | `model.layers.{i}.self_attn.o_proj.weight` | [hidden, heads·headDim] |
 * | `model.layers.{i}.mlp.{gate,up}_proj.weight` | [sharedUnits + experts·expertUnits, hidden]: shared rows first, then expert 0, 1, … |
 * | `model.layers.{i}.mlp.down_proj.weight` | [hidden, sharedUnits + experts·expertUnits] |
 * | `model.layers.{i}.mlp.router.weight`, `…router.bias` | [experts, hidden], [experts]; absent where the gate kind is `all` |
 * | `model.norm.weight` | [hidden] |
 * | `lm_head.weight` | [vocab, hidden]; absent where the head is tied |
 * | `rope.inv_freq` | [headDim / 2], all RoPE scaling already applied |
 */
export interface WeightSource {
  readonly config: ModelConfig
  /** @throws SparsedgeError `manifest_malformed` if there is no tensor of that name. */
  tensor(name: string): Promise<FloatTensor>
}

export const layerTensor = (layer: number, name: string): string => `model.layers.${layer}.${name}`

/** The shape that {@link WeightSource.tensor} must return for `name`, or undefined where the model has no such tensor. */
export function tensorShape(config: ModelConfig, name: string): readonly number[] | undefined {
  const { hidden, vocab, heads, kvHeads, headDim, experts } = config
  const ffn = config.sharedUnits + experts * config.expertUnits
  const routed = config.gate.kind !== 'all'
  switch (name.replace(/^model\.layers\.\d+\./, '')) {
    case 'model.embed_tokens.weight':
      return [vocab, hidden]
    case 'lm_head.weight':
      return config.tiedHead ? undefined : [vocab, hidden]
    case 'model.norm.weight':
    case 'input_layernorm.weight':
    case 'post_attention_layernorm.weight':
      return [hidden]
    case 'self_attn.q_proj.weight':
      return [heads * headDim, hidden]
    case 'self_attn.k_proj.weight':
    case 'self_attn.v_proj.weight':
      return [kvHeads * headDim, hidden]
    case 'self_attn.o_proj.weight':
      return [hidden, heads * headDim]
    case 'mlp.gate_proj.weight':
    case 'mlp.up_proj.weight':
      return [ffn, hidden]
    case 'mlp.down_proj.weight':
      return [hidden, ffn]
    case 'mlp.router.weight':
      return routed ? [experts, hidden] : undefined
    case 'mlp.router.bias':
      return routed ? [experts] : undefined
    case 'rope.inv_freq':
      return [headDim / 2]
  }
  return undefined
}

/** All tensor names of a model, in the order a forward pass reads them. */
export function tensorNames(config: ModelConfig): string[] {
  const names = ['rope.inv_freq', 'model.embed_tokens.weight']
  for (let layer = 0; layer < config.layers; layer++) {
    for (const name of LAYER_TENSORS) names.push(layerTensor(layer, name))
  }
  names.push('model.norm.weight', 'lm_head.weight')
  return names.filter((name) => tensorShape(config, name) !== undefined)
}

const LAYER_TENSORS = [
  'input_layernorm.weight',
  'self_attn.q_proj.weight',
  'self_attn.k_proj.weight',
  'self_attn.v_proj.weight',
  'self_attn.o_proj.weight',
  'post_attention_layernorm.weight',
  'mlp.router.weight',
  'mlp.router.bias',
  'mlp.gate_proj.weight',
  'mlp.up_proj.weight',
  'mlp.down_proj.weight',
]
