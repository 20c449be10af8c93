/**
 * @module
 * A prompt of any form as the token ids that a model continues.
 */
import { SparsedgeError } from '../errors.ts'
import type { Prompt } from '../request.ts'
import type { ChatTemplate } from './chat-template.ts'
import type { Tokenizer } from './tokenizer.ts'

/** What makes text of a model: its tokenizer, and its chat template if it has one. */
export interface ModelText {
  readonly tokenizer: Tokenizer
  readonly template: ChatTemplate | undefined
}

/**
 * @param vocab ids are below this
 * @param context tokens of the longest sequence; one must be left for the answer
 * @returns [tokens], at least one
 * @throws SparsedgeError `prompt_too_long`; `invalid_request` for an empty prompt, ids that do not exist, messages for a
 * model without a chat template or that its template refuses
 */
export function encodePrompt(
  { tokenizer, template }: ModelText,
  prompt: Prompt,
  vocab: number,
  context: number,
): number[] {
  // What cannot fit is not worth encoding.
  refuseBeyond(context, tokenizer.fewest(lengthOf(prompt)), 'at least ')
  const tokens = idsOf(prompt, tokenizer, template)
  refuseBeyond(context, tokens.length, '')
  if (tokens.length === 0) throw new SparsedgeError('invalid_request', 'the prompt is empty')
  if (!tokens.every((token) => Number.isInteger(token) && token >= 0 && token < vocab)) {
    throw new SparsedgeError(
      'invalid_request',
      `the prompt has token ids that are not from 0 to ${vocab - 1}`,
    )
  }
  return tokens
}

function idsOf(prompt: Prompt, tokenizer: Tokenizer, template: ChatTemplate | undefined): number[] {
  if ('tokens' in prompt) return [...prompt.tokens]
  if ('text' in prompt) return [...tokenizer.beginning, ...tokenizer.encode(prompt.text.toWellFormed())]
  if (template) return template.encode(prompt.messages)
  throw new SparsedgeError('invalid_request', 'this model has no chat template; give it a text to continue')
}

/** UTF-16 code units that are to be encoded, at least. */
function lengthOf(prompt: Prompt): number {
  if ('tokens' in prompt) return 0
  if ('text' in prompt) return prompt.text.length
  return prompt.messages.reduce((sum, { content }) => sum + content.length, 0)
}

function refuseBeyond(context: number, tokens: number, about: string): void {
  if (tokens < context) return
  throw new SparsedgeError(
    'prompt_too_long',
    `the prompt has ${about}${tokens} tokens; with an answer the model takes up to ${context}`,
  )
}
