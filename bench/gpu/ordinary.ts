/**
 * @module
 * The same dense model as others run it on onnxruntime-web: one graph, symmetric 4-bit weights in blocks of 32 as its
 * constants, keys and values on the GPU as new tensors of every step, logits read after every token, the next token chosen
 * in JavaScript. It reads half the bytes that ours does.
 */
import { addModel, INPUT, type Matrix, OUTPUT, type Weights } from '@sparsedge/engine/backends/webgpu/graph'
import { Graph } from '@sparsedge/engine/backends/webgpu/onnx'
import * as ort from 'onnxruntime-web/webgpu'
import { largest } from './largest.ts'
import { smolConfig } from './synthetic.ts'

const BLOCK = 32

export interface Ordinary {
  prefill(tokens: number): Promise<void>
  /** Decodes greedily. */
  decode(tokens: number): Promise<void>
  close(): Promise<void>
}

export async function ordinary(layers: number, device: GPUDevice): Promise<Ordinary> {
  const config = smolConfig(layers, 1)
  const graph = new Graph()
  addModel(graph, config, constants(), config.context)
  const cacheNames = Array.from({ length: layers }, (_, i) => [INPUT.keys(i), INPUT.values(i)]).flat()
  const outputNames = Array.from({ length: layers }, (_, i) => [OUTPUT.keys(i), OUTPUT.values(i)]).flat()
  const session = await ort.InferenceSession.create(graph.model(), {
    executionProviders: [{ name: 'webgpu', device }],
    preferredOutputLocation: Object.fromEntries(outputNames.map((name) => [name, 'gpu-buffer' as const])),
  })
  let cache: ort.Tensor[] = []
  let length = 0
  let next = 0

  const forget = () => {
    for (const tensor of cache) tensor.dispose()
    cache = cacheNames.map(
      () => new ort.Tensor('float32', new Float32Array(0), [1, config.kvHeads, 0, config.headDim]),
    )
    length = 0
  }
  const run = async (ids: Int32Array) => {
    length += ids.length
    const feeds: Record<string, ort.Tensor> = {
      [INPUT.tokens]: new ort.Tensor('int32', ids, [1, ids.length]),
      [INPUT.last]: new ort.Tensor('int32', Int32Array.of(length - 1), [1]),
      [INPUT.total]: new ort.Tensor('int32', Int32Array.of(length), [1]),
    }
    for (const [i, name] of cacheNames.entries()) feeds[name] = cache[i]
    const results = await session.run(feeds)
    for (const tensor of cache) tensor.dispose()
    cache = outputNames.map((name) => results[name])
    const { data } = results[OUTPUT.logits]
    if (!(data instanceof Float32Array)) throw new TypeError('logits are not float32')
    next = largest(data)
  }
  return {
    async prefill(tokens) {
      forget()
      await run(Int32Array.from({ length: tokens }, (_, i) => (i * 37 + 11) % config.vocab))
    },
    async decode(tokens) {
      for (let i = 0; i < tokens; i++) await run(Int32Array.of(next))
    },
    async close() {
      forget()
      await session.release()
    },
  }
}

/** Random weights as constants of the graph. */
function constants(): Weights {
  const known = new Map<string, { codes: string; scales: string }>()
  const of = (graph: Graph, { name, rows, cols }: Matrix) => {
    const blocks = cols / BLOCK
    const stored = known.get(name) ?? {
      codes: graph.bytes(
        Uint8Array.from({ length: (rows * cols) / 2 }, (_, i) => (Math.imul(i, 0x9e3779b1) >>> 24) & 255),
        [rows, blocks, BLOCK / 2],
      ),
      scales: graph.floats(new Float32Array(rows * blocks).fill(1 / (4.6 * Math.sqrt(cols))), [rows, blocks]),
    }
    known.set(name, stored)
    return stored
  }
  return {
    floats: (name) =>
      name === 'rope.inv_freq'
        ? Float32Array.from({ length: 32 }, (_, i) => 1e5 ** (-i / 32))
        : new Float32Array(576).fill(1),
    rows(graph, matrix, ids) {
      // As a table of floats, which is what exporters write.
      const table = new Float32Array(matrix.rows * matrix.cols)
      for (let i = 0; i < table.length; i++) table[i] = (Math.imul(i, 0x9e3779b1) >>> 16) / 65536 - 0.5
      return graph.node('Gather', [graph.floats(table, [matrix.rows, matrix.cols]), ids])
    },
    multiply(graph, matrix, x, as) {
      const { codes, scales } = of(graph, matrix)
      const attributes = {
        K: BigInt(matrix.cols),
        N: BigInt(matrix.rows),
        bits: 4n,
        block_size: BigInt(BLOCK),
      }
      return graph.node('MatMulNBits', [x, codes, scales], { as, domain: 'com.microsoft', attributes })
    },
  }
}
