/**
 * @module
 * One step: tokens through all layers, a chunk at a time. Everything happens inside WASM but for the experts, whose
 * residency is asked for once a layer. Nothing is awaited, and nothing allocated, while all of them are resident.
 */
import { SparsedgeError, throwIfCancelled } from '../../errors.ts'
import type { ModelConfig } from '../../model/config.ts'
import type { GateRule } from '../../model/selection.ts'
import type { ArenaResidency } from '../../residency/arena.ts'
import type { Routing } from '../../residency/residency.ts'
import type { Logits } from '../backend.ts'
import { CHUNK, type Plan } from './plan.ts'
import type { Kernels } from './select.ts'
import type { WasmSequence } from './sequence.ts'

/** So many tokens select nearly all experts: at an active share of a half, all but one in 256. */
const MANY = 8
const NO_TOKENS = new Int32Array(0)

export class Stepper {
  readonly #config: ModelConfig
  readonly #kernels: Kernels
  readonly #residency: ArenaResidency
  // Views of WASM memory, made once: it never grows.
  readonly #tokenIds: Int32Array // [CHUNK]
  readonly #pages: Int32Array // [pages]
  readonly #slots: Int32Array // [experts]
  readonly #gateTop: Int32Array // [1]
  readonly #gateLevels: Float32Array // [layers]
  readonly #available: Int32Array // [experts]
  readonly #choices: Int32Array // [2]
  /** What even and odd layers route. */
  readonly #routing: readonly [Routing, Routing]
  readonly #logits: Logits

  // Where the step at hand is. A step that waits keeps its place here.
  #sequence: WasmSequence | undefined
  /** The one that the kernels have at hand. */
  #rule: GateRule | undefined
  #tokens: Int32Array = NO_TOKENS
  #signal: AbortSignal | undefined
  #first = 0
  #count = 0
  #layer = 0

  constructor(
    config: ModelConfig,
    { scratch, cache }: Plan,
    memory: WebAssembly.Memory,
    kernels: Kernels,
    residency: ArenaResidency,
  ) {
    const { buffer } = memory
    this.#config = config
    this.#kernels = kernels
    this.#residency = residency
    this.#tokenIds = new Int32Array(buffer, scratch.tokens, CHUNK)
    this.#pages = new Int32Array(buffer, scratch.pages, cache.pages)
    this.#slots = new Int32Array(buffer, scratch.slots, config.experts)
    this.#gateTop = new Int32Array(buffer, scratch.gateTop, 1)
    this.#gateLevels = new Float32Array(buffer, scratch.gateLevels, config.layers)
    this.#available = new Int32Array(buffer, scratch.available, config.experts)
    this.#choices = new Int32Array(buffer, scratch.choices, 2)
    const routing = (odd: number): Routing => {
      const row = (address: number) =>
        new Uint16Array(buffer, address + odd * config.experts * 2, config.experts)
      return { routed: row(scratch.routed), uses: row(scratch.uses), count: 0, tokens: 0 }
    }
    this.#routing = [routing(0), routing(1)]
    this.#logits = new Float32Array(buffer, scratch.logits, config.vocab)
  }

  step(
    sequence: WasmSequence,
    tokens: Int32Array,
    signal: AbortSignal | undefined,
  ): Logits | Promise<Logits> {
    if (this.#sequence) throw new Error('a step of this backend is still running; the caller takes turns')
    this.#check(sequence, tokens)
    throwIfCancelled(signal)
    this.#sequence = sequence
    this.#tokens = tokens
    this.#signal = signal
    this.#pages.set(sequence.pages)
    this.#select(sequence.rule)
    sequence.mayWait = sequence.options.policy === 'exact' || tokens.length > 1 || sequence.length === 0
    this.#first = 0
    let wait: undefined | Promise<void>
    try {
      this.#beginChunk(sequence)
      wait = this.#advance(sequence)
    } catch (error) {
      this.#fail()
      throw error
    }
    return wait ? this.#resume(sequence, wait) : this.#finish(sequence)
  }

  #select(rule: GateRule): void {
    if (this.#rule === rule) return
    this.#rule = rule
    this.#gateTop[0] = rule.top
    this.#gateLevels.set(rule.levels)
  }

  #check(sequence: WasmSequence, tokens: Int32Array): void {
    const { vocab } = this.#config
    if (sequence.pages.length === 0) throw new RangeError('the sequence is closed')
    if (tokens.length === 0) throw new RangeError('a step takes at least one token')
    for (let i = 0; i < tokens.length; i++) {
      if (tokens[i] < 0 || tokens[i] >= vocab)
        throw new RangeError(`token ${tokens[i]} is not below ${vocab}`)
    }
    const length = sequence.length + tokens.length
    if (length > sequence.capacity) {
      throw new SparsedgeError(
        'prompt_too_long',
        `the sequence was opened for ${sequence.capacity} tokens and would hold ${length}; open a longer one`,
      )
    }
  }

  /** The step from its first miss on. */
  async #resume(sequence: WasmSequence, missed: Promise<void>): Promise<Logits> {
    try {
      let wait: undefined | Promise<void> = missed
      while (wait) {
        await wait
        this.#experts(sequence)
        wait = this.#advance(sequence)
      }
    } catch (error) {
      this.#fail()
      throw error
    }
    return this.#finish(sequence)
  }

  /** Computes until the step is done (returns undefined) or the layer at hand waits for its experts. */
  #advance(sequence: WasmSequence): undefined | Promise<void> {
    while (this.#first < this.#tokens.length) {
      const wait = this.#untilExperts(sequence)
      if (wait) return wait
      this.#experts(sequence)
    }
    return undefined
  }

  #beginChunk(sequence: WasmSequence): void {
    const first = this.#first
    const count = Math.min(CHUNK, this.#tokens.length - first)
    for (let i = 0; i < count; i++) this.#tokenIds[i] = this.#tokens[first + i]
    this.#count = count
    this.#layer = 0
    this.#kernels.begin(count, sequence.length + first)
  }

  /** Attention and gate of the layer at hand; asks for its experts, then for what the next layer will want. */
  #untilExperts(sequence: WasmSequence): undefined | Promise<void> {
    const { gate, layers, experts } = this.#config
    const layer = this.#layer
    const count = this.#count
    throwIfCancelled(this.#signal)
    this.#kernels.attention(layer, count, sequence.length + this.#first)
    this.#kernels.ffnInput(layer, count)
    if (gate.source === 'own' || layer === 0) this.#gate(layer)
    const wait = this.#residency.acquire(layer, this.#routing[layer & 1], sequence, this.#signal)
    const next = layer + 1
    const complete = this.#residency.resident === layers * experts
    // Where a gate reads the layer before it, this is the next layer's gate itself; elsewhere it is a good guess.
    if (next < layers && (gate.source === 'previous' || !complete)) {
      this.#gate(next)
      if (!complete && sequence.mayWait && sequence.options.lookahead) {
        this.#residency.prefetch(next, this.#routing[next & 1], sequence)
        if (count >= MANY) this.#residency.anticipate(layer, sequence)
      }
    }
    return wait
  }

  #gate(layer: number): void {
    const routing = this.#routing[layer & 1]
    routing.count = this.#kernels.gate(layer, this.#count)
    routing.tokens = this.#count
  }

  /** The FFN of the layer at hand, whose experts are pinned; then on to the next layer or the next chunk. */
  #experts(sequence: WasmSequence): void {
    const { experts, layers } = this.#config
    const layer = this.#layer
    const { usage, options } = sequence
    const restricted = options.policy === 'resident_first' && this.#restrict(layer)
    const { routed, count } = this.#routing[layer & 1]
    const row = layer * experts
    for (let i = 0; i < count; i++) this.#slots[i] = this.#residency.slots[row + routed[i]]
    const pairs = this.#kernels.experts(layer, this.#count, count)
    usage.layerActivated[layer] += pairs
    usage.possible += this.#count * experts
    usage.chosen += restricted ? this.#choices[0] : pairs
    usage.honoured += restricted ? this.#choices[1] : pairs
    this.#residency.release(layer)
    this.#layer += 1
    if (this.#layer < layers) return
    this.#first += this.#count
    if (this.#first < this.#tokens.length) this.#beginChunk(sequence)
  }

  /** Where experts of a layer are missing, makes do with those that are there. */
  #restrict(layer: number): boolean {
    const { experts } = this.#config
    const { slots } = this.#residency
    const row = layer * experts
    const routing = this.#routing[layer & 1]
    const { routed, count } = routing
    let missing = 0
    for (let i = 0; i < count; i++) if (slots[row + routed[i]] < 0) missing += 1
    if (missing === 0) return false
    for (let e = 0; e < experts; e++) this.#available[e] = slots[row + e] < 0 ? 0 : 1
    routing.count = this.#kernels.restrict(layer, this.#count)
    return true
  }

  #finish(sequence: WasmSequence): Logits {
    this.#kernels.head(this.#count - 1)
    sequence.length += this.#tokens.length
    this.#end()
    return this.#logits
  }

  /** The keys and values that a failed step wrote lie past the sequence's end: it is as if it had never run. */
  #fail(): void {
    this.#residency.release(this.#layer)
    this.#end()
  }

  #end(): void {
    this.#sequence = undefined
    this.#tokens = NO_TOKENS
    this.#signal = undefined
  }
}
