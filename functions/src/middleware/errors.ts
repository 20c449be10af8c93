/**
 * @module
 * The one place where a failure becomes an HTTP answer: code → status, type and what the caller is told. The caller's
 * mistakes are explained to the caller; the server's own are logged in full and told in one general sentence.
 */
import { type ErrorCode, SparsedgeError } from '@sparsedge/engine/errors'
import type { Context } from 'hono'
import { HTTPException } from 'hono/http-exception'
import type { ContentfulStatusCode } from 'hono/utils/http-status'

/** The engine's codes, and those that only exist over HTTP. */
export type ApiCode =
  | ErrorCode
  | 'invalid_api_key'
  | 'model_not_found'
  | 'not_found'
  | 'method_not_allowed'
  | 'body_too_large'
  | 'unsupported_media_type'
  | 'deadline_exceeded'
  | 'internal_error'

/** A failure that the HTTP layer itself finds. `param` names the field of the body that is wrong. */
export class ApiError extends Error {
  override readonly name = 'ApiError'
  readonly code: ApiCode
  readonly param: string | null
  readonly headers: Readonly<Record<string, string>>

  constructor(
    code: ApiCode,
    message: string,
    { param, headers, ...options }: { param?: string; headers?: Record<string, string> } & ErrorOptions = {},
  ) {
    super(message, options)
    this.code = code
    this.param = param ?? null
    this.headers = headers ?? {}
  }
}

/** The body that OpenAI's clients know how to read. */
export interface ErrorBody {
  readonly error: {
    readonly message: string
    readonly type: string
    readonly code: ApiCode
    readonly param: string | null
  }
}

interface Answer {
  readonly status: ContentfulStatusCode
  readonly type:
    | 'invalid_request_error'
    | 'authentication_error'
    | 'not_found_error'
    | 'rate_limit_error'
    | 'server_error'
  /** Told instead of the error's own message, where that one is the operator's business. */
  readonly instead?: string
  /** Seconds after which trying again makes sense. */
  readonly retryAfter?: number
}

const bad = (status: ContentfulStatusCode): Answer => ({ status, type: 'invalid_request_error' })
const BROKEN_PACK = 'the model on this server is damaged; its operator has to push it again, with --force'
const broken: Answer = { status: 500, type: 'server_error', instead: BROKEN_PACK }
const TOO_SMALL = 'this server lacks the memory or the features that the model needs'
const tooSmall: Answer = { status: 500, type: 'server_error', instead: TOO_SMALL }

const ANSWERS: Readonly<Record<ApiCode, Answer>> = {
  invalid_request: bad(400),
  prompt_too_long: bad(400),
  unsupported_selection: bad(400),
  body_too_large: bad(413),
  unsupported_media_type: bad(415),
  method_not_allowed: bad(405),
  invalid_api_key: { status: 401, type: 'authentication_error' },
  not_found: { status: 404, type: 'not_found_error' },
  model_not_found: { status: 404, type: 'not_found_error' },
  queue_full: { status: 429, type: 'rate_limit_error', retryAfter: 2 },
  // Raised by the packer, never while serving.
  checkpoint_malformed: broken,
  checkpoint_unsupported: broken,
  // The model that this server is set up to serve is not in its storage.
  unknown_model: {
    ...broken,
    instead:
      'the model of this server is not in its storage; its operator has to push it there (weights-tool push)',
  },
  manifest_malformed: broken,
  manifest_version: broken,
  shard_hash_mismatch: broken,
  shard_too_short: broken,
  shard_too_long: broken,
  weights_not_finite: broken,
  logits_not_finite: broken,
  shard_missing: broken,
  store_unavailable: {
    status: 503,
    type: 'server_error',
    instead: 'the storage that holds the model does not answer; try again',
    retryAfter: 5,
  },
  // Sound, but its own limits forbid what it asks for. Not a status that OpenAI's clients try again by themselves (409, 429,
  // 5xx): each attempt would spend the limit once more.
  expert_budget_spent: bad(422),
  // The platform's limit. Once more experts are resident, the same request needs less.
  expert_fetches_spent: { status: 503, type: 'server_error', retryAfter: 5 },
  arena_too_small: tooSmall,
  memory_exhausted: tooSmall,
  backend_unavailable: tooSmall,
  device_lost: {
    status: 503,
    type: 'server_error',
    instead: 'the GPU of this server went away; try again',
    retryAfter: 5,
  },
  // Nobody is left to read this one.
  cancelled: { status: 503, type: 'server_error', instead: 'the request was cancelled' },
  deadline_exceeded: { status: 504, type: 'server_error', retryAfter: 5 },
  internal_error: { status: 500, type: 'server_error', instead: 'something went wrong in this server' },
}

/** Status, headers and body of any failure; logs what is the operator's business. */
export function describe(
  error: unknown,
  requestId: string,
): {
  status: ContentfulStatusCode
  headers: Record<string, string>
  body: ErrorBody
} {
  const known = error instanceof SparsedgeError || error instanceof ApiError
  const code: ApiCode = known ? error.code : 'internal_error'
  const { status, type, instead, retryAfter } = ANSWERS[code]
  if (status >= 500 && code !== 'cancelled') {
    const place = error instanceof SparsedgeError ? error.place : {}
    console.error(JSON.stringify({ requestId, code, place, error: String(error), cause: causes(error) }))
  }
  const message = instead ?? (known ? error.message : '')
  const param = error instanceof ApiError ? error.param : null
  return {
    status,
    headers: {
      ...(retryAfter === undefined ? {} : { 'Retry-After': String(retryAfter) }),
      ...(error instanceof ApiError ? error.headers : {}),
    },
    body: { error: { message, type, code, param } },
  }
}

/** Hono's error hook: every failure of every route and middleware ends here. */
export function onError(error: Error, c: Context): Response {
  // Hono itself throws these only for what a client sent (a body that cannot be decoded).
  const failure = error instanceof HTTPException ? new ApiError('invalid_request', error.message) : error
  const { status, headers, body } = describe(failure, c.get('requestId'))
  return c.json(body, status, headers)
}

export function onNotFound(c: Context): Response {
  return onError(new ApiError('not_found', `there is nothing at ${c.req.method} ${c.req.path}`), c)
}

/** Answers 405 on a path that exists for other methods. */
export function only(...methods: string[]): (c: Context) => never {
  const allow = methods.join(', ')
  return (c) => {
    throw new ApiError('method_not_allowed', `${c.req.path} takes ${allow}, not ${c.req.method}`, {
      headers: { Allow: allow },
    })
  }
}

function causes(error: unknown): string[] {
  const chain: string[] = []
  let cause = error instanceof Error ? error.cause : undefined
  while (cause !== undefined && chain.length < 5) {
    chain.push(String(cause))
    cause = cause instanceof Error ? cause.cause : undefined
  }
  return chain
}
