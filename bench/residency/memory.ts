/**
 * @module
 * A long answer in the memory of one isolate, though it cannot hold all experts: the product under `wrangler dev`, with
 * V8 told to refuse any WebAssembly memory above its share, and the inspector counting everything, as in test/budget.
 */
import { z } from 'zod'
import { type Inspector, inspect } from '../../test/budget/inspector.ts'
import { freePort } from '../../test/processes.ts'
import { startWorker } from '../../test/servers.ts'
import { STATE } from '../paths.ts'
import { promptOf } from './traces.ts'

export const MIB = 2 ** 20
/** An isolate has 128 MB: what the WebAssembly memory may take of it, and everything together. */
export const WASM_MIB = 96
export const ISOLATE_MIB = 120
/** More than any answer fetches: a local bucket counts no subrequests. */
const NO_LIMIT = String(1 << 20)
/** Tokens between two looks at the memory. Each collects all garbage first, so it must not be done all the time. */
const LOOK_EVERY = 128

export interface MemoryPlan {
  readonly model: string
  /** What the WebAssembly memory may have. */
  readonly memoryMib: number
  readonly promptTokens: number
  /** Prompt and answer together. */
  readonly contextTokens: number
}

export interface Memory extends MemoryPlan {
  /** Experts that fit, of all. */
  readonly slots: number
  readonly all: number
  /** Of a token of prompt or answer, mean. */
  readonly misses: number
  readonly bytes: number
  /** Of the answer. */
  readonly tokensPerSecond: number
  /** The most there ever was, after garbage was collected: the WebAssembly memory, and all that the isolate held. */
  readonly wasmBytes: number
  readonly isolateBytes: number
}

const Arena = z.object({ capacity: z.int(), layers: z.array(z.object({ resident: z.array(z.int()) })) })
const Chunk = z.object({
  error: z.unknown().optional(),
  usage: z
    .object({
      completion_tokens: z.int(),
      experts: z.object({ misses: z.int(), tiers: z.record(z.string(), z.object({ bytes: z.int() })) }),
    })
    .nullish(),
  timings: z.object({ tokens_per_second: z.number() }).optional(),
})

/** Decodes, exactly, until the context is full. */
export async function measureMemory(plan: MemoryPlan): Promise<Memory> {
  const { model, memoryMib, promptTokens, contextTokens } = plan
  const inspectorPort = await freePort()
  const server = await startWorker({
    state: STATE,
    v8Flags: `--wasm-max-mem-pages=${WASM_MIB * 16}`,
    inspectorPort,
    vars: {
      MODEL: model,
      MEMORY_MIB: String(memoryMib),
      CONTEXT_TOKENS: String(contextTokens),
      MAX_TOKENS: String(contextTokens),
      REQUEST_SECONDS: '3600',
      EXPERT_FETCHES: NO_LIMIT,
    },
  })
  const inspector = await inspect(inspectorPort)
  try {
    const peaks = { wasmBytes: 0, isolateBytes: 0 }
    let begun = false
    const asking = fetch(`${server.url}/v1/completions`, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({
        prompt: [...(await promptOf(promptTokens))],
        max_tokens: contextTokens - promptTokens,
        // As in traces.ts, and the same every time: an answer that goes in circles needs few experts.
        temperature: 0.7,
        top_p: 0.95,
        repetition_penalty: 1.1,
        seed: 1,
        // Its end tokens: the answer goes on until the context is full.
        logit_bias: { 0: -100, 2: -100 },
        stream: true,
        stream_options: { include_usage: true },
      }),
    }).finally(() => {
      begun = true
    })
    // While the model loads and reads its prompt, what comes from the bucket goes into the cache.
    while (!begun) await look(inspector, peaks)
    const response = await asking
    if (!response.ok || !response.body) throw new Error(`the Worker answered ${await response.text()}`)
    let last: z.infer<typeof Chunk> = {}
    let chunks = 0
    for await (const data of events(response.body)) {
      last = Chunk.parse(JSON.parse(data))
      if (last.error !== undefined) throw new Error(`the answer failed: ${data}`)
      if (chunks++ % LOOK_EVERY === 0) await look(inspector, peaks)
    }
    await look(inspector, peaks)
    const { usage, timings } = last
    if (usage?.completion_tokens !== contextTokens - promptTokens) throw new Error('the answer ended early')
    const { capacity, layers } = Arena.parse(await (await fetch(`${server.url}/v1/experts`)).json())
    const bytes = Object.values(usage.experts.tiers).reduce((sum, tier) => sum + tier.bytes, 0)
    return {
      ...plan,
      ...peaks,
      slots: capacity,
      all: layers.reduce((sum, { resident }) => sum + resident.length, 0),
      misses: usage.experts.misses / contextTokens,
      bytes: bytes / contextTokens,
      tokensPerSecond: timings?.tokens_per_second ?? Number.NaN,
    }
  } finally {
    inspector.close()
    await server.stop()
  }
}

async function look(inspector: Inspector, peaks: { wasmBytes: number; isolateBytes: number }): Promise<void> {
  const { total, buffers } = await inspector.memory()
  peaks.wasmBytes = Math.max(peaks.wasmBytes, buffers[0] ?? 0)
  peaks.isolateBytes = Math.max(peaks.isolateBytes, total)
}

/** The data of a stream's events, but for the last, which says that it is the last. */
async function* events(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  let text = ''
  const decoder = new TextDecoder()
  for await (const bytes of body) {
    text += decoder.decode(bytes, { stream: true })
    const lines = text.split('\n')
    text = lines.pop() ?? ''
    for (const line of lines) {
      if (line.startsWith('data: ') && line !== 'data: [DONE]') yield line.slice('data: '.length)
    }
  }
}
