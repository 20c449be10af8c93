/**
 * @module
 * Running the requests of one answer on an engine, under the time limit and until someone stops it.
 */
import type { Engine } from '@sparsedge/engine'
import { abortable } from '@sparsedge/engine/abortable'
import { type ErrorCode, SparsedgeError } from '@sparsedge/engine/errors'
import type { GenerateEvent, GenerateRequest } from '@sparsedge/engine/request'
import { ApiError } from './middleware/errors.ts'
import type { Limits } from './service.ts'

export type ChoiceEvent = GenerateEvent & { readonly choice: number }

/**
 * The events of all requests, one request after another: each choice's text, then its `done`.
 *
 * @param loading the engine, perhaps still being built; a request stops waiting for it when it is cancelled, the
 * building goes on
 * @param cancelled fires when nobody wants the answer any more
 * @throws what the engine throws; ApiError `deadline_exceeded`, `invalid_request`
 */
export async function* generate(
  loading: Promise<Engine>,
  requests: readonly GenerateRequest[],
  limits: Limits,
  cancelled: AbortSignal,
): AsyncGenerator<ChoiceEvent> {
  const limit = new AbortController()
  const timer = setTimeout(() => limit.abort(), limits.seconds * 1000)
  const signal = AbortSignal.any([cancelled, limit.signal])
  try {
    const engine = await abortable(loading, signal)
    // All are checked before the first is answered.
    const encoded = requests.map((request) => encode(engine, request, limits))
    let fetches = 0
    for (const [choice, request] of encoded.entries()) {
      for await (const event of engine.generate(lessFetches(request, fetches), signal)) {
        if (event.type === 'done') fetches += event.usage.experts.requests
        yield { choice, ...event }
      }
    }
  } catch (error) {
    if (!limit.signal.aborted) throw named(error)
    const message = `the answer took longer than the ${limits.seconds} s that this server allows`
    throw new ApiError('deadline_exceeded', message, { cause: error })
  } finally {
    clearTimeout(timer)
  }
}

/** A request of an answer that has fetched so often already: the platform counts by the answer, not by the prompt. */
function lessFetches(request: GenerateRequest, fetches: number): GenerateRequest {
  const { experts } = request
  if (experts?.maxFetches === undefined) return request
  return { ...request, experts: { ...experts, maxFetches: Math.max(experts.maxFetches - fetches, 0) } }
}

/** What only the engine can tell about the field `experts` of the body. */
const ABOUT_EXPERTS: readonly ErrorCode[] = ['unsupported_selection', 'expert_budget_spent']

/** What only the engine can tell about a field of the body, with that field. */
function named(error: unknown): unknown {
  if (!(error instanceof SparsedgeError) || !ABOUT_EXPERTS.includes(error.code)) return error
  return new ApiError(error.code, error.message, { param: 'experts', cause: error })
}

/** The request with its prompt as tokens, once all that only an engine can tell about it has been checked. */
function encode(engine: Engine, request: GenerateRequest, limits: Limits): GenerateRequest {
  const { vocab } = engine.manifest.config
  if ([...request.sampling.logitBias.keys()].some((id) => id >= vocab)) {
    throw new ApiError('invalid_request', `logit_bias: token ids must be below ${vocab}`, {
      param: 'logit_bias',
    })
  }
  const param = 'messages' in request.prompt ? 'messages' : 'prompt'
  try {
    const tokens = engine.encode(request.prompt)
    if (tokens.length > limits.promptTokens) {
      const message = `the prompt has ${tokens.length} tokens, this server takes up to ${limits.promptTokens}`
      throw new SparsedgeError('prompt_too_long', message)
    }
    return { ...request, prompt: { tokens } }
  } catch (cause) {
    // The engine does not know which field that was.
    throw cause instanceof SparsedgeError ? new ApiError(cause.code, cause.message, { param, cause }) : cause
  }
}
