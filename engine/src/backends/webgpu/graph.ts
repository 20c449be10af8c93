/**
 * @module
 * The forward pass as an ONNX graph: tokens and the keys and values so far in; logits, gates and the keys and values of
 * all tokens out. Where the weights of its matrices come from, and in which form, is the caller's choice.
 *
 * All experts of a layer stand side by side as one FFN, and each unit's activation is multiplied by its expert's gate: an
 * expert that is off adds exactly nothing, whatever its weights. ONNX Runtime has no operator that leaves work out by a
 * number it has just computed, and reading the gates back would cost more than the work (docs/findings.md).
 */
import { type ModelConfig, qkvRows } from '../../model/config.ts'
import type { GateRule } from '../../model/selection.ts'
import type { Graph } from './onnx.ts'

/** A matrix [rows, cols] of the graph. Experts stand side by side: rows of gate and up, columns of down. */
export interface Matrix {
  readonly name: string
  readonly rows: number
  readonly cols: number
}

/** How a graph holds its weights. */
export interface Weights {
  /** A float tensor of the trunk under its name in a pack, flat. */
  floats(name: string): Float32Array
  /** Rows of a matrix. @param ids int32 [1, tokens] @returns the name of [1, tokens, cols] */
  rows(graph: Graph, matrix: Matrix, ids: string): string
  /** x Wᵀ. @param x the name of [1, tokens, cols] @returns the name of [1, tokens, rows]: `as`, where it is given */
  multiply(graph: Graph, matrix: Matrix, x: string, as?: string): string
}

/** Names of what a step is given, besides its weights. */
export const INPUT = {
  /** int32 [1, tokens] */
  tokens: 'tokens',
  /** int32 [1]: tokens before and in this step, less one. */
  last: 'last',
  /** int32 [1]: tokens before and in this step. */
  total: 'total',
  /** What a request may change about a layer's gate, see {@link gateInputs}. */
  gate: (layer: number) => `gate.${layer}`,
  /** [1, kvHeads, capacity, headDim], one of each a layer */
  keys: (layer: number) => `keys.${layer}`,
  values: (layer: number) => `values.${layer}`,
} as const

/** Names of what a step gives back. */
export const OUTPUT = {
  /** [1, 1, vocab], after the last token */
  logits: 'logits',
  /** g, [layers, tokens, experts]; absent where every expert is always on */
  gates: 'gates',
  keys: (layer: number) => `keys.${layer}.out`,
  values: (layer: number) => `values.${layer}.out`,
} as const

/**
 * The gates' inputs for a rule, by layer: the router's bias with the layer's level in it, [experts], where the gate is
 * clamped linear; eps or k, [1], where it is a softmax; none where all experts are on.
 */
export function gateInputs(
  { gate, layers, experts }: ModelConfig,
  weights: Pick<Weights, 'floats'>,
  { top, levels }: GateRule,
): Float32Array<ArrayBuffer>[] {
  if (gate.kind === 'all') return []
  return Array.from({ length: layers }, (_, layer) => {
    if (gate.kind !== 'clamped_linear') return Float32Array.of(top > 0 ? top : levels[layer])
    const bias = weights.floats(`layers.${layer}.gate.bias`)
    return Float32Array.from({ length: experts }, (_, e) => bias[e] + levels[layer])
  })
}

/** The matrices of one layer; `shared` only where the model has a shared expert. */
export function layerMatrices(config: ModelConfig, layer: number) {
  const { hidden, heads, headDim, experts, expertUnits, sharedUnits } = config
  const matrix = (part: string, rows: number, cols: number): Matrix => ({
    name: `layers.${layer}.${part}`,
    rows,
    cols,
  })
  const ffn = (part: string, units: number) => ({
    gate: matrix(`${part}.gate`, units, hidden),
    up: matrix(`${part}.up`, units, hidden),
    down: matrix(`${part}.down`, hidden, units),
  })
  return {
    qkv: matrix('attention.qkv', qkvRows(config), hidden),
    output: matrix('attention.output', hidden, heads * headDim),
    experts: ffn('experts', experts * expertUnits),
    shared: sharedUnits > 0 ? ffn('shared', sharedUnits) : undefined,
  }
}

export function embedding({ vocab, hidden }: ModelConfig): Matrix {
  return { name: 'embed', rows: vocab, cols: hidden }
}

export function head(config: ModelConfig): Matrix {
  return config.tiedHead ? embedding(config) : { ...embedding(config), name: 'head' }
}

/**
 * Adds a model's forward pass to a graph.
 *
 * @param positions tokens of the longest sequence
 */
export function addModel(graph: Graph, config: ModelConfig, weights: Weights, positions: number): void {
  const { layers, hidden, vocab, experts, gate } = config
  const norm = (name: string) => graph.floats(weights.floats(name), [hidden])
  const attention = addAttention(graph, config, weights.floats('rope.inv_freq'), positions)
  const ids = graph.input(INPUT.tokens, 'int32', [1, 'tokens'])

  // x is the residual stream, h what the next block sees of it, both [1, tokens, hidden].
  let x = weights.rows(graph, embedding(config), ids)
  let h = graph.node('SimplifiedLayerNormalization', [x, norm('layers.0.attention.norm')], {
    attributes: { axis: -1n, epsilon: config.normEps },
  })
  /** x + y, and its norm. */
  const add = (y: string, normName: string) => {
    const [normed, , , sum] = graph.nodes(
      'SkipSimplifiedLayerNormalization',
      [x, y, norm(normName)],
      [graph.name('h'), '', '', graph.name('x')],
      { domain: 'com.microsoft', attributes: { epsilon: config.normEps } },
    )
    x = sum
    h = normed
  }

  const gates: string[] = []
  let source = ''
  for (let layer = 0; layer < layers; layer++) {
    const { qkv, output, experts: ffn, shared } = layerMatrices(config, layer)
    const context = attention(layer, weights.multiply(graph, qkv, h))
    add(weights.multiply(graph, output, context), `layers.${layer}.ffn.norm`)
    // A look-ahead gate decides on what the layer before saw.
    if (gate.source === 'own' || layer === 0) source = h
    const g = addGate(graph, config, weights, layer, source)
    source = h
    let y = addFfn(graph, weights, ffn, h, (units) => masked(graph, config, units, g))
    if (shared) y = graph.node('Add', [addFfn(graph, weights, shared, h), y])
    if (g !== undefined) gates.push(graph.node('Reshape', [g, graph.int64(1, -1, experts)]))
    add(y, layer + 1 < layers ? `layers.${layer + 1}.attention.norm` : 'norm')
  }

  const last = graph.node('Slice', [h, graph.int64(-1), graph.int64(2 ** 31 - 1), graph.int64(1)])
  weights.multiply(graph, head(config), last, OUTPUT.logits)
  graph.output(OUTPUT.logits, 'float32', [1, 1, vocab])
  if (gates.length === 0) return
  graph.node('Concat', gates, { as: OUTPUT.gates, attributes: { axis: 0n } })
  graph.output(OUTPUT.gates, 'float32', [layers, 'tokens', experts])
}

/**
 * Grouped-query attention with rotary positions, as one operator per layer.
 *
 * @returns adds a layer's: takes the name of [1, tokens, qkvRows], gives that of [1, tokens, heads · headDim]
 */
function addAttention(graph: Graph, config: ModelConfig, invFreq: Float32Array, positions: number) {
  const { heads, kvHeads, headDim, ropeScale } = config
  const half = headDim / 2
  const rotation = (of: (angle: number) => number) => {
    const table = new Float32Array(positions * half)
    for (let i = 0; i < table.length; i++) {
      table[i] = of(Math.floor(i / half) * invFreq[i % half]) * ropeScale
    }
    return graph.floats(table, [positions, half])
  }
  const [cos, sin] = [rotation(Math.cos), rotation(Math.sin)]
  const last = graph.input(INPUT.last, 'int32', [1])
  const total = graph.input(INPUT.total, 'int32', [1])
  return (layer: number, qkv: string): string => {
    const keys = graph.input(INPUT.keys(layer), 'float32', [1, kvHeads, 'past', headDim])
    const values = graph.input(INPUT.values(layer), 'float32', [1, kvHeads, 'past', headDim])
    const [context] = graph.nodes(
      'GroupQueryAttention',
      [qkv, '', '', keys, values, last, total, cos, sin],
      [graph.name('context'), OUTPUT.keys(layer), OUTPUT.values(layer)],
      {
        domain: 'com.microsoft',
        attributes: { num_heads: BigInt(heads), kv_num_heads: BigInt(kvHeads), do_rotary: 1n },
      },
    )
    graph.output(OUTPUT.keys(layer), 'float32', [1, kvHeads, 'present', headDim])
    graph.output(OUTPUT.values(layer), 'float32', [1, kvHeads, 'present', headDim])
    return context
  }
}

/**
 * One weight per expert, as model/gate.ts defines it.
 *
 * @param source the name of [1, tokens, hidden]
 * @returns the name of g, [tokens, experts]; undefined where every expert is on
 */
function addGate(
  graph: Graph,
  { hidden, experts, gate }: ModelConfig,
  weights: Weights,
  layer: number,
  source: string,
): string | undefined {
  if (gate.kind === 'all') return undefined
  const router = transposed(weights.floats(`layers.${layer}.gate.weight`), experts, hidden)
  const rows = graph.node('Reshape', [source, graph.int64(-1, hidden)])
  // Product and bias are one kernel; whatever can be said in fewer kernels is faster.
  const scores = (bias: string) => graph.node('Gemm', [rows, graph.floats(router, [hidden, experts]), bias])
  if (gate.kind === 'clamped_linear') {
    const z = scores(graph.input(INPUT.gate(layer), 'float32', [experts]))
    return graph.node('Clip', [z, graph.float(0), graph.float(1)])
  }
  const z = scores(graph.floats(weights.floats(`layers.${layer}.gate.bias`), [experts]))
  const p = graph.node('Softmax', [z], { attributes: { axis: -1n } })
  const rule = graph.input(INPUT.gate(layer), 'float32', [1])
  const selected =
    gate.selection.by === 'top_k'
      ? isAmongBest(graph, experts, z, rule)
      : graph.node('Greater', [graph.node('Mul', [p, graph.float(experts)]), rule])
  const kept = graph.node('Mul', [p, toFloat(graph, selected)])
  if (gate.kind === 'softmax') return kept
  const sum = graph.node('ReduceSum', [kept, graph.int64(-1)], { attributes: { keepdims: 1n } })
  // Where none is selected all are 0 and stay so.
  return graph.node('Div', [kept, graph.node('Max', [sum, graph.float(1e-30)])])
}

/**
 * Whether fewer than k experts come before one: those with a larger z, and of equals those with a lower index.
 *
 * @param z the name of [tokens, experts]
 * @param k the name of [1]
 * @returns the name of [tokens, experts], booleans
 */
function isAmongBest(graph: Graph, experts: number, z: string, k: string): string {
  const own = graph.node('Unsqueeze', [z, graph.int64(-1)]) // [tokens, experts, 1]
  const other = graph.node('Unsqueeze', [z, graph.int64(-2)]) // [tokens, 1, experts]
  const lower = Float32Array.from({ length: experts * experts }, (_, at) =>
    at % experts < Math.floor(at / experts) ? 1 : 0,
  )
  const larger = toFloat(graph, graph.node('Greater', [other, own]))
  const equal = toFloat(graph, graph.node('Equal', [other, own]))
  const tied = graph.node('Mul', [equal, graph.floats(lower, [1, experts, experts])])
  const before = graph.node('Add', [larger, tied])
  const rank = graph.node('ReduceSum', [before, graph.int64(-1)], { attributes: { keepdims: 0n } })
  return graph.node('Less', [rank, k])
}

function toFloat(graph: Graph, condition: string): string {
  return graph.node('Cast', [condition], { attributes: { to: 1n } })
}

/**
 * SwiGLU: down(mask(silu(gate x) · up x)).
 *
 * @param x the name of [1, tokens, hidden]
 * @returns the name of [1, tokens, hidden]
 */
function addFfn(
  graph: Graph,
  weights: Weights,
  { gate, up, down }: { gate: Matrix; up: Matrix; down: Matrix },
  x: string,
  mask: (units: string) => string = (units) => units,
): string {
  const g = weights.multiply(graph, gate, x)
  const silu = graph.node('Mul', [g, graph.node('Sigmoid', [g])])
  const units = graph.node('Mul', [silu, weights.multiply(graph, up, x)])
  return weights.multiply(graph, down, mask(units))
}

/** Each expert's units times its gate. @param units the name of [1, tokens, experts · expertUnits] */
function masked(
  graph: Graph,
  { experts, expertUnits }: ModelConfig,
  units: string,
  g: string | undefined,
): string {
  if (g === undefined) return units
  const reshape = (of: string, ...shape: number[]) => graph.node('Reshape', [of, graph.int64(...shape)])
  // A 0 keeps the dimension, a -1 takes what is left.
  const product = graph.node('Mul', [
    reshape(units, 0, 0, experts, expertUnits),
    reshape(g, 1, -1, experts, 1),
  ])
  return reshape(product, 0, 0, experts * expertUnits)
}

/** @param matrix [rows, cols] @returns [cols, rows] */
function transposed(matrix: Float32Array, rows: number, cols: number): Float32Array {
  return Float32Array.from(matrix, (_, at) => matrix[(at % rows) * cols + Math.floor(at / rows)])
}
