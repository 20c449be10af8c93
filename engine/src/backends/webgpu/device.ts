/// <reference types="@webgpu/types" />
/**
 * @module
 * The GPU: found, opened, and watched. A device can go away at any time (a driver that restarts, a laptop that changes
 * its card), so whatever waits for it waits for that news too.
 */
import { SparsedgeError } from '../../errors.ts'

/** What onnxruntime's kernels use where a device has it. */
const FEATURES = ['shader-f16', 'subgroups'] as const satisfies GPUFeatureName[]
/** With subgroups of four lanes onnxruntime 1.30 computes wrong numbers for 32 tokens and more (docs/findings.md). */
const LEAST_SUBGROUP = 8
/** Limits that are asked for as high as the adapter goes: the defaults are those of the smallest telephones. */
const LIMITS = [
  'maxBufferSize',
  'maxStorageBufferBindingSize',
  'maxStorageBuffersPerShaderStage',
  'maxComputeWorkgroupStorageSize',
  'maxComputeInvocationsPerWorkgroup',
  'maxComputeWorkgroupSizeX',
  'maxComputeWorkgroupSizeY',
  'maxComputeWorkgroupSizeZ',
  'maxComputeWorkgroupsPerDimension',
] as const satisfies (keyof GPUSupportedLimits)[]

/** @throws SparsedgeError `backend_unavailable` where this runtime has no WebGPU, or no adapter for it */
export async function findAdapter(): Promise<GPUAdapter> {
  await provideGpu()
  const gpu: GPU | undefined = globalThis.navigator?.gpu
  if (!gpu) {
    throw new SparsedgeError(
      'backend_unavailable',
      'this runtime has no WebGPU; use the WASM backend, or in Node install the package "webgpu"',
    )
  }
  const adapter = await gpu.requestAdapter({ powerPreference: 'high-performance' })
  if (adapter) return adapter
  throw new SparsedgeError(
    'backend_unavailable',
    'WebGPU finds no adapter: there is no GPU, or no driver for it (on Linux: Vulkan)',
  )
}

export class Device {
  readonly gpu: GPUDevice
  /** Held for as long as the device is: Deno 2.9 takes a device's adapter away once nobody refers to it. */
  readonly adapter: GPUAdapter
  /** Why it went away, once it has. */
  #lost: SparsedgeError | undefined
  /** Those who wait. A race with one promise that never settles would keep each of its results for ever. */
  readonly #waiting = new Set<(why: SparsedgeError) => void>()

  private constructor(gpu: GPUDevice, adapter: GPUAdapter) {
    this.gpu = gpu
    this.adapter = adapter
    void gpu.lost.then(({ message, reason }) => {
      this.#lost = new SparsedgeError('device_lost', `the GPU went away (${reason || 'unknown'}): ${message}`)
      for (const tell of this.#waiting) tell(this.#lost)
    })
  }

  /** @throws SparsedgeError `backend_unavailable` if the adapter gives no device */
  static async open(adapter: GPUAdapter): Promise<Device> {
    const requiredLimits: Record<string, number> = {}
    for (const name of LIMITS) requiredLimits[name] = adapter.limits[name]
    const { subgroupMinSize = LEAST_SUBGROUP } = adapter.info
    const requiredFeatures = FEATURES.filter(
      (feature) =>
        adapter.features.has(feature) && (feature !== 'subgroups' || subgroupMinSize >= LEAST_SUBGROUP),
    )
    try {
      return new Device(await adapter.requestDevice({ requiredFeatures, requiredLimits }), adapter)
    } catch (cause) {
      throw new SparsedgeError('backend_unavailable', `the GPU cannot be opened: ${cause}`, {}, { cause })
    }
  }

  /** @throws SparsedgeError `device_lost` */
  check(): void {
    if (this.#lost) throw this.#lost
  }

  /** Waits for work of this device. @throws SparsedgeError `device_lost`; what the work throws */
  async wait<T>(work: Promise<T>): Promise<T> {
    const loss = Promise.withResolvers<never>()
    this.#waiting.add(loss.reject)
    try {
      if (this.#lost) loss.reject(this.#lost)
      return await Promise.race([work, loss.promise])
    } catch (cause) {
      // Work fails in many words when its device has gone, and perhaps before that is known.
      await new Promise((resolve) => setTimeout(resolve, 0))
      throw this.#lost ?? cause
    } finally {
      this.#waiting.delete(loss.reject)
    }
  }

  /**
   * A buffer of zeros. Whether there was memory for it shows only in {@link Device.allocating}.
   *
   * @throws SparsedgeError `memory_exhausted` if it is larger than the device can ever bind
   */
  buffer(bytes: number, usage: GPUBufferUsageFlags): GPUBuffer {
    const most = Math.min(this.gpu.limits.maxBufferSize, this.gpu.limits.maxStorageBufferBindingSize)
    if (bytes > most) {
      throw new SparsedgeError(
        'memory_exhausted',
        `a tensor of ${bytes} bytes: this GPU binds ${most} at most`,
      )
    }
    return this.gpu.createBuffer({ size: Math.max(align(bytes, 16), 16), usage })
  }

  /** Runs code that creates buffers. @throws SparsedgeError `memory_exhausted` if there was no memory for one */
  async allocating<T>(work: () => T): Promise<T> {
    this.gpu.pushErrorScope('out-of-memory')
    const result = attempt(work)
    const error = await this.wait(this.gpu.popErrorScope())
    if (error) throw new SparsedgeError('memory_exhausted', `the GPU has no memory left: ${error.message}`)
    return result()
  }
}

/** What work returned or threw, for later. */
function attempt<T>(work: () => T): () => T {
  try {
    const result = work()
    return () => result
  } catch (cause) {
    return () => {
      throw cause
    }
  }
}

function align(value: number, to: number): number {
  return Math.ceil(value / to) * to
}

/** Node has no WebGPU of its own, but a package that adds it, where somebody installed that. */
async function provideGpu(): Promise<void> {
  if (globalThis.navigator?.gpu || globalThis.process?.versions?.node === undefined || 'Deno' in globalThis)
    return
  const name: string = 'webgpu'
  try {
    const { create, globals } = await import(name)
    Object.assign(globalThis, globals)
    Object.defineProperty(globalThis.navigator, 'gpu', { value: create([]), configurable: true })
  } catch {
    // Not installed, or its native part does not load here: the same as no WebGPU.
  }
}
