/**
 * @module
 * Steps on the GPU. Reading anything back costs about as much as a token, so nothing is asked in between: a run computes
 * as if all experts were there, and its gates come back with its logits. If they routed one that was not there, it is
 * fetched and the tokens are run again; keys and values are simply written again. An expert that was not routed adds
 * nothing, so that the result is that of a model that has them all. Runs of several tokens are onnxruntime's (graph.ts),
 * those of one token our own (decode.ts).
 *
 * For the same reason tokens are run ahead: after the token it was asked for, the GPU goes on with the likeliest next ones,
 * as long as those were right of late, and all of them are read in one go. A caller that does ask for that token finds its
 * logits here; for any other the run is forgotten, as keys and values past a sequence's end always are.
 */
import { SparsedgeError, throwIfCancelled } from '../../errors.ts'
import type { ModelConfig } from '../../model/config.ts'
import type { Logits } from '../backend.ts'
import type { Decoder } from './decode.ts'
import type { Device } from './device.ts'
import type { Experts } from './experts.ts'
import { INPUT, OUTPUT } from './graph.ts'
import type { Results } from './results.ts'
import { Routing } from './routing.ts'
import type { GpuSequence } from './sequence.ts'
import { type Feeds, gpuTensor, idTensor, type Session, scalarTensor } from './session.ts'
import type { Binding } from './weights.ts'

/** Tokens of the longest run: as many as one readback and some hundred kernels are worth. */
export const CHUNK = 512

const NOTHING: Set<number> = new Set()

export interface StepperParts {
  readonly config: ModelConfig
  readonly device: Device
  readonly session: Session
  readonly experts: Experts
  readonly bindings: Iterable<Binding>
  readonly results: Results
  readonly decoder: Decoder
  /** Tokens that are run before they are read, at most. */
  readonly ahead: number
}

export class Stepper {
  readonly #config: ModelConfig
  readonly #device: Device
  readonly #session: Session
  readonly #experts: Experts
  readonly #routing: Routing
  readonly #results: Results
  readonly #decoder: Decoder
  readonly #ahead: number
  readonly #weights: Feeds
  readonly #logits
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

  constructor({ config, device, session, experts, bindings, results, decoder, ahead }: StepperParts) {
    this.#ahead = ahead
    this.#config = config
    this.#device = device
    this.#session = session
    this.#experts = experts
    this.#routing = new Routing(config, experts)
    this.#results = results
    this.#weights = {}
    for (const { name, type, shape, buffer } of bindings) this.#weights[name] = gpuTensor(buffer, type, shape)
    this.#logits = gpuTensor(this.#results.logits, 'float32', [1, 1, config.vocab])
    this.#decoder = decoder
  }

  step(sequence: GpuSequence, tokens: Int32Array, signal: AbortSignal | undefined): Logits | Promise<Logits> {
    if (this.#busy) throw new Error('a step of this backend is still running; the caller takes turns')
    this.#check(sequence, tokens)
    throwIfCancelled(signal)
    this.#device.check()
    sequence.mayWait = sequence.options.policy === 'exact' || tokens.length > 1 || sequence.length === 0
    if (tokens.length > 1) return this.#turn(sequence, () => this.#prefill(sequence, tokens, signal))
    const expected = this.#owner === sequence && tokens[0] === this.#likeliest
    this.#streak = expected ? this.#streak + 1 : 0
    if (expected && this.#first < this.#end) return this.#take(sequence, this.#first++)
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
      await sequence.cache?.ready
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
    for (let at = 0; at < tokens.length; at += CHUNK) {
      const chunk = tokens.slice(at, at + CHUNK)
      const fetched = await this.#fetchAlwaysOn(sequence, signal)
      for (;;) {
        throwIfCancelled(signal)
        const present = this.#experts.present()
        await this.#run(sequence, sequence.length + at, chunk)
        const gates = await this.#results.readChunk(chunk.length)
        const missing = this.#routing.missing(gates, chunk.length, present)
        // As below: nothing has come, and the policy allows to go on without.
        if (missing.length > 0 && (await this.#fetch(missing, sequence, signal, fetched))) continue
        this.#routing.account(sequence, gates, chunk.length, fetched)
        break
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
    const waits = sequence.mayWait
    const { cache } = sequence
    if (!cache) throw new RangeError('the sequence is closed')
    const encode = (pass: GPUComputePassEncoder) => this.#decoder.encode(pass, cache)
    const fetched = waits ? await this.#fetchAlwaysOn(sequence, signal) : NOTHING
    let count = Math.min(this.#ahead, this.#streak + 1, sequence.capacity - sequence.length)
    let present: Uint8Array | undefined
    for (;;) {
      throwIfCancelled(signal)
      present = this.#experts.present()
      this.#results.begin(token, sequence.length)
      for (let slot = 0; slot < count; slot++) this.#results.run(slot, encode)
      await this.#results.read(count)
      const missing = this.#routing.missing(this.#results.slot(0).gates, 1, present)
      if (missing.length === 0) break
      if (!waits) {
        if (sequence.options.lookahead) this.#experts.loadAside(missing, sequence)
        break
      }
      count = 1
      // Where a limit keeps experts from coming, the policy allows to go on without them, or this throws.
      if (!(await this.#fetch(missing, sequence, signal, fetched))) break
    }
    this.#first = 1
    this.#end = 1
    // What was run ahead stands up to the first token that lacked an expert.
    const whole = (slot: number) =>
      this.#routing.missing(this.#results.slot(slot).gates, 1, present).length === 0
    while (this.#end < count && whole(this.#end)) this.#end++
    return this.#take(sequence, 0, fetched)
  }

  /** A token that has been read: it is the sequence's now. */
  #take(sequence: GpuSequence, slot: number, fetched?: ReadonlySet<number>): Logits {
    const { logits, gates, id } = this.#results.slot(slot)
    this.#routing.account(sequence, gates, 1, fetched)
    this.#likeliest = id[0]
    sequence.length += 1
    return logits
  }

  /** Waits for experts, and notes them. @returns whether any has come */
  async #fetch(
    missing: readonly number[],
    sequence: GpuSequence,
    signal: AbortSignal | undefined,
    fetched: Set<number>,
  ): Promise<boolean> {
    // Others may have brought some since the run was queued.
    const rest = missing.filter((key) => !this.#experts.has(key))
    if (rest.length > 0) await this.#device.wait(this.#experts.load(rest, sequence, signal))
    const come = missing.filter((key) => this.#experts.has(key))
    for (const key of come) fetched.add(key)
    return come.length > 0
  }

  /** Where there are no gates every expert is needed, and that is known before. @returns the keys of those that came */
  async #fetchAlwaysOn(sequence: GpuSequence, signal: AbortSignal | undefined): Promise<Set<number>> {
    const fetched = new Set<number>()
    const { gate, layers, experts } = this.#config
    if (gate.kind !== 'all' || this.#experts.complete) return fetched
    const missing = Array.from({ length: layers * experts }, (_, key) => key)
    await this.#fetch(
      missing.filter((key) => !this.#experts.has(key)),
      sequence,
      signal,
      fetched,
    )
    return fetched
  }

  /** Appends tokens; overwrites what may be there. */
  async #run(sequence: GpuSequence, position: number, tokens: Int32Array): Promise<void> {
    const { feeds, fetches } = this.#bindings(sequence)
    const count = tokens.length
    this.#last.data[0] = position + count - 1
    this.#total.data[0] = position + count
    feeds[INPUT.tokens] = idTensor(tokens)
    const gates = this.#gateTensor(count)
    if (gates) fetches[OUTPUT.gates] = gates
    await this.#device.wait(this.#session.run(feeds, fetches))
  }

  #bindings(sequence: GpuSequence) {
    const known = this.#runs.get(sequence)
    if (known) return known
    const { cache } = sequence
    if (!cache) throw new RangeError('the sequence is closed')
    const { layers, kvHeads, headDim, experts, gate } = this.#config
    const feeds: Feeds = {
      ...this.#weights,
      [INPUT.last]: this.#last.tensor,
      [INPUT.total]: this.#total.tensor,
    }
    const fetches: Feeds = { [OUTPUT.logits]: this.#logits }
    const gateShape = [gate.kind === 'clamped_linear' ? experts : 1]
    for (let layer = 0; layer < layers; layer++) {
      const [keys, values] = [0, 1].map((i) =>
        gpuTensor(cache.buffers[2 * layer + i], 'float32', [1, kvHeads, cache.tokens, headDim]),
      )
      if (gate.kind !== 'all') feeds[INPUT.gate(layer)] = gpuTensor(cache.gates[layer], 'float32', gateShape)
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
}
