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

/** The likeliest token each time, and nothing else; a start for every other choice. */
export const GREEDY: SamplingParams = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  logitBias: new Map(),
  seed: 0,
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

/**
 * Which experts run: a share of all of them, of those that the manifest's `gate.offsets` lists; the k best; or those with
 * N · p > threshold. The last two only for softmax gates that select that way. All other gates are asked for nothing else
 * than what they were trained to do.
 */
export type ExpertSelection =
  | { readonly share: number }
  | { readonly topK: number }
  | { readonly threshold: number }

/** How a request uses experts. Only `selection` and `policy` can change an answer. */
export interface ExpertOptions {
  /** Absent: the model's own. */
  readonly selection?: ExpertSelection
  /**
   * `exact`: every expert that a gate selects runs, and a step waits until it is there. `resident_first`: a decoding step
   * waits for nothing and makes do with the experts that are resident; how far it did is {@link ExpertUsage.fidelity}. A
   * prompt's steps wait, since in a cold arena nothing else makes sense, until a limit below is spent.
   */
  readonly policy: 'exact' | 'resident_first'
  /** Most bytes of experts to fetch, most fetches to start, most milliseconds to wait on this request's behalf; absent: no
   * limit. When one is spent, an exact request fails with `expert_budget_spent`, for fetches `expert_fetches_spent`; a
   * resident_first one goes on with what is resident. */
  readonly maxBytes?: number
  readonly maxFetches?: number
  readonly maxLatencyMs?: number
  /** Fetch what the next layer will need, or is expected to, while this one computes. */
  readonly lookahead: boolean
}

/** What a request gets that says nothing about experts. */
export const DEFAULT_EXPERTS: ExpertOptions = { policy: 'exact', lookahead: true }

export interface GenerateRequest {
  readonly prompt: Prompt
  readonly maxTokens: number
  readonly sampling: SamplingParams
  /** Generation ends before the first of these would appear; none of it is ever emitted. */
  readonly stop: readonly string[]
  /** Absent: {@link DEFAULT_EXPERTS}. */
  readonly experts?: ExpertOptions
}

export type FinishReason = 'stop' | 'length'

export interface GenerateUsage {
  readonly promptTokens: number
  readonly completionTokens: number
  readonly experts: ExpertUsage
  /** Milliseconds: until the sequence had its memory, until the first token, until the last. */
  readonly queueMs: number
  readonly prefillMs: number
  readonly decodeMs: number
}

/** Text as it becomes certain (never half a character, never part of a stop string), then exactly one `done`. `tokens`
 * counts what was generated so far, tokens whose text is still held back included. */
export type GenerateEvent =
  | { readonly type: 'text'; readonly text: string; readonly tokens: number }
  | { readonly type: 'done'; readonly finishReason: FinishReason; readonly usage: GenerateUsage }
