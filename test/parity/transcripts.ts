/**
 * @module
 * Conversations with the model that ships, as everybody gets them: the whole engine on the WASM backend, greedily.
 */
import { createEngine, type Engine, GREEDY } from '@sparsedge/engine'
import { wasmBackend } from '@sparsedge/engine/backends/wasm/index'
import { z } from 'zod'
import { openShipped, wasmModules } from './shipped.ts'

export const Transcripts = z.array(
  z.object({
    /** What a reader thought of the answer. */
    review: z.string(),
    messages: z.array(z.object({ role: z.enum(['system', 'user', 'assistant']), content: z.string() })),
    answer: z.string(),
    finishReason: z.enum(['stop', 'length']),
    tokens: z.int(),
  }),
)
export type Transcript = z.infer<typeof Transcripts>[number]

const MAX_TOKENS = 96

export async function shippedEngine(): Promise<Engine> {
  const { manifest, store } = await openShipped()
  const backend = wasmBackend({ modules: await wasmModules() })
  return createEngine({ store, model: manifest.name, backend })
}

export async function answer(
  engine: Engine,
  messages: Transcript['messages'],
): Promise<Pick<Transcript, 'answer' | 'finishReason' | 'tokens'>> {
  let text = ''
  for await (const event of engine.generate({
    prompt: { messages },
    maxTokens: MAX_TOKENS,
    sampling: GREEDY,
    stop: [],
  })) {
    if (event.type === 'text') text += event.text
    else {
      const { finishReason, usage } = event
      return { answer: text, finishReason, tokens: usage.completionTokens }
    }
  }
  throw new Error('the generation ended without a done event')
}
