/**
 * @module
 * The WASM backend: a model's trunk, KV pages and expert arena in one fixed memory, and SIMD kernels over them.
 */
import { SparsedgeError, throwIfCancelled } from '../../errors.ts'
import type { MemoryBudget } from '../../memory-budget.ts'
import { gateRule } from '../../model/selection.ts'
import { loadTrunk } from '../../pack/load.ts'
import { DEFAULT_EXPERTS } from '../../request.ts'
import { createResidency } from '../../residency/arena.ts'
import type { Backend, BackendFactory } from '../backend.ts'
import { writeDescriptor } from './descriptor.ts'
import { PAGE_TOKENS, planMemory } from './plan.ts'
import { selectKernels, type WasmModules } from './select.ts'
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
  return async ({ manifest, store }, signal): Promise<Backend> => {
    throwIfCancelled(signal)
    const { config } = manifest
    const { budget } = options
    const plan = planMemory(
      manifest,
      Math.min(options.memoryBytes ?? DEFAULT_MEMORY_BYTES, budget?.leftFor(manifest.name) ?? Infinity),
      options.contextTokens ?? Math.min(config.context, DEFAULT_CONTEXT_TOKENS),
    )
    budget?.take(manifest.name, plan.bytes)
    const memory = allocate(plan.bytes)
    const { name, kernels } = selectKernels(options.modules, memory)
    kernels.bind(writeDescriptor(memory.buffer, manifest, plan))
    await loadTrunk(manifest, store, region(memory, plan.trunk), signal).catch((cause: unknown) => {
      budget?.giveBack(manifest.name)
      throw cause
    })
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
      residency,
      open(capacity, options = DEFAULT_EXPERTS) {
        return pool.open(capacity, { rule: gateRule(config, options.selection), options })
      },
      step(sequence, tokens, stepSignal) {
        if (!(sequence instanceof WasmSequence)) throw new TypeError('the sequence is not of a WASM backend')
        return stepper.step(sequence, tokens, stepSignal)
      },
    }
  }
}

function allocate(bytes: number): WebAssembly.Memory {
  const pages = bytes / 65536
  try {
    return new WebAssembly.Memory({ initial: pages, maximum: pages })
  } catch (cause) {
    throw new SparsedgeError(
      'memory_exhausted',
      `this machine does not give ${bytes} bytes of WASM memory`,
      {},
      { cause },
    )
  }
}

function region(memory: WebAssembly.Memory, { offset, bytes }: { offset: number; bytes: number }) {
  return new Uint8Array(memory.buffer, offset, bytes)
}
