/**
 * @module
 * Steps on the GPU. Reading anything back costs about as much as a token, so nothing is asked in between: a run computes
 * as if all experts were there, and its gates come back with its logits. If they routed one that was not there, it is
 * fetched and the tokens are run again; keys and values are simply written again. An expert that was not routed has been
 * multiplied by 0, so that the result is that of a model that has them all.
 *
 * For the same reason tokens are run ahead: after the token it was asked for, the GPU goes on with the likeliest next ones,
 * as long as those were right of late, and all of them are read in one go. A caller that does ask for that token finds its
 * logits here; for any other the run is forgotten, as keys and values past a sequence's end always are.
 */
import { SparsedgeError, throwIfCancelled } from '../../errors.ts'
import type { ModelConfig } from '../../model/config.ts'
import type { Logits } from '../backend.ts'
import type { Device } from './device.ts'
import type { Experts } from './experts.ts'
import { INPUT, OUTPUT } from './graph.ts'
import { Results } from './results.ts'
import type { GpuSequence } from './sequence.ts'
import { type Feeds, gpuTensor, idTensor, type Session, scalarTensor } from './session.ts'
import type { Binding } from './weights.ts'

/** Tokens of the longest run. */
export const CHUNK = 128

export interface StepperParts {
  readonly config: ModelConfig
  readonly device: Device
  readonly session: Session
  readonly experts: Experts
  readonly bindings: Iterable<Binding>
  /** Tokens that are run before they are read, at most. */
  readonly ahead: number
}

export class Stepper {
  readonly #config: ModelConfig
  readonly #device: Device
  readonly #session: Session
  readonly #experts: Experts
  readonly #results: Results
  readonly #ahead: number
  readonly #weights: Feeds
  /** What a run of one token is given and gives, in memory that is there already. */
  readonly #id
  readonly #logits
  readonly #gates
  readonly #last = scalarTensor()
  readonly #total = scalarTensor()
  readonly #runs = new WeakMap<GpuSequence, { readonly feeds: Feeds; readonly fetches: Feeds }>()

  #busy = false
  // Slots first .. end - 1 hold the tokens of a sequence that follow those it has.
  #owner: GpuSequence | undefined
  #first = 0
  #end = 0
  /** The likeliest token after the owner's last, and how many in a row were asked for. */
  #likeliest = -1
  #streak = 0

  constructor({ config, device, session, experts, bindings, ahead }: StepperParts) {
    this.#ahead = ahead
    this.#config = config
    this.#device = device
    this.#session = session
    this.#experts = experts
    this.#results = new Results(device, config, ahead, CHUNK)
    this.#weights = {}
    for (const { name, type, shape, buffer } of bindings) this.#weights[name] = gpuTensor(buffer, type, shape)
    this.#id = gpuTensor(this.#results.id, 'int32', [1, 1])
    this.#logits = gpuTensor(this.#results.logits, 'float32', [1, 1, config.vocab])
    this.#gates = this.#gateTensor(1)
  }

  step(sequence: GpuSequence, tokens: Int32Array, signal: AbortSignal | undefined): Logits | Promise<Logits> {
    if (this.#busy) throw new Error('a step of this backend is still running; the caller takes turns')
    this.#check(sequence, tokens)
    throwIfCancelled(signal)
    this.#device.check()
    if (tokens.length > 1) return this.#turn(sequence, () => this.#prefill(sequence, tokens, signal))
    const expected = this.#owner === sequence && tokens[0] === this.#likeliest
    this.#streak = expected ? this.#streak + 1 : 0
    if (expected && this.#first < this.#end) return this.#take(sequence)
    return this.#turn(sequence, () => this.#decode(sequence, tokens[0], signal))
  }

  #check(sequence: GpuSequence, tokens: Int32Array): void {
    const { vocab } = this.#config
    if (!sequence.cache) throw new RangeError('the sequence is closed')
    if (tokens.length === 0) throw new RangeError('a step takes at least one token')
    for (const token of tokens) {
      if (token < 0 || token >= vocab) throw new RangeError(`token ${token} is not below ${vocab}`)
    }
    const length = sequence.length + tokens.length
    if (length <= sequence.capacity) return
    throw new SparsedgeError(
      'prompt_too_long',
      `the sequence was opened for ${sequence.capacity} tokens and would hold ${length}; open a longer one`,
    )
  }

  /** Runs a step that waits. Until it has succeeded nobody has anything ahead. */
  async #turn(sequence: GpuSequence, work: () => Promise<Logits>): Promise<Logits> {
    this.#busy = true
    this.#owner = undefined
    try {
      const logits = await work()
      this.#owner = sequence
      return logits
    } finally {
      this.#busy = false
    }
  }

  async #prefill(
    sequence: GpuSequence,
    tokens: Int32Array,
    signal: AbortSignal | undefined,
  ): Promise<Logits> {
    await this.#loadAlwaysOn(sequence, signal)
    const { usage } = sequence
    for (let at = 0; at < tokens.length; at += CHUNK) {
      const chunk = tokens.slice(at, at + CHUNK)
      let missed = 0
      for (;;) {
        throwIfCancelled(signal)
        await this.#run(sequence, sequence.length + at, chunk)
        const gates = await this.#results.readChunk(chunk.length)
        const missing = this.#missing(gates, chunk.length)
        if (missing.length === 0) {
          this.#account(sequence, gates, chunk.length, missed)
          break
        }
        missed += missing.length
        await this.#experts.load(missing, usage, signal)
      }
    }
    sequence.length += tokens.length
    this.#first = 0
    this.#end = 0
    this.#likeliest = -1
    this.#streak = 0
    return this.#results.slot(0).logits
  }

  async #decode(sequence: GpuSequence, token: number, signal: AbortSignal | undefined): Promise<Logits> {
    await this.#loadAlwaysOn(sequence, signal)
    let count = Math.min(this.#ahead, this.#streak + 1, sequence.capacity - sequence.length)
    let missed = 0
    for (;;) {
      throwIfCancelled(signal)
      this.#device.gpu.queue.writeBuffer(this.#results.id, 0, Int32Array.of(token))
      for (let slot = 0; slot < count; slot++) {
        await this.#run(sequence, sequence.length + slot)
        this.#results.keep(slot)
      }
      await this.#results.read(count)
      const missing = this.#missing(this.#results.slot(0).gates, 1)
      if (missing.length === 0) break
      missed += missing.length
      count = 1
      await this.#experts.load(missing, sequence.usage, signal)
    }
    // What was run ahead stands up to the first token that lacked an expert.
    this.#first = 0
    this.#end = 1
    while (this.#end < count && this.#missing(this.#results.slot(this.#end).gates, 1).length === 0)
      this.#end++
    sequence.usage.misses += missed
    sequence.usage.hits -= missed
    return this.#take(sequence)
  }

  /** The next of the tokens that have been read: it is the sequence's now. */
  #take(sequence: GpuSequence): Logits {
    const { logits, gates, id } = this.#results.slot(this.#first)
    this.#account(sequence, gates, 1, 0)
    this.#first += 1
    this.#likeliest = id[0]
    sequence.length += 1
    return logits
  }

  /** Appends tokens, or the one that lies on the GPU already; overwrites what may be there. */
  async #run(sequence: GpuSequence, position: number, tokens?: Int32Array): Promise<void> {
    const { feeds, fetches } = this.#bindings(sequence)
    const count = tokens?.length ?? 1
    this.#last.data[0] = position + count - 1
    this.#total.data[0] = position + count
    feeds[INPUT.tokens] = tokens ? idTensor(tokens) : this.#id
    const gates = tokens ? this.#gateTensor(count) : this.#gates
    if (gates) fetches[OUTPUT.gates] = gates
    await this.#device.wait(this.#session.run(feeds, fetches))
  }

  #bindings(sequence: GpuSequence) {
    const known = this.#runs.get(sequence)
    if (known) return known
    const { cache } = sequence
    if (!cache) throw new RangeError('the sequence is closed')
    const { layers, kvHeads, headDim } = this.#config
    const feeds: Feeds = {
      ...this.#weights,
      [INPUT.last]: this.#last.tensor,
      [INPUT.total]: this.#total.tensor,
    }
    const fetches: Feeds = { [OUTPUT.logits]: this.#logits }
    for (let layer = 0; layer < layers; layer++) {
      const [keys, values] = [0, 1].map((i) =>
        gpuTensor(cache.buffers[2 * layer + i], 'float32', [1, kvHeads, cache.tokens, headDim]),
      )
      // What a run appends it writes where it lies.
      feeds[INPUT.keys(layer)] = keys
      fetches[OUTPUT.keys(layer)] = keys
      feeds[INPUT.values(layer)] = values
      fetches[OUTPUT.values(layer)] = values
    }
    const bindings = { feeds, fetches }
    this.#runs.set(sequence, bindings)
    return bindings
  }

  #gateTensor(tokens: number) {
    const { layers, experts, gate } = this.#config
    return gate.kind === 'all'
      ? undefined
      : gpuTensor(this.#results.gates, 'float32', [layers, tokens, experts])
  }

  /** Keys of the experts that gates routed and that have not come. @param gates g, [layers, tokens, experts] */
  #missing(gates: Float32Array, tokens: number): number[] {
    if (this.#experts.complete) return []
    const { layers, experts } = this.#config
    const missing: number[] = []
    for (let layer = 0; layer < layers; layer++) {
      for (let expert = 0; expert < experts; expert++) {
        const key = layer * experts + expert
        if (!this.#experts.has(key) && isRouted(gates, layer, expert, tokens, experts)) missing.push(key)
      }
    }
    return missing
  }

  /** Where there are no gates every expert is needed, and that is known before. */
  async #loadAlwaysOn({ usage }: GpuSequence, signal: AbortSignal | undefined): Promise<void> {
    const { gate, layers, experts } = this.#config
    if (gate.kind !== 'all' || this.#experts.complete) return
    const keys = Array.from({ length: layers * experts }, (_, key) => key).filter(
      (key) => !this.#experts.has(key),
    )
    usage.misses += keys.length
    usage.hits -= keys.length
    await this.#experts.load(keys, usage, signal)
  }

  /** @param missed experts of these tokens that had to be fetched */
  #account({ usage }: GpuSequence, gates: Float32Array, tokens: number, missed: number): void {
    const { gate, layers, experts } = this.#config
    usage.possible += tokens * layers * experts
    usage.misses += missed
    usage.hits -= missed
    if (gate.kind === 'all') {
      usage.activated += tokens * layers * experts
      usage.hits += layers * experts
      return
    }
    for (let i = 0; i < gates.length; i++) if (gates[i] > 0) usage.activated += 1
    for (let layer = 0; layer < layers; layer++) {
      for (let expert = 0; expert < experts; expert++) {
        if (isRouted(gates, layer, expert, tokens, experts)) usage.hits += 1
      }
    }
  }
}

function isRouted(
  gates: Float32Array,
  layer: number,
  expert: number,
  tokens: number,
  experts: number,
): boolean {
  for (let token = 0; token < tokens; token++) {
    if (gates[(layer * tokens + token) * experts + expert] > 0) return true
  }
  return false
}
