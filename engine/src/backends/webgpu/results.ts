/**
 * @module
 * The way back from the GPU. What several runs computed is collected there in one buffer, a slot for each, and read in
 * one go: a readback costs the same, about as much as a token, for any number of bytes.
 */
import type { ModelConfig } from '../../model/config.ts'
import type { Device } from './device.ts'

const WORKGROUP = 256

/** The index of the largest logit, as the next run's token; of equals the first, as everywhere. */
const SHADER = /* wgsl */ `
@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read_write> state: array<u32>;
@group(0) @binding(2) var<uniform> vocab: vec4u;
var<workgroup> value: array<f32, ${WORKGROUP}>;
var<workgroup> index: array<u32, ${WORKGROUP}>;

@compute @workgroup_size(${WORKGROUP})
fn largest(@builtin(local_invocation_index) lane: u32) {
  var best = min(lane, vocab.x - 1);
  var most = logits[best];
  for (var i = lane; i < vocab.x; i += ${WORKGROUP}) {
    let other = logits[i];
    if (other > most) { most = other; best = i; }
  }
  value[lane] = most;
  index[lane] = best;
  for (var half = ${WORKGROUP / 2}u; half > 0; half /= 2) {
    workgroupBarrier();
    if (lane < half) {
      let other = lane + half;
      let ahead = value[other] > value[lane] || (value[other] == value[lane] && index[other] < index[lane]);
      if (ahead) { value[lane] = value[other]; index[lane] = index[other]; }
    }
  }
  if (lane == 0) { state[0] = index[0]; state[1] += 1; }
}
`

export class Results {
  readonly #gpu: GPUDevice
  readonly #device: Device
  readonly #vocab: number
  readonly #gateFloats: number
  /** uint32 [2]: the token that the next run of one appends, and its position. */
  readonly state: GPUBuffer
  /** float32 [vocab], [layers, tokens, experts]: where runs leave what they computed. */
  readonly logits: GPUBuffer
  readonly gates: GPUBuffer
  readonly #staging: GPUBuffer
  readonly #slotBytes: number
  readonly #largest: GPUComputePipeline
  readonly #bindGroup: GPUBindGroup
  // What has been read: a slot for each run.
  readonly #read: { readonly logits: Float32Array; readonly gates: Float32Array; readonly id: Int32Array }[]
  readonly #chunkGates: Float32Array
  readonly #next = new Uint32Array(2)

  /**
   * @param slots runs of one token that are read together
   * @param chunk tokens of the longest run
   */
  constructor(device: Device, { vocab, layers, experts, gate }: ModelConfig, slots: number, chunk: number) {
    const { gpu } = device
    this.#device = device
    this.#gpu = gpu
    this.#vocab = vocab
    this.#gateFloats = gate.kind === 'all' ? 0 : layers * experts
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST
    this.state = device.buffer(8, usage)
    this.logits = device.buffer(4 * vocab, usage)
    this.gates = device.buffer(4 * this.#gateFloats * chunk, usage)
    // logits, gates, the likeliest token
    this.#slotBytes = 4 * Math.ceil((vocab + this.#gateFloats + 1) / 2) * 2
    const bytes = Math.max(slots * this.#slotBytes, 4 * (vocab + 1 + this.#gateFloats * chunk))
    this.#staging = gpu.createBuffer({
      size: Math.ceil(bytes / 8) * 8,
      usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST,
    })
    this.#read = Array.from({ length: slots }, () => ({
      logits: new Float32Array(vocab),
      gates: new Float32Array(this.#gateFloats),
      id: new Int32Array(1),
    }))
    this.#chunkGates = new Float32Array(this.#gateFloats * chunk)

    const module = gpu.createShaderModule({ code: SHADER })
    this.#largest = gpu.createComputePipeline({ layout: 'auto', compute: { module, entryPoint: 'largest' } })
    const size = gpu.createBuffer({ size: 16, usage: GPUBufferUsage.UNIFORM, mappedAtCreation: true })
    new Uint32Array(size.getMappedRange()).fill(vocab)
    size.unmap()
    this.#bindGroup = gpu.createBindGroup({
      layout: this.#largest.getBindGroupLayout(0),
      entries: [this.logits, this.state, size].map((buffer, binding) => ({ binding, resource: { buffer } })),
    })
  }

  /** Says what the next run of one appends. */
  begin(token: number, position: number): void {
    this.#next.set([token, position])
    this.#gpu.queue.writeBuffer(this.state, 0, this.#next)
  }

  /** Queues a run of one token, the keeping of what it computes, and makes its likeliest token the next run's. */
  run(slot: number, encode: (pass: GPUComputePassEncoder) => void): void {
    const at = slot * this.#slotBytes
    const gateBytes = 4 * this.#gateFloats
    const encoder = this.#gpu.createCommandEncoder()
    const pass = encoder.beginComputePass()
    encode(pass)
    pass.setPipeline(this.#largest)
    pass.setBindGroup(0, this.#bindGroup)
    pass.dispatchWorkgroups(1)
    pass.end()
    encoder.copyBufferToBuffer(this.logits, 0, this.#staging, at, 4 * this.#vocab)
    if (gateBytes > 0) {
      encoder.copyBufferToBuffer(this.gates, 0, this.#staging, at + 4 * this.#vocab, gateBytes)
    }
    encoder.copyBufferToBuffer(this.state, 0, this.#staging, at + 4 * this.#vocab + gateBytes, 4)
    this.#gpu.queue.submit([encoder.finish()])
  }

  /** Reads the first `slots` slots. @throws SparsedgeError `device_lost` */
  async read(slots: number): Promise<void> {
    await this.#map(slots * this.#slotBytes, (range) => {
      for (let slot = 0; slot < slots; slot++) {
        const at = slot * this.#slotBytes
        const { logits, gates, id } = this.#read[slot]
        logits.set(new Float32Array(range, at, this.#vocab))
        gates.set(new Float32Array(range, at + 4 * this.#vocab, this.#gateFloats))
        id.set(new Int32Array(range, at + 4 * (this.#vocab + this.#gateFloats), 1))
      }
    })
  }

  /**
   * Keeps and reads what a run of several tokens has computed: its logits as slot 0's.
   *
   * @returns g, [layers, tokens, experts]
   * @throws SparsedgeError `device_lost`
   */
  async readChunk(tokens: number): Promise<Float32Array> {
    const gateBytes = 4 * this.#gateFloats * tokens
    const encoder = this.#gpu.createCommandEncoder()
    encoder.copyBufferToBuffer(this.logits, 0, this.#staging, 0, 4 * this.#vocab)
    if (gateBytes > 0) encoder.copyBufferToBuffer(this.gates, 0, this.#staging, 4 * this.#vocab, gateBytes)
    this.#gpu.queue.submit([encoder.finish()])
    const gates = this.#chunkGates.subarray(0, gateBytes / 4)
    await this.#map(4 * this.#vocab + gateBytes, (range) => {
      this.#read[0].logits.set(new Float32Array(range, 0, this.#vocab))
      gates.set(new Float32Array(range, 4 * this.#vocab, gates.length))
    })
    return gates
  }

  /** What a slot held when it was read: logits [vocab], gates [layers, experts], the likeliest token. */
  slot(slot: number): {
    readonly logits: Float32Array
    readonly gates: Float32Array
    readonly id: Int32Array
  } {
    return this.#read[slot]
  }

  async #map(bytes: number, copy: (range: ArrayBuffer) => void): Promise<void> {
    const size = Math.ceil(bytes / 8) * 8
    await this.#device.wait(this.#staging.mapAsync(GPUMapMode.READ, 0, size))
    copy(this.#staging.getMappedRange(0, size))
    this.#staging.unmap()
  }
}
