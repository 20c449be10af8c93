/**
 * @module
 * A client as users have it: OpenAI's own library, pointed at a server of ours, and the fields that we add to its answers.
 */
import OpenAI from 'openai'
import { z } from 'zod'
import type { Server } from '../servers.ts'
import { MODEL } from '../shipped.ts'

export function clientOf({ url }: Pick<Server, 'url'>, apiKey = 'none'): OpenAI {
  return new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 })
}

const Usage = z.object({
  prompt_tokens: z.int().positive(),
  completion_tokens: z.int().positive(),
  experts: z.object({
    activated: z.int().positive(),
    active_share: z.number(),
    hits: z.int().nonnegative(),
    misses: z.int().nonnegative(),
    wait_ms: z.number().nonnegative(),
    tiers: z.record(z.string(), z.strictObject({ requests: z.int().positive(), bytes: z.int().positive() })),
  }),
})

/** `usage` of an answer, with what it cost in experts. */
export function usageOf(answer: { readonly usage?: unknown }): z.infer<typeof Usage> {
  return Usage.parse(answer.usage)
}

const Timings = z.object({ tokens_per_second: z.number().positive() })

/** `timings` of an answer: how fast it was written. */
export function timingsOf(answer: object): z.infer<typeof Timings> {
  return z.object({ timings: Timings }).parse(answer).timings
}

/** What every test asks. */
export const QUESTION = {
  model: MODEL,
  messages: [{ role: 'user' as const, content: 'What is the capital of France?' }],
  temperature: 0,
  max_tokens: 24,
}

/** `logit_bias` that forbids the tokens that end an answer: it goes on to `max_tokens`. */
export const NEVER_ENDS = { 0: -100, 2: -100 }

/** Text, chunks and the last chunk's usage of a streamed answer. */
export async function collect(stream: AsyncIterable<OpenAI.ChatCompletionChunk>) {
  const chunks: OpenAI.ChatCompletionChunk[] = []
  for await (const chunk of stream) chunks.push(chunk)
  const text = chunks.map(({ choices }) => choices[0]?.delta.content ?? '').join('')
  return {
    chunks,
    text,
    finishReason: chunks.findLast(({ choices }) => choices.length > 0)?.choices[0].finish_reason,
  }
}
