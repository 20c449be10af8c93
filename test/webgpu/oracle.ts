/**
 * @module
 * onnxruntime as a judge: a model's graph with float weights, on onnxruntime's own CPU kernels.
 */
import type { Logits } from '@sparsedge/engine/backends/backend'
import {
  addModel,
  gateInputs,
  INPUT,
  type Matrix,
  OUTPUT,
  type Weights,
} from '@sparsedge/engine/backends/webgpu/graph'
import { Graph } from '@sparsedge/engine/backends/webgpu/onnx'
import { type GateRule, gateRule } from '@sparsedge/engine/model/selection'
import { layerTensor, type WeightSource } from '@sparsedge/engine/model/weights'
import * as ort from 'onnxruntime-web/wasm'

ort.env.wasm.numThreads = 1

/** Runs tokens, in steps of the given sizes. @returns the logits after each step */
export async function oracleLogits(
  source: WeightSource,
  tokens: Int32Array,
  sizes: readonly number[],
  rule: GateRule = gateRule(source.config),
): Promise<Logits[]> {
  const { config } = source
  const graph = new Graph()
  const weights = await floatWeights(source)
  addModel(graph, config, weights, config.context)
  const gates = Object.fromEntries(
    gateInputs(config, weights, rule).map((numbers, layer) => [
      INPUT.gate(layer),
      new ort.Tensor('float32', numbers, [numbers.length]),
    ]),
  )
  const session = await ort.InferenceSession.create(graph.model())
  try {
    const cache: Record<string, ort.Tensor> = {}
    for (let layer = 0; layer < config.layers; layer++) {
      for (const name of [INPUT.keys(layer), INPUT.values(layer)]) {
        cache[name] = new ort.Tensor('float32', new Float32Array(0), [1, config.kvHeads, 0, config.headDim])
      }
    }
    const logits: Logits[] = []
    let at = 0
    for (const size of sizes) {
      const total = at + size
      const results = await session.run({
        [INPUT.tokens]: new ort.Tensor('int32', tokens.slice(at, total), [1, size]),
        [INPUT.last]: new ort.Tensor('int32', Int32Array.of(total - 1), [1]),
        [INPUT.total]: new ort.Tensor('int32', Int32Array.of(total), [1]),
        ...gates,
        ...cache,
      })
      for (let layer = 0; layer < config.layers; layer++) {
        cache[INPUT.keys(layer)] = results[OUTPUT.keys(layer)]
        cache[INPUT.values(layer)] = results[OUTPUT.values(layer)]
      }
      const { data } = results[OUTPUT.logits]
      if (!(data instanceof Float32Array)) throw new TypeError('logits are not float32')
      logits.push(data)
      at = total
    }
    return logits
  } finally {
    await session.release()
  }
}

/** All weights as float constants, each matrix transposed as MatMul wants it. */
async function floatWeights(source: WeightSource): Promise<Weights> {
  const { config } = source
  const { sharedUnits, experts, expertUnits, hidden } = config
  const tensors = new Map<string, Float32Array>()
  const put = async (name: string, tensor: string) => {
    tensors.set(name, (await source.tensor(tensor)).data)
  }
  await put('rope.inv_freq', 'rope.inv_freq')
  await put('embed', 'model.embed_tokens.weight')
  if (!config.tiedHead) await put('head', 'lm_head.weight')
  await put('norm', 'model.norm.weight')
  for (let layer = 0; layer < config.layers; layer++) {
    const to = (part: string) => `layers.${layer}.${part}`
    const from = (part: string) => layerTensor(layer, part)
    await put(to('attention.norm'), from('input_layernorm.weight'))
    await put(to('ffn.norm'), from('post_attention_layernorm.weight'))
    await put(to('attention.output'), from('self_attn.o_proj.weight'))
    const parts = await Promise.all(
      ['q', 'k', 'v'].map(async (part) => (await source.tensor(from(`self_attn.${part}_proj.weight`))).data),
    )
    tensors.set(to('attention.qkv'), Float32Array.from(parts.flatMap((part) => [...part])))
    if (config.gate.kind !== 'all') {
      await put(to('gate.weight'), from('mlp.router.weight'))
      await put(to('gate.bias'), from('mlp.router.bias'))
    }
    const width = sharedUnits + experts * expertUnits
    for (const part of ['gate', 'up']) {
      const { data } = await source.tensor(from(`mlp.${part}_proj.weight`))
      tensors.set(to(`shared.${part}`), data.subarray(0, sharedUnits * hidden))
      tensors.set(to(`experts.${part}`), data.subarray(sharedUnits * hidden))
    }
    const { data } = await source.tensor(from('mlp.down_proj.weight'))
    tensors.set(
      to('shared.down'),
      data.filter((_, at) => at % width < sharedUnits),
    )
    tensors.set(
      to('experts.down'),
      data.filter((_, at) => at % width >= sharedUnits),
    )
  }
  const find = (name: string): Float32Array => {
    const tensor = tensors.get(name)
    if (!tensor) throw new RangeError(`the graph asks for ${name}`)
    return tensor
  }
  return {
    floats: find,
    rows: (graph, { name, rows, cols }, ids) =>
      graph.node('Gather', [graph.floats(find(name), [rows, cols]), ids]),
    multiply: (graph, { name, rows, cols }: Matrix, x, as) => {
      const matrix = find(name)
      const transposed = Float32Array.from(
        matrix,
        (_, at) => matrix[(at % rows) * cols + Math.floor(at / rows)],
      )
      return graph.node('MatMul', [x, graph.floats(transposed, [cols, rows])], { as })
    },
  }
}
