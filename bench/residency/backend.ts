/**
 * @module
 * The shipped model on the WASM backend, put together as engine/src/backends/wasm/index.ts does, with an arena of as many
 * slots as asked for, and with something between the steps and the residency where that is to be watched or left out.
 */
import type { Backend, BackendFactory } from '@sparsedge/engine/backends/backend'
import { writeDescriptor } from '@sparsedge/engine/backends/wasm/descriptor'
import { PAGE_TOKENS, planMemory } from '@sparsedge/engine/backends/wasm/plan'
import { selectKernels } from '@sparsedge/engine/backends/wasm/select'
import { PagePool, WasmSequence } from '@sparsedge/engine/backends/wasm/sequence'
import { Stepper } from '@sparsedge/engine/backends/wasm/step'
import { gateRule } from '@sparsedge/engine/model/selection'
import { loadTrunk } from '@sparsedge/engine/pack/load'
import type { Manifest } from '@sparsedge/engine/pack/manifest'
import { DEFAULT_EXPERTS } from '@sparsedge/engine/request'
import { type ArenaResidency, createResidency } from '@sparsedge/engine/residency/arena'
import type { ShardStore } from '@sparsedge/engine/store/store'
import { openShipped, wasmModules } from '../../test/parity/shipped.ts'

/** Tokens of all sequences together. */
const CONTEXT = 512
/** More than any arena of these benchmarks needs. */
const PLENTY = 128 << 20

export const pack = await openShipped()
const modules = await wasmModules()

export const { config } = pack.manifest
export const ALL = config.layers * config.experts

/** Bytes of WASM memory that leave room for so many experts. */
export function memoryFor(slots: number, contextTokens = CONTEXT): number {
  const { arena } = planMemory(pack.manifest, PLENTY, contextTokens)
  return arena.offset + slots * arena.slotBytes
}

export type Wrap = (residency: ArenaResidency) => ArenaResidency

/** @param wrap what the steps get instead of the residency */
export function backendWith(slots: number, wrap: Wrap = (residency) => residency): BackendFactory {
  return async ({ manifest, store }, signal): Promise<Backend> => {
    const plan = planMemory(manifest, memoryFor(slots), CONTEXT)
    const pages = plan.bytes / 65536
    const memory = new WebAssembly.Memory({ initial: pages, maximum: pages })
    const { name, kernels } = selectKernels(modules, memory)
    kernels.bind(writeDescriptor(memory.buffer, manifest, plan))
    const region = ({ offset, bytes }: { offset: number; bytes: number }) =>
      new Uint8Array(memory.buffer, offset, bytes)
    await loadTrunk(manifest, store, region(plan.trunk), signal)
    const { slotBytes } = plan.arena
    const arena = createResidency({ manifest, store, arena: region(plan.arena), slotBytes })
    if (arena.capacity !== slots) throw new Error(`an arena of ${arena.capacity} slots, not of ${slots}`)
    const residency = wrap(arena)
    const pool = new PagePool(plan.cache.pages)
    const stepper = new Stepper(manifest.config, plan, memory, kernels, residency)
    return {
      name,
      config: { ...manifest.config, context: plan.cache.pages * PAGE_TOKENS },
      residency,
      open(capacity, options = DEFAULT_EXPERTS) {
        return pool.open(capacity, { rule: gateRule(manifest.config, options.selection), options })
      },
      step(sequence, tokens, stepSignal) {
        if (!(sequence instanceof WasmSequence)) throw new TypeError('the sequence is not of this backend')
        return stepper.step(sequence, tokens, stepSignal)
      },
    }
  }
}

export function openBackend(slots: number, store: ShardStore, wrap?: Wrap): Promise<Backend> {
  return backendWith(slots, wrap)({ manifest: pack.manifest, store })
}

/** Bytes of what every request needs, whatever it routes. */
export function fixedBytes({ trunk, text }: Manifest): number {
  const shards = [...trunk.shards, text.tokenizer, ...(text.chatTemplate ? [text.chatTemplate] : [])]
  return shards.reduce((sum, { bytes }) => sum + bytes, 0)
}
