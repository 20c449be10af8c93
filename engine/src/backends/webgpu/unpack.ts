/**
 * @module
 * A pack's tiles (pack/layout.ts) into the form that onnxruntime's MatMulNBits and GatherBlockQuantized read, on the GPU:
 * 8 bits a weight, w = scale · (code - 128), one scale for 32 columns.
 *
 * A pack's w = R · s · (8q - z) has its zero point in eighths of a step; their 4-bit form knows whole steps only. So the
 * 4-bit code is widened: code = 8q - z + 128 and scale = R · s, exact for z ≤ 128, which is every block that has its zero
 * within its range. Where z is larger (all weights of a block far on one side), code = (8q - z) / 2 + 128 and scale =
 * 2 R s, off by at most an eighth of a step.
 */
import { BLOCK, TILE_BYTES, TILE_ROWS } from '../../pack/layout.ts'
import type { Device } from './device.ts'

/** A matrix on the GPU: [rows, blocks, 32] codes a byte each, [rows, blocks] scales. */
export interface GpuMatrix {
  readonly codes: GPUBuffer
  readonly scales: GPUBuffer
  readonly rows: number
  /** Blocks of 32 columns in a row, of all planes. */
  readonly blocks: number
  /** As many matrices side by side, which all see the same input. */
  readonly planes: 1 | 2
}

/** Where a run of tiles goes. Offsets into the source count words of 4 bytes. */
export interface Placement {
  readonly into: GpuMatrix
  /** Of the tiles: rows, and blocks in each. */
  readonly rows: number
  readonly blocks: number
  /** Where their first row and block go. */
  readonly row: number
  readonly block: number
  /** Where in the source the first tile is, and the first row's R. */
  readonly tiles: number
  readonly rowScales: number
  /** Multiplies every scale: 1 for the first plane. */
  readonly factor: number
}

const WORKGROUP = 64
const ROW_OF_GROUPS = 1024

const SHADER = /* wgsl */ `
struct Placement { rows: u32, blocks: u32, row: u32, block: u32, stride: u32, tiles: u32, rowScales: u32, factor: f32 }
@group(0) @binding(0) var<storage, read> source: array<u32>;
@group(0) @binding(1) var<storage, read_write> codes: array<u32>;
@group(0) @binding(2) var<storage, read_write> scales: array<f32>;
@group(0) @binding(3) var<uniform> p: Placement;

fn byteAt(word: u32, byte: u32) -> u32 { return (source[word + byte / 4] >> (8 * (byte % 4))) & 0xff; }

@compute @workgroup_size(${WORKGROUP})
fn unpack(@builtin(global_invocation_id) id: vec3u) {
  let index = id.y * ${ROW_OF_GROUPS * WORKGROUP} + id.x;
  if (index >= p.rows * p.blocks) { return; }
  let row = index / p.blocks;
  let block = index % p.blocks;
  let tile = p.tiles + (row / ${TILE_ROWS} * p.blocks + block) * ${TILE_BYTES / 4};
  let inTile = row % ${TILE_ROWS};
  let s = byteAt(tile, inTile);
  let z = byteAt(tile, ${TILE_ROWS} + inTile);
  let far = z > 128;
  let base = select(128 - z, (257 - z) / 2, far) * 0x01010101;
  let shift = select(3u, 2u, far);
  let at = (p.row + row) * p.stride + p.block + block;
  for (var step = 0u; step < 4; step++) {
    let pairs = source[tile + ${(2 * TILE_ROWS) / 4} + step * ${TILE_ROWS} + inTile];
    codes[at * ${BLOCK / 4} + 2 * step] = ((pairs & 0x0f0f0f0f) << shift) + base;
    codes[at * ${BLOCK / 4} + 2 * step + 1] = (((pairs >> 4) & 0x0f0f0f0f) << shift) + base;
  }
  scales[at] = bitcast<f32>(source[p.rowScales + row]) * f32(s) * p.factor * select(1.0, 2.0, far);
}
`

export class Unpacker {
  readonly #gpu: GPUDevice
  readonly #pipeline: GPUComputePipeline

  constructor({ gpu }: Device) {
    this.#gpu = gpu
    const module = gpu.createShaderModule({ code: SHADER })
    this.#pipeline = gpu.createComputePipeline({ layout: 'auto', compute: { module, entryPoint: 'unpack' } })
  }

  /** Queues the placing of tiles that lie in `source`, which may be written anew right after. */
  place(source: GPUBuffer, placements: readonly Placement[]): void {
    const uniforms: GPUBuffer[] = []
    const encoder = this.#gpu.createCommandEncoder()
    const pass = encoder.beginComputePass()
    pass.setPipeline(this.#pipeline)
    for (const placement of placements) {
      const { codes, scales } = placement.into
      const uniform = this.#uniform(placement)
      uniforms.push(uniform)
      const buffers = [source, codes, scales, uniform]
      const entries = buffers.map((buffer, binding) => ({ binding, resource: { buffer } }))
      const layout = this.#pipeline.getBindGroupLayout(0)
      pass.setBindGroup(0, this.#gpu.createBindGroup({ layout, entries }))
      const groups = Math.ceil((placement.rows * placement.blocks) / WORKGROUP)
      pass.dispatchWorkgroups(Math.min(groups, ROW_OF_GROUPS), Math.ceil(groups / ROW_OF_GROUPS))
    }
    pass.end()
    this.#gpu.queue.submit([encoder.finish()])
    // What has been submitted keeps its memory until it has run.
    for (const uniform of uniforms) uniform.destroy()
  }

  #uniform({ into, rows, blocks, row, block, tiles, rowScales, factor }: Placement): GPUBuffer {
    const buffer = this.#gpu.createBuffer({ size: 32, usage: GPUBufferUsage.UNIFORM, mappedAtCreation: true })
    const range = buffer.getMappedRange()
    new Uint32Array(range).set([rows, blocks, row, block, into.blocks, tiles, rowScales])
    new Float32Array(range)[7] = factor
    buffer.unmap()
    return buffer
  }
}
