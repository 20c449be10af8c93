/**
 * @module
 * The engine as users have it, timed: prompt and sampler and text included, exactly what `usage` reports. Runs in every
 * runtime.
 */
import { createEngine, type Engine, GREEDY } from '@sparsedge/engine'
import { type WasmModules, wasmBackend } from '@sparsedge/engine/backends/wasm/index'
import type { ShardStore } from '@sparsedge/engine/store/store'
import type { Answer, Task } from './task.ts'

/** Room for the longest prompt (1,024) and what follows. */
export const CONTEXT_TOKENS = 1152
/** More than an isolate has: with all of its experts in use, the teacher and its 8-bit head would not fit 96 MiB beside
 * 1,152 tokens, and what is measured here is computing, not fetching. Only what is needed is allocated. */
export const MEMORY_BYTES = 128 << 20

/** Larger than any cache that a core has to itself, and about what a token reads. */
const READ_BYTES = 80 << 20
const READ_MS = 250

export interface Kit {
  readonly store: ShardStore
  readonly modules: Required<WasmModules>
  /** ../read.ts, compiled. */
  readonly reader: WebAssembly.Module
}

export interface Meter {
  generate(task: Task): Promise<Answer>
  read(): number
}

export function createMeter({ store, modules, reader }: Kit): Meter {
  const engines = new Map<string, Promise<Engine>>()
  let read: (() => number) | undefined
  return {
    async generate({ model, kernels, prompt, tokens }) {
      const key = `${model} ${kernels}`
      const engine =
        engines.get(key) ?? create(model, kernels === 'plain' ? { plain: modules.plain } : modules)
      engines.set(key, engine)
      return generate(await engine, prompt, tokens)
    },
    read: () => {
      read ??= createReader(reader)
      return read()
    },
  }

  function create(model: string, modules: WasmModules): Promise<Engine> {
    const backend = wasmBackend({ modules, contextTokens: CONTEXT_TOKENS, memoryBytes: MEMORY_BYTES })
    return createEngine({ store, model, backend })
  }
}

async function generate(engine: Engine, prompt: readonly number[], tokens: number): Promise<Answer> {
  let text = ''
  const request = { prompt: { tokens: prompt }, maxTokens: tokens + 1, sampling: GREEDY, stop: [] }
  for await (const event of engine.generate(request)) {
    if (event.type === 'text') {
      text += event.text
      continue
    }
    const { completionTokens, prefillMs, decodeMs } = event.usage
    if (completionTokens !== tokens + 1) {
      throw new Error(
        `${engine.manifest.name} ended its answer after ${completionTokens} tokens: another prompt is needed (prepare.ts)`,
      )
    }
    return { prefill: (1000 * prompt.length) / prefillMs, decode: (1000 * tokens) / decodeMs, text }
  }
  throw new Error('the answer never ended')
}

/** The faster of two ways to read, in 10^9 bytes a second. */
function createReader(module: WebAssembly.Module): () => number {
  const memory = new WebAssembly.Memory({ initial: READ_BYTES / 65536 })
  // Pages that were never written all show the same empty one.
  new Uint8Array(memory.buffer).fill(1)
  const { exports } = new WebAssembly.Instance(module, { env: { memory } })
  const ways = [exports.oneStream, exports.fourStreams].map((way) => {
    if (typeof way !== 'function') throw new Error('read.ts was not compiled')
    return way
  })
  const time = (way: (typeof ways)[number]): number => {
    const start = performance.now()
    let bytes = 0
    let elapsed = 0
    do {
      way(0, READ_BYTES)
      bytes += READ_BYTES
      elapsed = performance.now() - start
    } while (elapsed < READ_MS)
    return bytes / elapsed / 1e6
  }
  return () => Math.max(...ways.map(time))
}
