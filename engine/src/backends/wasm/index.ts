/**
 * @module
 * The WASM backend: a model's trunk, KV pages and expert arena in one fixed memory, and SIMD kernels over them.
 */
import { throwIfCancelled } from '../../errors.ts'
import type { MemoryBudget } from '../../memory-budget.ts'
import { gateRule } from '../../model/selection.ts'
import { loadTrunk } from '../../pack/load.ts'
import { DEFAULT_EXPERTS } from '../../request.ts'
import { createResidency } from '../../residency/arena.ts'
import { type Backend, type BackendFactory, RUN_TOKENS, type Runs } from '../backend.ts'
import { writeDescriptor } from './descriptor.ts'
import { allocate, PAGE_TOKENS, type Plan, planMemory, type Region, WASM_PAGE } from './plan.ts'
import { type Kernels, selectKernels, type WasmModules } from './select.ts'
import { PagePool, WasmSequence } from './sequence.ts'
import { Stepper } from './step.ts'

export { supportsRelaxedSimd, type WasmModules } from './select.ts'

export interface WasmOptions {
  readonly modules: WasmModules
  /** The most that the WASM memory may take; 96 MiB by default, what a 128 MB isolate can spare. */
  readonly memoryBytes?: number
  /** What the backend shares with others; it takes no more than is left of it. */
  readonly budget?: MemoryBudget
  /** Tokens of all open sequences together; by default 1,024, or the model's own context if that is shorter. */
  readonly contextTokens?: number
}

const DEFAULT_MEMORY_BYTES = 96 * 2 ** 20
const DEFAULT_CONTEXT_TOKENS = 1024

/**
 * @example
 * const backend = await wasmBackend({ modules: { plain, relaxed } })({ manifest, store })
 * const sequence = backend.open(256)
 * const logits = await backend.step(sequence, Int32Array.of(1, 2, 3))
 */
export function wasmBackend(options: WasmOptions): BackendFactory {
  return async (pack, signal) => {
    throwIfCancelled(signal)
    const { name, config } = pack.manifest
    const { budget } = options
    const most = Math.min(options.memoryBytes ?? DEFAULT_MEMORY_BYTES, budget?.leftFor(name) ?? Infinity)
    const plan = planMemory(
      pack.manifest,
      most - (most % WASM_PAGE),
      options.contextTokens ?? Math.min(config.context, DEFAULT_CONTEXT_TOKENS),
    )
    budget?.take(name, plan.bytes)
    try {
      return await build(pack, plan, options.modules, signal)
    } catch (cause) {
      budget?.giveBack(name)
      throw cause
    }
  }
}

async function build(
  { manifest, store }: Parameters<BackendFactory>[0],
  plan: Plan,
  modules: WasmModules,
  signal: AbortSignal | undefined,
): Promise<Backend> {
  const { config } = manifest
  const memory = allocate(plan)
  const { name, kernels } = selectKernels(modules, memory)
  kernels.bind(writeDescriptor(memory.buffer, manifest, plan))
  await loadTrunk(manifest, store, region(memory, plan.trunk), signal)
  const residency = createResidency({
    manifest,
    store,
    arena: region(memory, plan.arena),
    slotBytes: plan.arena.slotBytes,
  })
  const pool = new PagePool(plan.cache.pages)
  const stepper = new Stepper(config, plan, memory, kernels, residency)
  return {
    name,
    config: { ...config, context: Math.min(config.context, plan.cache.pages * PAGE_TOKENS) },
    runs: runsOf(config.vocab, plan, memory, kernels),
    residency,
    open(capacity, options = DEFAULT_EXPERTS) {
      return pool.open(capacity, { rule: gateRule(config, options.selection), options })
    },
    step(sequence, tokens, stepSignal) {
      if (!(sequence instanceof WasmSequence && sequence.isOf(pool)))
        throw new TypeError('the sequence is not of this backend')
      return stepper.step(sequence, tokens, stepSignal)
    },
  }
}

function runsOf(vocab: number, { scratch }: Plan, { buffer }: WebAssembly.Memory, kernels: Kernels): Runs {
  const count = Math.ceil(vocab / RUN_TOKENS)
  return {
    peaks: new Float32Array(buffer, scratch.peaks, count),
    masses: new Float64Array(buffer, scratch.masses, count),
    weigh: kernels.weigh,
  }
}

function region(memory: WebAssembly.Memory, { offset, bytes }: Region) {
  return new Uint8Array(memory.buffer, offset, bytes)
}
