/**
 * What the WebGPU backend does between the kernels, on a GPU that computes nothing: every gate comes back open.
 */
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { Decoder } from '@sparsedge/engine/backends/webgpu/decode'
import { Device } from '@sparsedge/engine/backends/webgpu/device'
import { Experts } from '@sparsedge/engine/backends/webgpu/experts'
import { gateInputs } from '@sparsedge/engine/backends/webgpu/graph'
import { Results } from '@sparsedge/engine/backends/webgpu/results'
import { CachePool } from '@sparsedge/engine/backends/webgpu/sequence'
import type { Session } from '@sparsedge/engine/backends/webgpu/session'
import { CHUNK, Stepper } from '@sparsedge/engine/backends/webgpu/step'
import { GpuWeights } from '@sparsedge/engine/backends/webgpu/weights'
import { gateRule } from '@sparsedge/engine/model/selection'
import { loadTrunk } from '@sparsedge/engine/pack/load'
import { trunkBytes } from '@sparsedge/engine/pack/manifest'
import { DEFAULT_EXPERTS, type ExpertOptions } from '@sparsedge/engine/request'
import type { ShardStore } from '@sparsedge/engine/store/store'
import { beforeAll, describe, expect, test } from 'vitest'
import { GATES, tinyPack } from '../fixtures/tiny.ts'
import { type HeldStore, heldStore } from './held-store.ts'

const MIB = 1 << 20
const TOKENS = 64

beforeAll(() => {
  const bits = { STORAGE: 1, COPY_SRC: 2, COPY_DST: 4, UNIFORM: 8, MAP_READ: 16 }
  Object.assign(globalThis, { GPUBufferUsage: bits, GPUMapMode: { READ: 1 } })
})

/** @param onRead called while a readback is under way */
function fakeAdapter(onRead: () => Promise<unknown>, mostBytes = 64 * MIB) {
  const loss = Promise.withResolvers<{ message: string; reason: string }>()
  const destroyed: number[] = []
  const buffer = ({ size }: { size: number }) => ({
    size,
    destroy: () => destroyed.push(size),
    mapAsync: onRead,
    // Gates are open where a float is above zero.
    getMappedRange: (_: number, bytes = size) => new Float32Array(bytes / 4).fill(0.5).buffer,
    unmap() {},
  })
  const nothing = () => {}
  const pass = { setPipeline: nothing, setBindGroup: nothing, dispatchWorkgroups: nothing, end: nothing }
  const encoder = { beginComputePass: () => pass, copyBufferToBuffer: nothing, finish: nothing }
  const pipeline = { getBindGroupLayout: nothing }
  const gpu = {
    lost: loss.promise,
    limits: { maxBufferSize: mostBytes, maxStorageBufferBindingSize: mostBytes },
    queue: {
      writeBuffer(into: object | undefined) {
        if (!into) throw new TypeError('there is no buffer')
      },
      submit: nothing,
    },
    createBuffer: buffer,
    createShaderModule: nothing,
    createBindGroup: nothing,
    createComputePipeline: () => pipeline,
    createComputePipelineAsync: async () => pipeline,
    createCommandEncoder: () => encoder,
    pushErrorScope: nothing,
    popErrorScope: async () => null,
  }
  const adapter = { limits: {}, info: {}, features: new Set(), requestDevice: async () => gpu }
  return { adapter: adapter as unknown as GPUAdapter, lose: loss.resolve, destroyed }
}

async function stepper(
  onRead: (experts: Experts) => Promise<unknown>,
  options: ExpertOptions = DEFAULT_EXPERTS,
  wrap: (store: ShardStore) => ShardStore = (store) => store,
) {
  const { manifest, store } = await tinyPack({ layers: 2, gate: GATES.clampedLookAhead })
  const { config } = manifest
  let experts: Experts | undefined
  const { adapter } = fakeAdapter(async () => experts && onRead(experts))
  const device = await Device.open(adapter)
  const trunk = new Uint8Array(trunkBytes(manifest))
  await loadTrunk(manifest, store, trunk)
  const weights = await GpuWeights.create(manifest, trunk, device)
  experts = new Experts(manifest, wrap(store), weights)
  const results = new Results(device, config, 1, CHUNK)
  const decoder = await Decoder.create(device, config, weights, results, TOKENS)
  const session = { run: async () => ({}) } as unknown as Session
  const parts = { config, device, session, experts, bindings: [], results, decoder, ahead: 1 }
  const inputs = gateInputs(config, weights, gateRule(config))
  const sequence = new CachePool(device, config, TOKENS).open(TOKENS, { options, inputs })
  return { stepper: new Stepper(parts), sequence, experts }
}

describe('an expert that comes while a run is under way', () => {
  test.each([
    ['a token', 1],
    ['a prompt', 2],
  ])('was not there for it: %s is run again', async (_, tokens) => {
    let reads = 0
    const { stepper: steps, sequence } = await stepper(async (experts) => {
      reads += 1
      if (reads === 1) expect(await experts.prewarm()).toMatchObject({ loaded: experts.snapshot().capacity })
    })
    await steps.step(sequence, new Int32Array(tokens), undefined)
    expect(reads).toBe(2)
    expect(sequence.length).toBe(tokens)
  })
})

describe('experts that a step does without', () => {
  const policy = { ...DEFAULT_EXPERTS, policy: 'resident_first' as const, maxLatencyMs: 10_000 }

  async function held() {
    let stores: HeldStore | undefined
    const made = await stepper(
      async () => {},
      policy,
      (inner) => {
        stores = heldStore(inner)
        return stores.store
      },
    )
    if (!stores) throw new Error('the experts have no store')
    // Past its prompt.
    made.sequence.length = 1
    return { ...made, store: stores }
  }

  test('come behind its back, which takes none of the time that its request may wait', async () => {
    const { stepper: steps, sequence, experts, store } = await held()
    await steps.step(sequence, Int32Array.of(1), undefined)
    await steps.step(sequence, Int32Array.of(1), undefined)
    await expect.poll(() => store.asked.length).toBe(2)
    await new Promise((resolve) => setTimeout(resolve, 30))
    store.release()
    await expect.poll(() => experts.complete).toBe(true)
    // So that whoever waited has booked it.
    await new Promise((resolve) => setTimeout(resolve, 0))
    expect(store.asked).toHaveLength(2)
    expect(sequence.usage.requests).toBe(2)
    expect(sequence.usage.waitMs).toBe(0)
  })

  test('are waited for, not fetched again, by a step that needs them', async () => {
    const { stepper: steps, sequence, store } = await held()
    await steps.step(sequence, Int32Array.of(1), undefined)
    await expect.poll(() => store.asked.length).toBe(2)
    const prompt = steps.step(sequence, Int32Array.of(1, 2), undefined)
    await new Promise((resolve) => setTimeout(resolve, 30))
    store.release()
    await prompt
    expect(store.asked).toHaveLength(2)
    expect(sequence.usage.requests).toBe(2)
    expect(sequence.usage.waitMs).toBeGreaterThan(10)
  })
})

describe('a device', () => {
  test('keeps nothing of what was waited for', async () => {
    setFlagsFromString('--expose-gc')
    const device = await Device.open(fakeAdapter(async () => {}).adapter)
    const made = () => {
      const result = {}
      return { result: Promise.resolve(result), seen: new WeakRef(result) }
    }
    const seen = await (async () => {
      const { result, seen } = made()
      await device.wait(result)
      return seen
    })()
    await new Promise((resolve) => setTimeout(resolve, 10))
    runInNewContext('gc')()
    expect(seen.deref()).toBeUndefined()
  })

  test('that goes away ends every wait, then and later', async () => {
    const { adapter, lose } = fakeAdapter(async () => {})
    const device = await Device.open(adapter)
    const never = new Promise<void>(() => {})
    const waits = [device.wait(never), device.wait(never)]
    lose({ message: 'unplugged', reason: 'unknown' })
    for (const wait of waits) await expect(wait).rejects.toMatchObject({ code: 'device_lost' })
    await expect(device.wait(never)).rejects.toMatchObject({ code: 'device_lost' })
  })
})

test('a sequence larger than a GPU binds fails with its step, and takes no room from the next', async () => {
  const { manifest } = await tinyPack({ layers: 2, gate: GATES.clampedLookAhead })
  const { config } = manifest
  const bytes = 4 * config.kvHeads * config.headDim * TOKENS
  const { adapter, destroyed } = fakeAdapter(async () => {}, bytes)
  const device = await Device.open(adapter)
  const pool = new CachePool(device, config, 3 * TOKENS)
  const inputs = Array.from({ length: config.layers }, () => new Float32Array(config.experts))
  const open = (tokens: number) => pool.open(tokens, { options: DEFAULT_EXPERTS, inputs })
  const large = open(2 * TOKENS)
  await expect(large.cache?.ready).rejects.toMatchObject({ code: 'memory_exhausted' })
  large.close()
  await Promise.resolve()
  expect(destroyed).toHaveLength(config.layers)
  const next = open(TOKENS)
  await next.cache?.ready
  expect(open(2 * TOKENS).capacity).toBe(2 * TOKENS)
})

test('a sequence is no longer than the context, whatever room there is', async () => {
  const { manifest } = await tinyPack({ layers: 2 })
  const config = { ...manifest.config, context: TOKENS }
  const device = await Device.open(fakeAdapter(async () => {}).adapter)
  const pool = new CachePool(device, config, 4 * TOKENS)
  const inputs = Array.from({ length: config.layers }, () => new Float32Array(config.experts))
  const open = (tokens: number) => pool.open(tokens, { options: DEFAULT_EXPERTS, inputs })
  expect(() => open(TOKENS + 1)).toThrow(expect.objectContaining({ code: 'memory_exhausted' }))
  expect(open(TOKENS).capacity).toBe(TOKENS)
})
