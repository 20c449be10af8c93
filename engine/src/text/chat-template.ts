/**
 * @module
 * A chat as the one text that the model was trained to continue. The template is a Jinja program that comes with the
 * pack, so it runs under a budget; what people write is data, so none of it can end a message or begin another.
 */
import { SparsedgeError } from '../errors.ts'
import type { ChatMessage } from '../request.ts'
import { BoundedInterpreter, Environment, MAX_ITEMS, type Node, parseTemplate } from './bounded-jinja.ts'
import type { Tokenizer } from './tokenizer.ts'

export class ChatTemplate {
  readonly #program: Node
  readonly #tokenizer: Tokenizer
  readonly #bos: string
  readonly #eos: string

  /**
   * @param source Jinja, as in a model's `chat_template`
   * @throws SparsedgeError `manifest_malformed` if it is not Jinja
   */
  constructor(
    source: string,
    tokenizer: Tokenizer,
    tokens: { readonly bosToken?: number | undefined; readonly eosTokens: readonly number[] },
  ) {
    try {
      this.#program = parseTemplate(source)
    } catch (cause) {
      throw templateError(cause)
    }
    this.#tokenizer = tokenizer
    this.#bos = tokens.bosToken === undefined ? '' : tokenizer.decode([tokens.bosToken])
    this.#eos = tokenizer.decode(tokens.eosTokens.slice(0, 1))
  }

  /**
   * The ids of a chat, up to where the assistant's answer begins. Control tokens come from the template only: what looks
   * like one in a message is ordinary text.
   *
   * @throws SparsedgeError `invalid_request` with the template's own words if it refuses the chat (say, two messages of
   * one role in a row), `manifest_malformed` if it fails or runs over its budget
   */
  encode(messages: readonly ChatMessage[]): number[] {
    return this.#tokenizer.encode(this.#render(messages))
  }

  /** The chat as text, with the messages' contents protected. */
  #render(messages: readonly ChatMessage[]): string {
    const environment = globals()
    const length = messages.reduce((sum, { content }) => sum + content.length, 0)
    // What `apply_chat_template` of transformers gives a template.
    environment.set(
      'messages',
      messages.map(({ role, content }) => ({ role, content: this.#tokenizer.protect(content) })),
    )
    environment.set('add_generation_prompt', true)
    environment.set('bos_token', this.#bos)
    environment.set('eos_token', this.#eos)
    environment.set('tools', null)
    environment.set('documents', null)
    try {
      const text = new BoundedInterpreter(environment, length).run(this.#program).value
      if (typeof text !== 'string') throw new TypeError('it does not give a text')
      return text
    } catch (cause) {
      throw templateError(cause)
    }
  }
}

/** Jinja's globals, without the clock: the same chat gives the same prompt on any day. */
function globals(): Environment {
  const environment = new Environment()
  for (const [name, value] of Object.entries({ true: true, false: false, none: null })) {
    environment.set(name, value)
    environment.set(`${name[0].toUpperCase()}${name.slice(1)}`, value)
  }
  environment.set('range', range)
  environment.set('raise_exception', (message: unknown) => {
    throw new SparsedgeError('invalid_request', String(message))
  })
  return environment
}

function range(first: number, last?: number, step = 1): number[] {
  const [start, stop] = last === undefined ? [0, first] : [first, last]
  const length = Math.max(0, Math.ceil((stop - start) / step))
  if (!(length <= MAX_ITEMS)) throw new RangeError('its range is too long')
  return Array.from({ length }, (_, i) => start + i * step)
}

function templateError(cause: unknown): SparsedgeError {
  if (cause instanceof SparsedgeError) return cause
  const reason = cause instanceof Error ? cause.message : String(cause)
  return new SparsedgeError('manifest_malformed', `the chat template fails: ${reason}`, {}, { cause })
}
