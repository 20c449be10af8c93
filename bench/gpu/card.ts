/**
 * @module
 * What a GPU costs before any model: a dispatch, a readback, a byte.
 */

export interface Card {
  readonly adapter: string
  /** Microseconds of one small dispatch among many in a pass, each waiting for the one before; and the same when each has a
   * bind group and a uniform buffer of its own, as onnxruntime's have. */
  readonly dispatchUs: number
  readonly boundDispatchUs: number
  /** Milliseconds from a submitted copy of 200 kB to its numbers. */
  readonly readbackMs: number
  /** 10^9 bytes a second that a kernel reads. */
  readonly gigabytesPerSecond: number
}

const CHAIN = /* wgsl */ `
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<uniform> p: vec4f;
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) { x[id.x] = x[id.x] * p.x + p.y; }
`
const READ = /* wgsl */ `
@group(0) @binding(0) var<storage, read> x: array<vec4f>;
@group(0) @binding(1) var<storage, read_write> sum: array<f32>;
@compute @workgroup_size(256) fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) n: vec3u) {
  var s = vec4f();
  for (var i = id.x; i < arrayLength(&x); i += n.x * 256) { s += x[i]; }
  if (s.x == 123.456) { sum[0] = s.y + s.z + s.w; }
}
`

export async function measureCard(adapter: GPUAdapter, gpu: GPUDevice, smallest: boolean): Promise<Card> {
  // Deno gives the PCI number of the vendor instead of its name.
  const { vendor, architecture, description } = adapter.info
  const dispatches = smallest ? 50 : 1000
  return {
    adapter: description || [vendor, architecture].filter(Boolean).join(' '),
    dispatchUs: await chain(gpu, dispatches, false),
    boundDispatchUs: await chain(gpu, dispatches, true),
    readbackMs: await readback(gpu, smallest ? 3 : 30),
    gigabytesPerSecond: await read(gpu, smallest ? 4 << 20 : 512 << 20),
  }
}

async function chain(gpu: GPUDevice, count: number, own: boolean): Promise<number> {
  const { pipeline, layout } = kernel(gpu, CHAIN)
  const x = gpu.createBuffer({ size: 4096, usage: GPUBufferUsage.STORAGE })
  const bind = () => {
    const p = gpu.createBuffer({ size: 16, usage: GPUBufferUsage.UNIFORM, mappedAtCreation: true })
    new Float32Array(p.getMappedRange()).fill(0.5)
    p.unmap()
    return gpu.createBindGroup({ layout, entries: entries(x, p) })
  }
  const shared = bind()
  return (
    (1000 / count) *
    (await best(3, async () => {
      const encoder = gpu.createCommandEncoder()
      const pass = encoder.beginComputePass()
      pass.setPipeline(pipeline)
      for (let i = 0; i < count; i++) {
        pass.setBindGroup(0, own ? bind() : shared)
        pass.dispatchWorkgroups(9)
      }
      pass.end()
      gpu.queue.submit([encoder.finish()])
      await gpu.queue.onSubmittedWorkDone()
    }))
  )
}

async function readback(gpu: GPUDevice, rounds: number): Promise<number> {
  const size = 200_000
  const from = gpu.createBuffer({ size, usage: GPUBufferUsage.COPY_SRC })
  const to = gpu.createBuffer({ size, usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ })
  return best(rounds, async () => {
    const encoder = gpu.createCommandEncoder()
    encoder.copyBufferToBuffer(from, 0, to, 0, size)
    gpu.queue.submit([encoder.finish()])
    await to.mapAsync(GPUMapMode.READ)
    to.getMappedRange()
    to.unmap()
  })
}

async function read(gpu: GPUDevice, bytes: number): Promise<number> {
  const size = Math.min(bytes, gpu.limits.maxStorageBufferBindingSize)
  const { pipeline, layout } = kernel(gpu, READ)
  const x = gpu.createBuffer({ size, usage: GPUBufferUsage.STORAGE })
  const sum = gpu.createBuffer({ size: 16, usage: GPUBufferUsage.STORAGE })
  const group = gpu.createBindGroup({ layout, entries: entries(x, sum) })
  const times = 8
  const ms = await best(4, async () => {
    const encoder = gpu.createCommandEncoder()
    const pass = encoder.beginComputePass()
    pass.setPipeline(pipeline)
    pass.setBindGroup(0, group)
    for (let i = 0; i < times; i++) pass.dispatchWorkgroups(2048)
    pass.end()
    gpu.queue.submit([encoder.finish()])
    await gpu.queue.onSubmittedWorkDone()
  })
  x.destroy()
  return (times * size) / ms / 1e6
}

function kernel(gpu: GPUDevice, code: string) {
  const module = gpu.createShaderModule({ code })
  const pipeline = gpu.createComputePipeline({ layout: 'auto', compute: { module, entryPoint: 'main' } })
  return { pipeline, layout: pipeline.getBindGroupLayout(0) }
}

function entries(...buffers: GPUBuffer[]): GPUBindGroupEntry[] {
  return buffers.map((buffer, binding) => ({ binding, resource: { buffer } }))
}

/** Milliseconds of the fastest of some rounds, after one to warm up. */
export async function best(rounds: number, work: () => Promise<void>): Promise<number> {
  await work()
  let least = Number.POSITIVE_INFINITY
  for (let i = 0; i < rounds; i++) {
    const start = performance.now()
    await work()
    least = Math.min(least, performance.now() - start)
  }
  return least
}
