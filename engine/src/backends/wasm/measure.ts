/**
 * @module
 * How fast this machine runs the kernels, before any weight is there.
 */
import { type Manifest, tensorBytes } from '../../pack/manifest.ts'
import { writeDescriptor } from './descriptor.ts'
import { allocate, planMemory } from './plan.ts'
import { selectKernels, type WasmModules } from './select.ts'

/** Enough layers to outlast a timer's grain, few enough that nobody waits. */
const BUDGET_MS = 40
/** Tokens of context that the measured memory has. */
const CONTEXT = 32

/**
 * Milliseconds that a token of a model takes, estimated: attention of as many layers as 20 ms allow, on weights of zero, and
 * the rest by its bytes. Reads nothing.
 *
 * @param share of the experts that a token routes
 * @throws SparsedgeError `backend_unavailable` if the modules are not ours, `memory_exhausted`, `arena_too_small`
 */
export function measureWasm(
  modules: WasmModules,
  manifest: Manifest,
  memoryBytes: number,
  share: number,
): number {
  const { config, trunk, experts } = manifest
  const plan = planMemory(manifest, memoryBytes, CONTEXT)
  const memory = allocate(plan)
  const { kernels } = selectKernels(modules, memory)
  kernels.bind(writeDescriptor(memory.buffer, manifest, plan))
  const pass = (layer: number) => {
    kernels.begin(1, 0)
    kernels.attention(layer, 1, 0)
  }
  const passes = (most: number, layers: number): number => {
    const started = performance.now()
    let done = 0
    while (done < most && performance.now() - started < BUDGET_MS / 2) pass(done++ % layers)
    return done
  }
  // Once to compile and to touch the memory.
  const layers = passes(config.layers, config.layers)
  const started = performance.now()
  const count = passes(8 * layers, layers)
  const perByte = (performance.now() - started) / (count * attentionBytes(manifest))
  const matrices = trunk.tensors.filter(
    ({ layout, name }) => layout !== 'f32' && (config.tiedHead || name !== 'embed'),
  )
  const trunkBytes = matrices.reduce((sum, tensor) => sum + tensorBytes(tensor), 0)
  return perByte * (trunkBytes + share * config.layers * config.experts * experts.bytes)
}

function attentionBytes({ trunk }: Manifest): number {
  return trunk.tensors
    .filter(({ layout, name }) => layout !== 'f32' && name.startsWith('layers.0.attention.'))
    .reduce((sum, tensor) => sum + tensorBytes(tensor), 0)
}

/** The share of experts that a model's profile, or its gate, leads to expect. */
export function expectedShare({ config: { gate, experts }, profile }: Manifest): number {
  if (profile) return profile.flat().reduce((sum, rate) => sum + rate, 0) / profile.flat().length
  if (gate.selection.by === 'top_k') return gate.selection.k / experts
  return gate.selection.by === 'all' ? 1 : 0.5
}
