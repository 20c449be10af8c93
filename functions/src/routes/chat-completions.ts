/**
 * @module
 * `POST /v1/chat/completions`
 */
import type { Context } from 'hono'
import { answer, type Format } from '../answer.ts'
import { ChatBody, expertsOf, readBody, samplingOf, stopsOf } from '../schema.ts'
import type { Service } from '../service.ts'

/**
 * Tokens of an answer whose length nobody names. A sequence holds its memory from the start, so that an answer, once
 * begun, is never broken off; were this all that is left, one chat would keep out all others.
 */
const DEFAULT_MAX_TOKENS = 256

const FORMAT: Format = {
  idPrefix: 'chatcmpl-',
  object: 'chat.completion',
  chunkObject: 'chat.completion.chunk',
  choice: (index, content, finish_reason) => ({
    index,
    message: { role: 'assistant', content, refusal: null },
    logprobs: null,
    finish_reason,
  }),
  opening: (index) => ({
    index,
    delta: { role: 'assistant', content: '' },
    logprobs: null,
    finish_reason: null,
  }),
  delta: (index, content, finish_reason) => ({
    index,
    delta: finish_reason ? {} : { content },
    logprobs: null,
    finish_reason,
  }),
}

export function chatCompletions(service: Service): (c: Context) => Promise<Response> {
  return async (c) => {
    const body = await readBody(c, ChatBody)
    const { completionTokens, expertFetches } = service.limits
    const request = {
      prompt: { messages: body.messages },
      maxTokens: Math.min(
        body.max_completion_tokens ?? body.max_tokens ?? DEFAULT_MAX_TOKENS,
        completionTokens,
      ),
      sampling: samplingOf(body),
      stop: stopsOf(body),
      experts: expertsOf(body, expertFetches),
    }
    return answer(c, service, { body, requests: [request], format: FORMAT })
  }
}
