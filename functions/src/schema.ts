/**
 * @module
 * The bodies of OpenAI's API as this server takes them. What is known and malformed is an error that names its field;
 * what is unknown is ignored, so that a client with more knobs than we have still works. `null` means absent.
 */
import {
  type ChatMessage,
  DEFAULT_EXPERTS,
  type ExpertOptions,
  type ExpertSelection,
  type Prompt,
  type SamplingParams,
} from '@sparsedge/engine/request'
import type { Context } from 'hono'
import { z } from 'zod'
import { bodyText } from './middleware/body.ts'
import { ApiError } from './middleware/errors.ts'

const TokenIds = z.array(z.int().nonnegative()).min(1)

/** Longer than any request takes. */
const A_DAY_MS = 86_400_000

/**
 * Which experts run, and what may be fetched for them. No client but ours knows this field, and it changes what is
 * answered: here an unknown name is an error, as it can only be a mistake.
 */
const Experts = z
  .strictObject({
    /** At most one of these; none: as the model was trained. */
    share: z.number().min(0).max(1).nullish(),
    top_k: z.int().min(1).nullish(),
    threshold: z.number().min(0).nullish(),
    policy: z.enum(['exact', 'resident_first']).nullish(),
    max_bytes: z.int().min(0).nullish(),
    max_latency_ms: z.int().min(0).max(A_DAY_MS).nullish(),
    lookahead: z.boolean().nullish(),
    /** Adds a line for each layer to the usage. */
    report: z.literal('layers').nullish(),
  })
  .refine(
    ({ share, top_k, threshold }) => [share, top_k, threshold].filter((one) => one != null).length <= 1,
    {
      error: 'share, top_k and threshold exclude each other',
    },
  )

/** What both endpoints share. */
const Common = z.object({
  /** Absent: the server's first model. */
  model: z.string().nullish(),
  /** An answer is never longer than the server's limit either; asking for more is not an error. */
  max_tokens: z.int().min(1).nullish(),
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  /** 0 or -1: off. */
  top_k: z.int().min(-1).nullish(),
  min_p: z.number().min(0).max(1).nullish(),
  repetition_penalty: z.number().min(0.01).max(10).nullish(),
  presence_penalty: z.number().min(-2).max(2).nullish(),
  frequency_penalty: z.number().min(-2).max(2).nullish(),
  /** Token id → bias. */
  logit_bias: z
    .record(z.string().regex(/^\d+$/, 'must be a token id'), z.number().min(-100).max(100))
    .nullish(),
  seed: z.int().nullish(),
  stop: z
    .union([z.string().min(1), z.array(z.string().min(1)).max(4)], {
      error: 'must be a string that is not empty, or a list of up to four of them',
    })
    .nullish(),
  n: z.literal(1, { error: 'only one choice per prompt is served: n must be 1' }).nullish(),
  experts: Experts.nullish(),
  stream: z.boolean().nullish(),
  stream_options: z.object({ include_usage: z.boolean().nullish() }).nullish(),
})

const Content = z
  .union([z.string(), z.array(z.object({ type: z.literal('text'), text: z.string() }))], {
    error:
      'must be a string or a list of parts { "type": "text", "text": … }; this model reads nothing but text',
  })
  .transform((content) => (typeof content === 'string' ? content : content.map(({ text }) => text).join('')))

const Message = z.object({
  role: z
    .enum(['system', 'developer', 'user', 'assistant'])
    // Newer clients call the system's part the developer's.
    .transform((role): ChatMessage['role'] => (role === 'developer' ? 'system' : role)),
  content: Content,
})

/** `POST /v1/chat/completions` */
export const ChatBody = Common.extend({
  messages: z.array(Message).min(1),
  /** The newer name of `max_tokens`; wins where both are given. */
  max_completion_tokens: z.int().min(1).nullish(),
})

/** `POST /v1/completions`. Every form of `prompt` that OpenAI names is served; several prompts give several choices. */
export const CompletionBody = Common.extend({
  prompt: z
    .union([z.string(), z.array(z.string()).min(1), TokenIds, z.array(TokenIds).min(1)], {
      error: 'must be a string, a list of strings, a list of token ids or a list of such lists',
    })
    .transform(toPrompts),
})

function toPrompts(prompt: string | string[] | number[] | number[][]): Prompt[] {
  if (typeof prompt === 'string') return [{ text: prompt }]
  if (prompt.every((part) => typeof part === 'number')) return [{ tokens: prompt }]
  return prompt.map((part) => (typeof part === 'string' ? { text: part } : { tokens: [part].flat() }))
}

export type ChatBody = z.infer<typeof ChatBody>
export type CompletionBody = z.infer<typeof CompletionBody>
export type CommonBody = z.infer<typeof Common>

/** OpenAI's defaults; a seed is drawn where none is given. */
export function samplingOf(body: CommonBody): SamplingParams {
  return {
    temperature: body.temperature ?? 1,
    topK: Math.max(body.top_k ?? 0, 0),
    topP: body.top_p ?? 1,
    minP: body.min_p ?? 0,
    repetitionPenalty: body.repetition_penalty ?? 1,
    presencePenalty: body.presence_penalty ?? 0,
    frequencyPenalty: body.frequency_penalty ?? 0,
    logitBias: new Map(Object.entries(body.logit_bias ?? {}).map(([id, bias]) => [Number(id), bias])),
    seed: body.seed ?? crypto.getRandomValues(new Uint32Array(1))[0],
  }
}

/** @param maxFetches the server's own limit */
export function expertsOf({ experts }: CommonBody, maxFetches: number | undefined): ExpertOptions {
  const { policy, max_bytes, max_latency_ms, lookahead } = experts ?? {}
  const selection = selectionOf(experts ?? {})
  return {
    ...(selection && { selection }),
    policy: policy ?? DEFAULT_EXPERTS.policy,
    lookahead: lookahead ?? DEFAULT_EXPERTS.lookahead,
    ...(max_bytes != null && { maxBytes: max_bytes }),
    ...(max_latency_ms != null && { maxLatencyMs: max_latency_ms }),
    ...(maxFetches !== undefined && { maxFetches }),
  }
}

function selectionOf(experts: z.infer<typeof Experts>): ExpertSelection | undefined {
  const { share, top_k, threshold } = experts
  if (share != null) return { share }
  if (top_k != null) return { topK: top_k }
  return threshold == null ? undefined : { threshold }
}

export function stopsOf({ stop }: CommonBody): string[] {
  return [stop ?? []].flat()
}

/**
 * Reads and checks the body of a request.
 *
 * JSON must be declared as such: a browser then asks for leave (CORS) before another site's page can make this server
 * work, which it would not for a form.
 *
 * @throws ApiError `unsupported_media_type`, `cancelled`, `invalid_request` with the first malformed field as `param`
 */
export async function readBody<T>(c: Context, schema: z.ZodType<T>): Promise<T> {
  const type = c.req.header('Content-Type')?.split(';')[0].trim().toLowerCase()
  if (type !== 'application/json') {
    throw new ApiError(
      'unsupported_media_type',
      'send JSON, with the header "Content-Type: application/json"',
    )
  }
  const text = await bodyText(c)
  if (text.trim() === '') throw new ApiError('invalid_request', 'the body is empty; send JSON')
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch (cause) {
    throw new ApiError('invalid_request', 'the body is not JSON', { cause })
  }
  const parsed = schema.safeParse(json, { error: inWords })
  if (parsed.success) return parsed.data
  const { path, message } = parsed.error.issues[0]
  if (path.length === 0) throw new ApiError('invalid_request', `the body ${message}`)
  const param = fieldName(path)
  throw new ApiError('invalid_request', `${param}: ${message}`, { param })
}

const TYPES: Readonly<Record<string, string>> = {
  array: 'a list',
  boolean: 'true or false',
  int: 'a whole number',
  number: 'a number',
  object: 'an object',
  record: 'an object',
  string: 'a string',
}

/** What is wrong with a field, for who sent it; undefined where zod's own words will do. */
function inWords(issue: z.core.$ZodRawIssue): string | undefined {
  switch (issue.code) {
    case 'invalid_type':
      return issue.input === undefined ? 'is missing' : `must be ${TYPES[issue.expected] ?? issue.expected}`
    case 'invalid_value':
      return issue.values.length === 1
        ? `must be ${issue.values.join()}`
        : `must be one of ${issue.values.join(', ')}`
    case 'too_small':
      return issue.origin === 'array' || issue.origin === 'string'
        ? 'must not be empty'
        : `must be at least ${issue.minimum}`
    case 'too_big':
      return `must be at most ${issue.maximum}`
    case 'unrecognized_keys':
      // Only there are they an error.
      return `knows no ${issue.keys.join(', ')}; it knows ${Object.keys(Experts.shape).join(', ')}`
    case 'invalid_key':
      return issue.issues[0]?.message
  }
}

/** `['messages', 0, 'content']` → `messages[0].content` */
function fieldName(path: readonly PropertyKey[]): string {
  return path
    .map((key, i) => (typeof key === 'number' ? `[${key}]` : i === 0 ? String(key) : `.${String(key)}`))
    .join('')
}
