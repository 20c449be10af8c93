/**
 * @module
 * A chat as the one text that the model was trained to continue. The template is a Jinja program that comes with the
 * pack, so it runs under a budget; what people write is data, so none of it can end a message or begin another.
 */
import * as jinja from '@huggingface/jinja'
import { SparsedgeError } from '../errors.ts'
import type { ChatMessage } from '../request.ts'
import type { Tokenizer } from './tokenizer.ts'

/** Evaluated nodes. Real templates take about a hundred a message. */
const MAX_STEPS = 500_000
/** Items of an array, code units of a string beyond what the messages hold. */
const MAX_ITEMS = 10_000
const MAX_TEXT = 1 << 20

/** What is used of the library, whose own declarations do not resolve under Node's rules. */
interface Environment {
  set(name: string, value: unknown): unknown
}
interface Node {
  /** Of a loop: what it runs over. */
  readonly iterable?: Node
  /** Of a filtered loop's iterable: the iterable proper. */
  readonly lhs?: Node
}
interface Interpreter {
  run(program: Node): { readonly value: unknown }
  evaluate(node: Node | undefined, environment: Environment): { readonly value: unknown }
}
const Environment: new () => Environment = jinja.Environment
const Interpreter: new (globals: Environment) => Interpreter = jinja.Interpreter

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
      this.#program = jinja.parse(jinja.tokenize(source, { lstrip_blocks: true, trim_blocks: true }))
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
      const text = new BoundedInterpreter(environment, MAX_TEXT + 4 * length).run(this.#program).value
      if (typeof text !== 'string') throw new TypeError('it does not give a text')
      return text
    } catch (cause) {
      throw templateError(cause)
    }
  }
}

/** An interpreter that gives up where a hostile template would go on for ever. */
class BoundedInterpreter extends Interpreter {
  #steps = 0
  /** What loops run over: every item of it counts as a step, since a loop with an empty body evaluates nothing. */
  readonly #iterables = new Set<Node>()
  readonly #maxText: number

  constructor(environment: Environment, maxText: number) {
    super(environment)
    this.#maxText = maxText
  }

  override evaluate(node: Node | undefined, environment: Environment): { readonly value: unknown } {
    const iterable = node?.iterable?.lhs ?? node?.iterable
    if (iterable) this.#iterables.add(iterable)
    const result = super.evaluate(node, environment)
    const { value } = result
    if (typeof value === 'string' && value.length > this.#maxText)
      throw new RangeError('its text is too long')
    const items = Array.isArray(value) ? value.length : value instanceof Map ? value.size : 0
    if (items > MAX_ITEMS) throw new RangeError('its list is too long')
    this.#steps += node && this.#iterables.has(node) ? 1 + items : 1
    if (this.#steps > MAX_STEPS) throw new RangeError(`it takes more than ${MAX_STEPS} steps`)
    return result
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
