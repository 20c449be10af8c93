/**
 * @module
 * A model's weights as the reference backend holds them: all in memory, in float32, FFNs cut into their experts.
 */
import type { ModelConfig } from '../../model/config.ts'
import { layerTensor, type WeightSource } from '../../model/weights.ts'
import { colsOf, type Matrix, rowsOf } from './maths.ts'

/** A SwiGLU FFN: down(silu(gate x) · (up x)). */
export interface Ffn {
  readonly gate: Matrix // [units, hidden]
  readonly up: Matrix // [units, hidden]
  readonly down: Matrix // [hidden, units]
}

export interface Layer {
  readonly attentionNorm: Float32Array // [hidden]
  readonly query: Matrix // [heads · headDim, hidden]
  readonly key: Matrix // [kvHeads · headDim, hidden]
  readonly value: Matrix // [kvHeads · headDim, hidden]
  readonly output: Matrix // [hidden, heads · headDim]
  readonly ffnNorm: Float32Array // [hidden]
  /** Absent where every expert is always on. */
  readonly router: { readonly weight: Matrix; readonly bias: Float32Array } | undefined // [experts, hidden], [experts]
  readonly shared: Ffn | undefined
  readonly experts: readonly Ffn[]
}

export interface Model {
  readonly config: ModelConfig
  readonly invFreq: Float32Array // [headDim / 2]
  readonly embedding: Matrix // [vocab, hidden]
  readonly layers: readonly Layer[]
  readonly norm: Float32Array // [hidden]
  readonly head: Matrix // [vocab, hidden]
}

/** Reads all weights. @throws what the source throws */
export async function loadModel(source: WeightSource): Promise<Model> {
  const { config } = source
  const floats = async (name: string): Promise<Float32Array> => (await source.tensor(name)).data
  const matrix = async (name: string): Promise<Matrix> => {
    const { data, shape } = await source.tensor(name)
    return { data, rows: shape[0], cols: shape[1], stride: shape[1], offset: 0 }
  }
  const invFreq = await floats('rope.inv_freq')
  const embedding = await matrix('model.embed_tokens.weight')
  const layers: Layer[] = []
  for (let i = 0; i < config.layers; i++) {
    const name = (part: string) => layerTensor(i, part)
    layers.push({
      attentionNorm: await floats(name('input_layernorm.weight')),
      query: await matrix(name('self_attn.q_proj.weight')),
      key: await matrix(name('self_attn.k_proj.weight')),
      value: await matrix(name('self_attn.v_proj.weight')),
      output: await matrix(name('self_attn.o_proj.weight')),
      ffnNorm: await floats(name('post_attention_layernorm.weight')),
      router:
        config.gate.kind === 'all'
          ? undefined
          : {
              weight: await matrix(name('mlp.router.weight')),
              bias: await floats(name('mlp.router.bias')),
            },
      ...cutExperts(config, {
        gate: await matrix(name('mlp.gate_proj.weight')),
        up: await matrix(name('mlp.up_proj.weight')),
        down: await matrix(name('mlp.down_proj.weight')),
      }),
    })
  }
  const norm = await floats('model.norm.weight')
  const head = config.tiedHead ? embedding : await matrix('lm_head.weight')
  return { config, invFreq, embedding, layers, norm, head }
}

/** An expert is a run of hidden units: rows of gate and up, columns of down. The shared expert's units come first. */
function cutExperts(config: ModelConfig, ffn: Ffn): Pick<Layer, 'shared' | 'experts'> {
  const { sharedUnits, experts, expertUnits } = config
  const cut = (start: number, units: number): Ffn => ({
    gate: rowsOf(ffn.gate, start, units),
    up: rowsOf(ffn.up, start, units),
    down: colsOf(ffn.down, start, units),
  })
  return {
    shared: sharedUnits > 0 ? cut(0, sharedUnits) : undefined,
    experts: Array.from({ length: experts }, (_, e) => cut(sharedUnits + e * expertUnits, expertUnits)),
  }
}
