/**
 * @module
 * Jinja for templates that nobody trusts: an interpreter that gives up where a hostile one would go on for ever or fill
 * the memory.
 */
import * as jinja from '@huggingface/jinja'

/** Evaluated nodes. Real templates take about a hundred a message. */
const MAX_STEPS = 500_000
/** Items of an array. */
export const MAX_ITEMS = 10_000
/** Code units of a text, or of all texts of a list together, beyond what the messages hold. */
const MAX_TEXT = 1 << 20
/** Filters and methods that make more of a text than there was, by as much as their arguments say. */
const GROWING = new Set(['indent', 'join', 'replace', 'tojson'])
/** The longest text, or the highest number, that they are given: what lists are joined with, how far lines are indented. */
const MAX_ARGUMENT = 64
/** White space in a row in a template's source. The library takes a time that grows with its square. */
const MAX_BLANKS = 1000

/** What is used of the library, whose own declarations do not resolve under Node's rules. */
export interface Environment {
  set(name: string, value: unknown): unknown
}
export interface Node {
  readonly type?: string
  /** Of a loop: what it runs over. */
  readonly iterable?: Node
  /** Of a filtered loop's iterable: the iterable proper. */
  readonly lhs?: Node
  /** Of a filter: its name, or a call of it with arguments. */
  readonly filter?: Node
  /** Of a call block. */
  readonly call?: Node
  /** Of a call. */
  readonly callee?: Node
  readonly args?: readonly Node[]
  /** Of `object.property` and, computed, `object[property]`. */
  readonly property?: Node
  readonly computed?: boolean
  /** Of a name: itself; of an argument with a name: its expression; of other nodes much else. */
  readonly value?: unknown
  /** Of an argument that is spread out. */
  readonly argument?: Node
}
interface Value {
  readonly type: string
  readonly value:
    | Value[]
    | Map<string, Value>
    | string
    | number
    | boolean
    | (() => unknown)
    | null
    | undefined
}
interface Interpreter {
  run(program: Node): Value
  evaluate(node: Node | undefined, environment: Environment): Value
}
export const Environment: new () => Environment = jinja.Environment
const Interpreter: new (globals: Environment) => Interpreter = jinja.Interpreter

/** @throws Error if the source is not Jinja, or more blanks than any template needs */
export function parseTemplate(source: string): Node {
  for (const [blanks] of source.matchAll(/\s+/g)) {
    if (blanks.length > MAX_BLANKS) throw new RangeError(`it has more than ${MAX_BLANKS} blanks in a row`)
  }
  return jinja.parse(jinja.tokenize(source, { lstrip_blocks: true, trim_blocks: true }))
}

/**
 * No value is larger than {@link MAX_TEXT} and {@link MAX_ITEMS} allow. Between two looks at a value a single operation
 * can make it larger, by {@link MAX_ARGUMENT} at most.
 */
export class BoundedInterpreter extends Interpreter {
  #steps = 0
  /** What loops run over: every item of it counts as a step, since a loop with an empty body evaluates nothing. */
  readonly #iterables = new Set<Node>()
  /** Arguments of what is {@link GROWING}. */
  readonly #amplifiers = new Set<unknown>()
  /** What is called right where it is named. */
  readonly #callees = new Set<Node>()
  /** Of lists and of dictionaries, neither of which ever changes. */
  readonly #sizes = new WeakMap<object, number>()
  readonly #maxText: number

  /** @param length code units of all messages */
  constructor(environment: Environment, length: number) {
    super(environment)
    this.#maxText = MAX_TEXT + 4 * length
  }

  override evaluate(node: Node | undefined, environment: Environment): Value {
    if (node) this.#lookAhead(node)
    const result = super.evaluate(node, environment)
    const { type, value } = result
    const size = this.#sizeOf(result)
    if (size > this.#maxText) throw new RangeError('its text is too long')
    if (this.#amplifiers.has(node) && this.#amplitude(result) > MAX_ARGUMENT)
      throw new RangeError(`it joins, indents or replaces with more than ${MAX_ARGUMENT}`)
    // Under another name it would not be known for what it is.
    if (type === 'FunctionValue' && node?.property && !(this.#callees.has(node) && !node.computed))
      throw new TypeError('a method can only be called')
    const items = itemsOf(value)
    if (items > MAX_ITEMS) throw new RangeError('its list is too long')
    this.#steps += node && this.#iterables.has(node) ? 1 + items : 1
    if (this.#steps > MAX_STEPS) throw new RangeError(`it takes more than ${MAX_STEPS} steps`)
    return result
  }

  /** Notes which parts of a node must be looked at when their values are known. */
  #lookAhead(node: Node): void {
    const iterable = node.iterable?.lhs ?? node.iterable
    if (iterable) this.#iterables.add(iterable)
    const call = node.filter ?? node.call ?? node
    if (call.callee) this.#callees.add(call.callee)
    const name = (call.callee?.property ?? call.callee)?.value
    if (typeof name !== 'string' || !GROWING.has(name)) return
    for (const argument of call.args ?? []) this.#amplifiers.add(expressionOf(argument))
  }

  /** The most by which a value can make something grow: a number by itself, a text by its length. */
  #amplitude({ value }: Value): number {
    if (typeof value === 'string') return value.length
    if (typeof value === 'number') return Math.abs(value)
    // Arguments that are spread out.
    if (!Array.isArray(value) && !(value instanceof Map)) return 0
    return Math.max(0, ...Array.from(value.values(), (item) => this.#amplitude(item)))
  }

  /** Code units of all text in a value, and one more for each value in it. */
  #sizeOf({ type, value }: Value): number {
    if (typeof value === 'string') return 1 + value.length
    if (!Array.isArray(value) && !(value instanceof Map)) return 1
    const known = this.#sizes.get(value)
    if (known !== undefined) return known
    let size = 1
    for (const item of value.values()) {
      if (item.type === 'NamespaceValue') throw new TypeError('a namespace can only be a variable')
      size += this.#sizeOf(item)
    }
    if (value instanceof Map) for (const key of value.keys()) size += key.length
    if (type !== 'NamespaceValue') this.#sizes.set(value, size)
    else this.#steps += itemsOf(value)
    return size
  }
}

function itemsOf(value: Value['value']): number {
  if (Array.isArray(value)) return value.length
  return value instanceof Map ? value.size : 0
}

/** What an argument evaluates: `x`, `name=x`, `*x`. */
function expressionOf(argument: Node): unknown {
  if (argument.argument) return argument.argument
  return argument.type === 'KeywordArgumentExpression' ? argument.value : argument
}
