/**
 * @module
 * A model's weights on the GPU. Every matrix has its buffer from the start, all experts of a layer side by side in one,
 * zeros where an expert has not come yet; the trunk is filled at once, experts whenever they come.
 */
import {
  BLOCK,
  FINE_PLANE_SCALE,
  type Layout,
  layoutBytes,
  planeBytes,
  TILE_BYTES,
  TILE_ROWS,
} from '../../pack/layout.ts'
import { type Manifest, type TrunkTensor, tensorBytes } from '../../pack/manifest.ts'
import { rowScale } from '../../pack/trunk.ts'
import type { Device } from './device.ts'
import { embedding, head, layerMatrices, type Matrix, type Weights } from './graph.ts'
import type { Graph } from './onnx.ts'
import { type GpuMatrix, type Placement, Unpacker } from './unpack.ts'

/** A buffer as a run is given it. */
export interface Binding {
  readonly name: string
  readonly type: 'uint8' | 'float32'
  readonly shape: readonly number[]
  readonly buffer: GPUBuffer
}

export class GpuWeights {
  readonly #manifest: Manifest
  readonly #device: Device
  readonly #unpacker: Unpacker
  readonly #matrices = new Map<string, GpuMatrix>()
  readonly #tensors: ReadonlyMap<string, TrunkTensor>
  /** The trunk's float tensors, as they lie in a pack. */
  readonly #floats = new Map<string, Uint8Array<ArrayBuffer>>()
  /** An expert's shard, then the row scales of its gate, up and down rows. */
  readonly #staging: GPUBuffer
  /** What graphs have asked for so far. */
  readonly #bindings = new Map<string, Binding>()

  private constructor(manifest: Manifest, device: Device) {
    const { config, experts } = manifest
    this.#manifest = manifest
    this.#device = device
    this.#unpacker = new Unpacker(device)
    this.#tensors = new Map(manifest.trunk.tensors.map((tensor) => [tensor.name, tensor]))
    const scales = 4 * (2 * config.expertUnits + config.hidden)
    this.#staging = device.buffer(experts.bytes + scales, GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST)
    this.#allocate(embedding(config), 'embed')
    if (!config.tiedHead) this.#allocate(head(config), 'head')
    for (let layer = 0; layer < config.layers; layer++) {
      const { qkv, output, experts: ffn, shared } = layerMatrices(config, layer)
      for (const matrix of [qkv, output]) this.#allocate(matrix, matrix.name)
      for (const matrix of Object.values(ffn)) this.#store(matrix, experts.layout)
      if (!shared) continue
      for (const matrix of [shared.gate, shared.up]) this.#allocate(matrix, `layers.${layer}.shared.gate_up`)
      this.#allocate(shared.down, shared.down.name)
    }
  }

  /**
   * Reserves all of the model's memory and fills the trunk.
   *
   * @param trunk the trunk image, which is not needed afterwards
   * @throws SparsedgeError `memory_exhausted`
   */
  static async create(
    manifest: Manifest,
    trunk: Uint8Array<ArrayBuffer>,
    device: Device,
  ): Promise<GpuWeights> {
    const weights = await device.allocating(() => new GpuWeights(manifest, device))
    for (const tensor of manifest.trunk.tensors) {
      if (tensor.layout === 'f32') weights.#floats.set(tensor.name, bytesOf(trunk, tensor).slice())
    }
    await device.allocating(() => weights.#placeTrunk(trunk))
    return weights
  }

  /** What the graphs' runs must be given. */
  get bindings(): Iterable<Binding> {
    return this.#bindings.values()
  }

  /** A matrix as it lies on the GPU. */
  matrix({ name }: Matrix): GpuMatrix {
    const matrix = this.#matrices.get(name)
    if (!matrix) throw new TypeError(`there is no matrix ${name}`)
    return matrix
  }

  /** A graph's weights, quantised as they are. */
  get graph(): Weights {
    return {
      floats: (name) => this.floats(name),
      rows: (graph, matrix, ids) => this.#rows(graph, matrix, ids),
      multiply: (graph, matrix, x, as) => this.#multiply(graph, matrix, x, as),
    }
  }

  /** Puts an expert where the graphs find it. @param shard its verified bytes, free again on return */
  placeExpert(layer: number, expert: number, shard: Uint8Array<ArrayBuffer>): void {
    const { config, experts } = this.#manifest
    const { hidden, expertUnits: units } = config
    const { queue } = this.#device.gpu
    const gateUp = this.#bytes(`layers.${layer}.experts.gate_up.row_scale`)
    const gateUpScales = gateUp.subarray(expert * 8 * units, (expert + 1) * 8 * units)
    queue.writeBuffer(this.#staging, 0, shard)
    queue.writeBuffer(this.#staging, shard.length, gateUpScales)
    queue.writeBuffer(this.#staging, shard.length + 8 * units, this.#bytes(`layers.${layer}.down.row_scale`))

    const { gate, up, down } = layerMatrices(config, layer).experts
    const scales = shard.length / 4
    const place = {
      rows: units,
      cols: hidden,
      of: 2 * units,
      row: expert * units,
      col: 0,
    }
    this.#unpacker.place(this.#staging, [
      ...this.#placements(gate, { ...place, from: 0, tiles: 0, rowScales: scales }),
      ...this.#placements(up, { ...place, from: units, tiles: 0, rowScales: scales + units }),
      ...this.#placements(down, {
        rows: hidden,
        cols: units,
        of: hidden,
        from: 0,
        row: 0,
        col: expert * units,
        tiles: layoutBytes(experts.layout, 2 * units, hidden) / 4,
        rowScales: scales + 2 * units,
      }),
    ])
  }

  // ---- Buffers ----------------------------------------------------------------------------------------------------

  /** @param tensor the trunk tensor that fills the matrix */
  #allocate(matrix: Matrix, tensor: string): void {
    this.#store(matrix, this.#find(tensor).layout)
  }

  #store({ name, rows, cols }: Matrix, layout: Layout): void {
    const planes = layout === 'q8' ? 2 : 1
    const blocks = (planes * cols) / BLOCK
    // onnxruntime reads them; a graph's own buffers must also be copied from and to.
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST
    const codes = this.#device.buffer(rows * blocks * BLOCK, usage)
    const scales = this.#device.buffer(rows * blocks * 4, usage)
    this.#matrices.set(name, { codes, scales, rows, blocks, planes })
  }

  #placeTrunk(trunk: Uint8Array<ArrayBuffer>): void {
    const place = (matrix: Matrix, tensor: string, from?: number, scales?: string) =>
      this.#placeTensor(trunk, matrix, tensor, from, scales)
    const { config } = this.#manifest
    place(embedding(config), 'embed')
    if (!config.tiedHead) place(head(config), 'head')
    for (let layer = 0; layer < config.layers; layer++) {
      const { qkv, output, shared } = layerMatrices(config, layer)
      place(qkv, qkv.name)
      place(output, output.name)
      if (!shared) continue
      place(shared.gate, `layers.${layer}.shared.gate_up`)
      place(shared.up, `layers.${layer}.shared.gate_up`, shared.gate.rows)
      place(shared.down, shared.down.name, 0, `layers.${layer}.down.row_scale`)
    }
  }

  /** Fills a matrix with a tensor's rows from `from` on. */
  #placeTensor(
    trunk: Uint8Array<ArrayBuffer>,
    matrix: Matrix,
    tensor: string,
    from = 0,
    scales = rowScale(tensor),
  ): void {
    const found = this.#find(tensor)
    const { layout, shape, fineRows } = found
    if (layout === 'f32') throw new TypeError(`tensor ${tensor} is not quantised`)
    const { queue } = this.#device.gpu
    const tiles = bytesOf(trunk, found)
    const rowScales = this.#bytes(scales)
    const source = this.#device.buffer(
      tiles.length + rowScales.length,
      GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST,
    )
    queue.writeBuffer(source, 0, tiles)
    queue.writeBuffer(source, tiles.length, rowScales)
    const { rows, cols } = matrix
    const rest = { rows, fineRows: fineRows ?? rows, cols, of: shape[0], from, row: 0, col: 0, tiles: 0 }
    this.#unpacker.place(source, this.#placements(matrix, { ...rest, rowScales: tiles.length / 4 + from }))
    source.destroy()
  }

  /** One placement for each plane. Rows start at multiples of a tile's. */
  #placements(
    matrix: Matrix,
    at: {
      /** What is placed, and the rows of the matrix it is cut from, from row `from` on. */
      readonly rows: number
      /** Of the second plane, if it ends early: scales that nobody writes are 0. */
      readonly fineRows?: number
      readonly cols: number
      readonly of: number
      readonly from: number
      /** Where it goes. */
      readonly row: number
      readonly col: number
      /** Offsets in the source, in words. */
      readonly tiles: number
      readonly rowScales: number
    },
  ): Placement[] {
    const into = this.matrix(matrix)
    const blocks = at.cols / BLOCK
    const skipped = (at.from / TILE_ROWS) * blocks * (TILE_BYTES / 4)
    return Array.from({ length: into.planes }, (_, plane) => ({
      into,
      rows: plane === 0 ? at.rows : (at.fineRows ?? at.rows),
      blocks,
      row: at.row,
      block: (plane * matrix.cols + at.col) / BLOCK,
      tiles: at.tiles + skipped + (plane * planeBytes(at.of, at.cols)) / 4,
      rowScales: at.rowScales,
      factor: plane === 0 ? 1 : FINE_PLANE_SCALE,
    }))
  }

  #find(name: string): TrunkTensor {
    const tensor = this.#tensors.get(name)
    if (!tensor) throw new TypeError(`the trunk has no tensor ${name}`)
    return tensor
  }

  #bytes(name: string): Uint8Array<ArrayBuffer> {
    const bytes = this.#floats.get(name)
    if (!bytes) throw new TypeError(`the trunk has no float tensor ${name}`)
    return bytes
  }

  /** A float tensor of the trunk, flat. */
  floats(name: string): Float32Array<ArrayBuffer> {
    const { buffer, byteOffset, byteLength } = this.#bytes(name)
    const view = new DataView(buffer, byteOffset, byteLength)
    return Float32Array.from({ length: byteLength / 4 }, (_, i) => view.getFloat32(4 * i, true))
  }

  // ---- Nodes ------------------------------------------------------------------------------------------------------

  #rows(graph: Graph, matrix: Matrix, ids: string): string {
    const { name, cols } = matrix
    const { codes, scales, rows, blocks, planes } = this.matrix(matrix)
    // The same bytes as the head's, but for the shape that this operator wants.
    const data = this.#bind(graph, `${name}.rows`, 'uint8', [rows, blocks * BLOCK], codes)
    const steps = this.#bind(graph, `${name}.scales`, 'float32', [rows, blocks], scales)
    const attributes = { bits: 8n, block_size: BigInt(BLOCK), gather_axis: 0n, quantize_axis: 1n }
    const both = graph.node('GatherBlockQuantized', [data, ids, steps], {
      domain: 'com.microsoft',
      attributes,
    })
    if (planes === 1) return both
    const [coarse, fine] = graph.nodes(
      'Split',
      [both, graph.int64(cols, cols)],
      [graph.name('coarse'), graph.name('fine')],
      { attributes: { axis: -1n } },
    )
    return graph.node('Add', [coarse, fine])
  }

  #multiply(graph: Graph, matrix: Matrix, x: string, as?: string): string {
    const { name, rows, cols } = matrix
    const { codes, scales, blocks, planes } = this.matrix(matrix)
    const weight = this.#bind(graph, `${name}.codes`, 'uint8', [rows, blocks, BLOCK], codes)
    const steps = this.#bind(graph, `${name}.scales`, 'float32', [rows, blocks], scales)
    // Two planes are two matrices side by side that both see x.
    const input = planes === 1 ? x : graph.node('Concat', [x, x], { attributes: { axis: -1n } })
    const attributes = { K: BigInt(planes * cols), N: BigInt(rows), bits: 8n, block_size: BigInt(BLOCK) }
    return graph.node('MatMulNBits', [input, weight, steps], { as, domain: 'com.microsoft', attributes })
  }

  #bind(
    graph: Graph,
    name: string,
    type: Binding['type'],
    shape: readonly number[],
    buffer: GPUBuffer,
  ): string {
    this.#bindings.set(name, { name, type, shape, buffer })
    return graph.input(name, type, shape)
  }
}

function bytesOf(trunk: Uint8Array<ArrayBuffer>, tensor: TrunkTensor): Uint8Array<ArrayBuffer> {
  return trunk.subarray(tensor.offset, tensor.offset + tensorBytes(tensor))
}
