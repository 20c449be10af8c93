/**
 * @module
 * How fast a GPU would decode, before onnxruntime is loaded: what it costs to start a kernel, to read a byte and to
 * bring a result back. For small models the first is nearly all, and a GPU loses to WASM.
 */
import type { ModelConfig } from '../../model/config.ts'
import { BLOCK } from '../../pack/layout.ts'
import type { Manifest } from '../../pack/manifest.ts'
import type { Device } from './device.ts'
import { embedding, head, layerMatrices } from './graph.ts'

/** Kernels that a token starts, per layer and besides: decode.ts. */
const KERNELS = { layer: 6, rest: 3 }
const CHAINED = 32
const READ_BYTES = 4 << 20

const CHAIN = /* wgsl */ `
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<uniform> p: vec4f;
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) { x[id.x] = x[id.x] * p.x + p.y; }
`
const READ = /* wgsl */ `
@group(0) @binding(0) var<storage, read_write> sum: array<f32>;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;
@compute @workgroup_size(256) fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) n: vec3u) {
  var s = vec4f();
  for (var i = id.x; i < arrayLength(&x); i += n.x * 256) { s += x[i]; }
  if (s.x == 1) { sum[0] = s.y + s.z + s.w; }
}
`

/**
 * Milliseconds that a token takes, estimated from some 100 ms of measuring.
 *
 * @param ahead tokens that are read together
 * @throws SparsedgeError `device_lost`
 */
export async function measureWebgpu(device: Device, { config }: Manifest, ahead: number): Promise<number> {
  const { gpu } = device
  const buffer = (size: number, usage: GPUBufferUsageFlags) => gpu.createBuffer({ size, usage })
  const x = buffer(4096, GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC)
  const back = buffer(4096, GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ)
  const many = buffer(READ_BYTES, GPUBufferUsage.STORAGE)
  const [chain, read] = [CHAIN, READ].map((code) =>
    gpu.createComputePipeline({
      layout: 'auto',
      compute: { module: gpu.createShaderModule({ code }), entryPoint: 'main' },
    }),
  )
  const bind = (pipeline: GPUComputePipeline, ...buffers: GPUBuffer[]) =>
    gpu.createBindGroup({
      layout: pipeline.getBindGroupLayout(0),
      entries: buffers.map((each, binding) => ({ binding, resource: { buffer: each } })),
    })
  const [ofChain, ofRead] = [bind(chain, x, buffer(16, GPUBufferUsage.UNIFORM)), bind(read, x, many)]
  /** Milliseconds of some kernels and the way back. */
  const time = async (chained: number, reads: number): Promise<number> => {
    const started = performance.now()
    const encoder = gpu.createCommandEncoder()
    const pass = encoder.beginComputePass()
    pass.setPipeline(chain)
    for (let i = 0; i < chained; i++) {
      pass.setBindGroup(0, ofChain)
      pass.dispatchWorkgroups(4)
    }
    pass.setPipeline(read)
    pass.setBindGroup(0, ofRead)
    for (let i = 0; i < reads; i++) pass.dispatchWorkgroups(64)
    pass.end()
    encoder.copyBufferToBuffer(x, 0, back, 0, 4096)
    gpu.queue.submit([encoder.finish()])
    await device.wait(back.mapAsync(GPUMapMode.READ))
    back.unmap()
    return performance.now() - started
  }
  try {
    await time(1, 1)
    const readback = await time(0, 0)
    const kernel = Math.max((await time(CHAINED, 0)) - readback, 0) / CHAINED
    const perByte = Math.max((await time(0, 2)) - readback, 0) / (2 * READ_BYTES)
    const kernels = KERNELS.layer * config.layers + KERNELS.rest
    return kernels * kernel + readback / ahead + perByte * weightBytes(config)
  } finally {
    for (const each of [x, back, many]) each.destroy()
  }
}

/** Bytes of weights on the GPU that a token reads: a byte each, and a scale for a block. */
function weightBytes(config: ModelConfig): number {
  let weights = head(config).rows * embedding(config).cols
  for (let layer = 0; layer < config.layers; layer++) {
    const { qkv, output, experts, shared } = layerMatrices(config, layer)
    const matrices = [qkv, output, ...Object.values(experts), ...Object.values(shared ?? {})]
    for (const { rows, cols } of matrices) weights += rows * cols
  }
  return weights * (1 + 4 / BLOCK)
}
