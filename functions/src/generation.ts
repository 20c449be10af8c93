/**
 * @module
 * Running the requests of one answer on an engine, under the time limit and until someone stops it.
 */
import type { Engine } from '@sparsedge/engine'
import { abortable } from '@sparsedge/engine/abortable'
import { SparsedgeError } from '@sparsedge/engine/errors'
import type { GenerateEvent, GenerateRequest, Prompt } from '@sparsedge/engine/request'
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
    for (const request of requests) checkAgainst(engine, request, limits)
    for (const [choice, request] of requests.entries()) {
      for await (const event of engine.generate(request, signal)) yield { choice, ...event }
    }
  } catch (error) {
    if (!limit.signal.aborted) throw error
    const message = `the answer took longer than the ${limits.seconds} s that this server allows`
    throw new ApiError('deadline_exceeded', message, { cause: error })
  } finally {
    clearTimeout(timer)
  }
}

/** What only an engine can tell about a request. */
function checkAgainst(engine: Engine, { prompt, sampling }: GenerateRequest, limits: Limits): void {
  const { vocab } = engine.manifest.config
  if ('tokens' in prompt && prompt.tokens.some((id) => id >= vocab)) {
    throw new ApiError('invalid_request', `prompt: token ids must be below ${vocab}`, { param: 'prompt' })
  }
  if ([...sampling.logitBias.keys()].some((id) => id >= vocab)) {
    throw new ApiError('invalid_request', `logit_bias: token ids must be below ${vocab}`, {
      param: 'logit_bias',
    })
  }
  const param = 'messages' in prompt ? 'messages' : 'prompt'
  const tokens = countTokens(engine, prompt, param)
  if (tokens > limits.promptTokens) {
    const message = `the prompt has ${tokens} tokens, this server takes up to ${limits.promptTokens}`
    throw new ApiError('prompt_too_long', message, { param })
  }
}

/** The engine refuses prompts that are empty or longer than its memory; the caller is told which field that was. */
function countTokens(engine: Engine, prompt: Prompt, param: string): number {
  try {
    return engine.tokenCount(prompt)
  } catch (cause) {
    throw cause instanceof SparsedgeError ? new ApiError(cause.code, cause.message, { param, cause }) : cause
  }
}
