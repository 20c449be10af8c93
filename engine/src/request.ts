/**
 * @module
 * A request as the engine takes it, after the edge of the application has parsed and bounded it, and what comes back.
 */
import type { ExpertUsage } from './residency/usage.ts'

/** Every field is set; defaults are the edge's business. Ranges are checked there, not here. */
export interface SamplingParams {
  /** 0: greedy. */
  readonly temperature: number
  /** Keep the k likeliest; 0: off. */
  readonly topK: number
  /** Keep the likeliest until their mass reaches p; 1: off. */
  readonly topP: number
  /** Drop what is less likely than minP times the likeliest; 0: off. */
  readonly minP: number
  /** Divides (or, where negative, multiplies) the logits of tokens seen in prompt or output; 1: off. */
  readonly repetitionPenalty: number
  /** Subtracted once from the logit of each token already generated. */
  readonly presencePenalty: number
  /** Subtracted from a generated token's logit once for each time it was generated. */
  readonly frequencyPenalty: number
  /** Token id → added to its logit; -100 bans, 100 forces. */
  readonly logitBias: ReadonlyMap<number, number>
  readonly seed: number
}

export interface ChatMessage {
  readonly role: 'system' | 'user' | 'assistant'
  readonly content: string
}

/** What to continue: a chat (goes through the model's template), a text, or token ids as they are. */
export type Prompt =
  | { readonly messages: readonly ChatMessage[] }
  | { readonly text: string }
  | { readonly tokens: readonly number[] }

export interface GenerateRequest {
  readonly prompt: Prompt
  readonly maxTokens: number
  readonly sampling: SamplingParams
  /** Generation ends before the first of these would appear; none of it is ever emitted. */
  readonly stop: readonly string[]
}

export type FinishReason = 'stop' | 'length'

export interface GenerateUsage {
  readonly promptTokens: number
  readonly completionTokens: number
  readonly experts: ExpertUsage
  /** Milliseconds. */
  readonly prefillMs: number
  readonly decodeMs: number
}

/** Text as it becomes certain (never half a character, never part of a stop string), then exactly one `done`. `tokens`
 * counts what was generated so far, tokens whose text is still held back included. */
export type GenerateEvent =
  | { readonly type: 'text'; readonly text: string; readonly tokens: number }
  | { readonly type: 'done'; readonly finishReason: FinishReason; readonly usage: GenerateUsage }
