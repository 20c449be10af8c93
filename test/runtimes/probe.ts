/**
 * @module
 * What every runtime runs: the same packs, the same tokens, greedily, on the plain and on the relaxed kernels. It hashes
 * the raw bits of each step's logits, so that one bit of difference between two machines shows, and the step it began at.
 */
import { createEngine } from '@sparsedge/engine'
import type { Backend } from '@sparsedge/engine/backends/backend'
import { supportsRelaxedSimd, type WasmModules, wasmBackend } from '@sparsedge/engine/backends/wasm/index'
import type { ShardStore } from '@sparsedge/engine/store/store'

export interface ProbeTask {
  readonly model: string
  readonly prompt: string
  /** Tokens to generate. */
  readonly steps: number
}

export interface ProbeResult {
  readonly model: string
  /** As the backend names itself: which kernels ran. */
  readonly backend: string
  /** SHA-256 of the logits' bytes after the prompt and after every token but the last. */
  readonly logits: readonly string[]
  readonly text: string
}

/** Runs each task on each of the builds that this runtime can compile. */
export async function probe(
  store: ShardStore,
  modules: WasmModules,
  tasks: readonly ProbeTask[],
): Promise<ProbeResult[]> {
  const results: ProbeResult[] = []
  for (const task of tasks) {
    results.push(await probeOne(store, { plain: modules.plain }, task))
    if (modules.relaxed) results.push(await probeOne(store, modules, task))
  }
  return results
}

async function probeOne(
  store: ShardStore,
  modules: WasmModules,
  { model, prompt, steps }: ProbeTask,
): Promise<ProbeResult> {
  const create = wasmBackend({ modules, contextTokens: 256 })
  let building: Promise<Backend> | undefined
  const engine = await createEngine({
    store,
    model,
    backend: (pack, signal) => {
      building = create(pack, signal)
      return building
    },
  })
  const backend = await building
  if (!backend) throw new Error('createEngine built no backend')
  const logits: string[] = []
  const tokens: number[] = []
  let next = Int32Array.from(engine.tokenize(prompt))
  const sequence = backend.open(next.length + steps)
  while (tokens.length < steps) {
    const scores = await backend.step(sequence, next)
    logits.push(await sha256(scores))
    tokens.push(largest(scores))
    next = Int32Array.of(tokens[tokens.length - 1])
  }
  sequence.close()
  return { model, backend: backend.name, logits, text: engine.detokenize(tokens) }
}

async function sha256(scores: Float32Array): Promise<string> {
  const digest = await crypto.subtle.digest('SHA-256', Float32Array.from(scores))
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, '0')).join('')
}

function largest(scores: Float32Array): number {
  let best = 0
  for (let i = 1; i < scores.length; i++) if (scores[i] > scores[best]) best = i
  return best
}

/** The modules as bytes, compiled: not for Workers, which import them. */
export async function compileModules(
  read: (name: 'plain' | 'relaxed') => Promise<Uint8Array<ArrayBuffer>>,
): Promise<WasmModules> {
  const plain = await WebAssembly.compile(await read('plain'))
  return supportsRelaxedSimd()
    ? { plain, relaxed: await WebAssembly.compile(await read('relaxed')) }
    : { plain }
}
