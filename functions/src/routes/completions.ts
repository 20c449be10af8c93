/**
 * @module
 * `POST /v1/completions`: continues text or token ids as they are, without a chat template. Several prompts are answered
 * one after another, one choice each.
 */
import type { Context } from 'hono'
import { answer, type Format } from '../answer.ts'
import { ApiError } from '../middleware/errors.ts'
import { CompletionBody, expertsOf, readBody, samplingOf, stopsOf } from '../schema.ts'
import type { Service } from '../service.ts'

/** OpenAI's default for this endpoint. */
const DEFAULT_MAX_TOKENS = 16

const FORMAT: Format = {
  idPrefix: 'cmpl-',
  object: 'text_completion',
  chunkObject: 'text_completion',
  choice: (index, text, finish_reason) => ({ index, text, logprobs: null, finish_reason }),
  delta: (index, text, finish_reason) => ({ index, text, logprobs: null, finish_reason }),
}

export function completions(service: Service): (c: Context) => Promise<Response> {
  return async (c) => {
    const body = await readBody(c, CompletionBody)
    const { completionTokens, prompts, expertFetches } = service.limits
    if (body.prompt.length > prompts) {
      const message = `prompt: at most ${prompts} prompts in one request, not ${body.prompt.length}`
      throw new ApiError('invalid_request', message, { param: 'prompt' })
    }
    const common = {
      maxTokens: Math.min(body.max_tokens ?? DEFAULT_MAX_TOKENS, completionTokens),
      sampling: samplingOf(body),
      stop: stopsOf(body),
      experts: expertsOf(body, expertFetches),
    }
    const requests = body.prompt.map((prompt) => ({ prompt, ...common }))
    return answer(c, service, { body, requests, format: FORMAT })
  }
}
