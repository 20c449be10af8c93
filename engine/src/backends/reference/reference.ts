/**
 * @module
 * The teaching backend: a DS-MoE language model's forward pass, readable from top to bottom, and the judge of the
 * faster backends. All experts are in memory; what is sparse is the work.
 */
import { SparsedgeError, throwIfCancelled } from '../../errors.ts'
import type { ModelConfig } from '../../model/config.ts'
import { gateWeights } from '../../model/gate.ts'
import { type GateRule, gateRule } from '../../model/selection.ts'
import type { ExpertOptions } from '../../request.ts'
import { ExpertUsage } from '../../residency/usage.ts'
import type { Backend, Logits, Sequence } from '../backend.ts'
import { addTo, attend, linear, rmsNorm, rotate, swiglu } from './maths.ts'
import type { Ffn, Layer, Model } from './model.ts'

/** What the gates of one layer said. */
export interface GateTrace {
  /** z, [tokens, experts]; zeros where there is no router. */
  readonly scores: Float32Array
  /** g, [tokens, experts]; 0 where an expert is off. */
  readonly weights: Float32Array
}

export interface Trace {
  /** [tokens, vocab] */
  readonly logits: Float32Array
  /** [layers] */
  readonly gates: readonly GateTrace[]
}

/** Keys and values of the tokens so far, per layer [capacity, kvHeads · headDim]. */
class ReferenceSequence implements Sequence {
  readonly capacity: number
  readonly usage: ExpertUsage
  readonly rule: GateRule
  length = 0
  keys: Float32Array[]
  values: Float32Array[]

  constructor({ layers, kvHeads, headDim }: ModelConfig, capacity: number, rule: GateRule) {
    const cache = () => Array.from({ length: layers }, () => new Float32Array(capacity * kvHeads * headDim))
    this.capacity = capacity
    this.usage = new ExpertUsage(layers)
    this.rule = rule
    this.keys = cache()
    this.values = cache()
  }

  close(): void {
    this.keys = []
    this.values = []
  }
}

export class ReferenceBackend implements Backend {
  readonly name = 'reference'
  readonly config: ModelConfig
  readonly #model: Model

  constructor(model: Model) {
    this.config = model.config
    this.#model = model
  }

  open(capacity: number, experts?: ExpertOptions): Sequence {
    const rule = gateRule(this.config, experts?.selection)
    try {
      return new ReferenceSequence(this.config, capacity, rule)
    } catch (cause) {
      const message = `no memory for a sequence of ${capacity} tokens; ask for a shorter one`
      throw new SparsedgeError('memory_exhausted', message, {}, { cause })
    }
  }

  step(sequence: Sequence, tokens: Int32Array, signal?: AbortSignal): Logits {
    throwIfCancelled(signal)
    const { x } = this.#forward(sequence, tokens)
    return linear(this.#model.head, x.subarray(-this.config.hidden))
  }

  /** As {@link ReferenceBackend.step}, with the logits after every token and what every gate said. */
  trace(sequence: Sequence, tokens: Int32Array): Trace {
    const { x, gates } = this.#forward(sequence, tokens)
    return { logits: linear(this.#model.head, x), gates }
  }

  /** Appends tokens. Returns the input of the head, [tokens, hidden], and each layer's gates. */
  #forward(sequence: Sequence, tokens: Int32Array): { x: Float32Array; gates: GateTrace[] } {
    if (!(sequence instanceof ReferenceSequence)) throw new TypeError('a sequence of another backend')
    if (sequence.length + tokens.length > sequence.capacity) {
      const message = `${sequence.length + tokens.length} tokens do not fit a sequence of ${sequence.capacity}`
      throw new SparsedgeError('prompt_too_long', message)
    }
    const { config, embedding, layers, norm } = this.#model
    const { hidden, normEps, gate } = config

    const x = new Float32Array(tokens.length * hidden) // the residual stream, [tokens, hidden]
    for (const [t, id] of tokens.entries()) {
      x.set(embedding.data.subarray(id * hidden, (id + 1) * hidden), t * hidden)
    }

    const gates: GateTrace[] = []
    let previous: Float32Array | undefined // the FFN input of the layer before, [tokens, hidden]
    for (const [i, layer] of layers.entries()) {
      addTo(x, this.#attention(layer, i, rmsNorm(x, layer.attentionNorm, normEps), sequence))
      const h = rmsNorm(x, layer.ffnNorm, normEps)
      // A look-ahead gate decides on what the layer before saw, so that its experts can be fetched a layer early.
      const source = gate.source === 'previous' ? (previous ?? h) : h
      const decision = this.#gate(layer, source, sequence.rule.top, sequence.rule.levels[i])
      addTo(x, this.#experts(layer, h, decision.weights))
      gates.push(decision)
      previous = h
    }

    sequence.length += tokens.length
    this.#account(sequence.usage, gates)
    return { x: rmsNorm(x, norm, normEps), gates }
  }

  /** @param h [tokens, hidden] @returns [tokens, hidden] */
  #attention(layer: Layer, index: number, h: Float32Array, sequence: ReferenceSequence): Float32Array {
    const { heads, kvHeads, headDim, ropeScale } = this.config
    const { invFreq } = this.#model
    const start = sequence.length
    const q = linear(layer.query, h)
    const k = linear(layer.key, h)
    rotate(q, heads, invFreq, start, ropeScale)
    rotate(k, kvHeads, invFreq, start, ropeScale)
    const keys = sequence.keys[index]
    const values = sequence.values[index]
    keys.set(k, start * kvHeads * headDim)
    values.set(linear(layer.value, h), start * kvHeads * headDim)
    return linear(layer.output, attend(q, keys, values, start, this.config))
  }

  /** z = router.weight · source + router.bias, then g. @param source [tokens, hidden] */
  #gate(layer: Layer, source: Float32Array, top: number, level: number): GateTrace {
    const { experts, hidden, gate } = this.config
    const size = (source.length / hidden) * experts
    const scores = layer.router ? linear(layer.router.weight, source) : new Float32Array(size)
    const weights = new Float32Array(size)
    for (let at = 0; at < size; at += experts) {
      const z = scores.subarray(at, at + experts)
      if (layer.router) addTo(z, layer.router.bias)
      gateWeights(gate.kind, top, level, z, weights.subarray(at, at + experts))
    }
    return { scores, weights }
  }

  /**
   * y = shared(h) + Σ g_e · expert_e(h), over the routed experts in ascending order (arXiv 2404.05567, eq. 1). Expert by
   * expert, each with the tokens that routed it, so that its weights are read once.
   *
   * @param h [tokens, hidden]
   * @param weights g, [tokens, experts]
   * @returns [tokens, hidden]
   */
  #experts(layer: Layer, h: Float32Array, weights: Float32Array): Float32Array {
    const { hidden, experts } = this.config
    const tokens = h.length / hidden
    const y = layer.shared ? ffn(layer.shared, h) : new Float32Array(h.length)
    const token = (x: Float32Array, t: number) => x.subarray(t * hidden, (t + 1) * hidden)
    for (const [e, expert] of layer.experts.entries()) {
      const routing = Array.from({ length: tokens }, (_, t) => t).filter(
        (t) => weights[t * experts + e] !== 0,
      )
      const inputs = new Float32Array(routing.length * hidden)
      for (const [n, t] of routing.entries()) inputs.set(token(h, t), n * hidden)
      const outputs = ffn(expert, inputs)
      for (const [n, t] of routing.entries()) addTo(token(y, t), token(outputs, n), weights[t * experts + e])
    }
    return y
  }

  #account(usage: ExpertUsage, gates: readonly GateTrace[]): void {
    const { experts } = this.config
    for (const [layer, { weights }] of gates.entries()) {
      const used = new Set<number>()
      let pairs = 0
      for (const [i, g] of weights.entries()) {
        if (g === 0) continue
        pairs += 1
        used.add(i % experts)
      }
      usage.layerActivated[layer] += pairs
      usage.layerHits[layer] += used.size
      usage.chosen += pairs
      usage.honoured += pairs
      usage.possible += weights.length
    }
  }
}

/** @param x [tokens, hidden] @returns [tokens, hidden] */
function ffn({ gate, up, down }: Ffn, x: Float32Array): Float32Array {
  return linear(down, swiglu(linear(gate, x), linear(up, x)))
}
