/**
 * @module
 * One token's step in kernels of our own, on the weights, keys and values that onnxruntime's runs of several tokens use too.
 * onnxruntime starts a kernel for each operator, each with a bind group and parameters made anew, and that, not arithmetic,
 * was what a token took (docs/findings.md). Here the kernels of a token are six a layer, everything they bind is made once,
 * and experts that are off are not read.
 */
import { SparsedgeError } from '../../errors.ts'
import { type ModelConfig, qkvRows } from '../../model/config.ts'
import { attention } from './attention.ts'
import type { Device } from './device.ts'
import { embedding, head, layerMatrices, type Matrix } from './graph.ts'
import * as kernels from './kernels.ts'
import type { Results } from './results.ts'
import type { Cache } from './sequence.ts'
import type { GpuMatrix } from './unpack.ts'
import type { GpuWeights } from './weights.ts'

/** A kernel, how many workgroups it takes, and what it binds: of a sequence's cache, too. */
interface Stage {
  readonly code: string
  readonly groups: number
  readonly bound: (cache: Cache) => readonly Bound[]
}

type Bound = GPUBuffer | GPUBufferBinding
type Ffn = Readonly<Record<'gate' | 'up' | 'down', Matrix>>

/** Whose gates an FFN heeds. */
interface Mask {
  readonly expertUnits?: number
  readonly bound: readonly Bound[]
}
const UNMASKED: Mask = { bound: [] }

/** Offsets of uniforms must be multiples of this, on every device. */
const UNIFORM_STRIDE = 256

export class Decoder {
  readonly #device: Device
  readonly #config: ModelConfig
  readonly #weights: GpuWeights
  readonly #results: Results
  readonly #stages: readonly Stage[]
  readonly #pipelines = new Map<string, GPUComputePipeline>()
  /** Bind groups of the stages. */
  readonly #bindings = new WeakMap<Cache, readonly GPUBindGroup[]>()
  readonly #floats = new Map<string, GPUBuffer>()
  /** [positions, 2, headDim / 2]: cosines, sines */
  readonly #rotation: GPUBuffer
  /** Where each layer's gates begin. */
  readonly #firsts: GPUBuffer
  // [hidden], [qkvRows], [heads · headDim], [experts · expertUnits], [sharedUnits], [experts]
  readonly #x: GPUBuffer
  readonly #qkv: GPUBuffer
  readonly #context: GPUBuffer
  readonly #units: GPUBuffer
  readonly #sharedUnits: GPUBuffer
  readonly #scores: GPUBuffer

  private constructor(
    device: Device,
    config: ModelConfig,
    weights: GpuWeights,
    results: Results,
    positions: number,
  ) {
    this.#device = device
    this.#config = config
    this.#weights = weights
    this.#results = results
    const { layers, hidden, heads, headDim, experts, expertUnits, sharedUnits } = config
    const room = (floats: number) => device.buffer(4 * floats, GPUBufferUsage.STORAGE)
    this.#x = room(hidden)
    this.#qkv = room(qkvRows(config))
    this.#context = room(heads * headDim)
    this.#units = room(experts * expertUnits)
    this.#sharedUnits = room(sharedUnits)
    this.#scores = room(experts)
    const invFreq = weights.floats('rope.inv_freq')
    const half = headDim / 2
    const rotation = Float32Array.from({ length: positions * headDim }, (_, i) => {
      const angle = Math.floor(i / headDim) * invFreq[i % half]
      return (i % headDim < half ? Math.cos(angle) : Math.sin(angle)) * config.ropeScale
    })
    this.#rotation = this.#upload(rotation)
    const firsts = new Uint32Array((layers * UNIFORM_STRIDE) / 4)
    for (let layer = 0; layer < layers; layer++) firsts[(layer * UNIFORM_STRIDE) / 4] = layer * experts
    this.#firsts = this.#upload(firsts, GPUBufferUsage.UNIFORM)
    this.#stages = this.#plan()
  }

  /**
   * @param positions tokens of the longest sequence
   * @throws SparsedgeError `memory_exhausted`; `backend_unavailable` if the device refuses a kernel; `device_lost`
   */
  static async create(
    device: Device,
    config: ModelConfig,
    weights: GpuWeights,
    results: Results,
    positions: number,
  ): Promise<Decoder> {
    const decoder = await device.allocating(() => new Decoder(device, config, weights, results, positions))
    await device.wait(
      Promise.all(
        [...new Set(decoder.#stages.map(({ code }) => code))].map((code) => decoder.#compile(code)),
      ),
    )
    return decoder
  }

  /** Adds a token's step to a pass: the token and its position are in {@link Results.state}, logits and gates go there too. */
  encode(pass: GPUComputePassEncoder, cache: Cache): void {
    let bindings = this.#bindings.get(cache)
    if (!bindings) {
      bindings = this.#stages.map(({ code, bound }) => this.#bind(code, bound(cache)))
      this.#bindings.set(cache, bindings)
    }
    for (const [i, { code, groups }] of this.#stages.entries()) {
      pass.setPipeline(this.#pipeline(code))
      pass.setBindGroup(0, bindings[i])
      pass.dispatchWorkgroups(Math.min(groups, kernels.GRID), Math.ceil(groups / kernels.GRID))
    }
  }

  #plan(): Stage[] {
    const config = this.#config
    const { layers, heads, gate } = config
    const { state, logits, gates } = this.#results
    const x = this.#x
    const stages: Stage[] = []
    const add = (code: string, groups: number, ...bound: readonly Bound[]) =>
      stages.push({ code, groups, bound: () => bound })
    const addRows = (code: string, matrix: GpuMatrix, ...bound: readonly Bound[]) =>
      add(code, Math.ceil(matrix.rows / kernels.ROWS), matrix.codes, matrix.scales, ...bound)
    const addNormed = (matrix: Matrix, norm: string, into: GPUBuffer) => {
      const found = this.#weights.matrix(matrix)
      addRows(kernels.normedProduct(found, config), found, x, this.#float(norm), into)
    }
    const addProduct = (matrix: Matrix, input: GPUBuffer, mask: Mask = UNMASKED) => {
      const found = this.#weights.matrix(matrix)
      addRows(kernels.addedProduct(found, mask.expertUnits), found, input, x, ...mask.bound)
    }
    const addUnits = (ffn: Ffn, seen: GPUBuffer, into: GPUBuffer, mask: Mask = UNMASKED) => {
      const [w, v] = [ffn.gate, ffn.up].map((each) => this.#weights.matrix(each))
      addRows(kernels.units(w, config, mask.expertUnits), w, v.codes, v.scales, x, seen, into, ...mask.bound)
    }
    const addAttention = (layer: number) => {
      const [before, after] = [[this.#qkv, state, this.#rotation], [this.#context]]
      const bound = ({ buffers }: Cache) => [...before, buffers[2 * layer], buffers[2 * layer + 1], ...after]
      stages.push({ code: attention(config), groups: heads, bound })
    }
    const addGate = (layer: number, seen: GPUBuffer) => {
      const before = [this.#float(`layers.${layer}.gate.weight`), x, seen, gates, this.#first(layer)]
      const softmax = gate.kind !== 'clamped_linear'
      const after = softmax ? [this.#float(`layers.${layer}.gate.bias`), this.#scores] : []
      stages.push({
        code: kernels.gate(config),
        groups: 1,
        bound: (cache) => [...before, cache.gates[layer], ...after],
      })
    }

    const table = this.#weights.matrix(embedding(config))
    add(kernels.embed(table), 1, table.codes, table.scales, state, x)
    for (let layer = 0; layer < layers; layer++) {
      const { qkv, output, experts, shared } = layerMatrices(config, layer)
      addNormed(qkv, `layers.${layer}.attention.norm`, this.#qkv)
      addAttention(layer)
      addProduct(output, this.#context)
      // What this layer's FFN sees, and with it the gates that decide on that.
      const seen = this.#float(`layers.${layer}.ffn.norm`)
      const gated = gate.kind !== 'all'
      if (gated && (layer === 0 || gate.source === 'own')) addGate(layer, seen)
      if (gated && gate.source === 'previous' && layer + 1 < layers) addGate(layer + 1, seen)
      const mask = gated ? { expertUnits: config.expertUnits, bound: [gates, this.#first(layer)] } : UNMASKED
      addUnits(experts, seen, this.#units, mask)
      if (shared) addUnits(shared, seen, this.#sharedUnits)
      addProduct(experts.down, this.#units, mask)
      if (shared) addProduct(shared.down, this.#sharedUnits)
    }
    addNormed(head(config), 'norm', logits)
    return stages
  }

  async #compile(code: string): Promise<void> {
    const { gpu } = this.#device
    const module = gpu.createShaderModule({ code })
    const compute = { module, entryPoint: 'main' }
    try {
      this.#pipelines.set(code, await gpu.createComputePipelineAsync({ layout: 'auto', compute }))
    } catch (cause) {
      throw new SparsedgeError('backend_unavailable', `the GPU refuses a kernel: ${cause}`, {}, { cause })
    }
  }

  #pipeline(code: string): GPUComputePipeline {
    const pipeline = this.#pipelines.get(code)
    if (!pipeline) throw new TypeError('a kernel has not been compiled')
    return pipeline
  }

  #bind(code: string, bound: readonly Bound[]): GPUBindGroup {
    return this.#device.gpu.createBindGroup({
      layout: this.#pipeline(code).getBindGroupLayout(0),
      entries: bound.map((each, binding) => ({
        binding,
        resource: 'buffer' in each ? each : { buffer: each },
      })),
    })
  }

  #first(layer: number): GPUBufferBinding {
    return { buffer: this.#firsts, offset: layer * UNIFORM_STRIDE, size: 16 }
  }

  /** A float tensor of the trunk. */
  #float(name: string): GPUBuffer {
    const known = this.#floats.get(name)
    if (known) return known
    const buffer = this.#upload(this.#weights.floats(name))
    this.#floats.set(name, buffer)
    return buffer
  }

  #upload(
    data: Float32Array<ArrayBuffer> | Uint32Array<ArrayBuffer>,
    usage = GPUBufferUsage.STORAGE,
  ): GPUBuffer {
    const buffer = this.#device.buffer(data.byteLength, usage | GPUBufferUsage.COPY_DST)
    this.#device.gpu.queue.writeBuffer(buffer, 0, data)
    return buffer
  }
}
